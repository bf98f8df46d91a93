"""Sphinx: ``python -m sphinx -EW docs docs/_build``; nothing is fetched."""

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

import smdp_jax

project = "smdp_jax"
author = "smdp_jax authors"
copyright = author
release = version = smdp_jax.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "mathml",
    "nouns",
]
exclude_patterns = ["_build"]
suppress_warnings = ["myst.xref_missing"]  # links into the repository; a test follows them
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"
math_numfig = False
autosummary_generate = True
autosummary_imported_members = True
autodoc_typehints = "none"  # numpydoc's sections have them, with shapes and units
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
html_theme = "pydata_sphinx_theme"
html_title = "smdp_jax"
html_static_path = ["_static"]
html_css_files = ["equations.css"]
html_sidebars = {"*": [], "api/**": ["sidebar-nav-bs"]}
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "header_links_before_dropdown": 3,
    "navigation_depth": 2,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
templates_path = ["_templates"]

_LITERAL = re.compile(r"(``.*?``|`.*?`)", re.DOTALL)


def _plain(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text: *, | and a last _ outside of literals are themselves."""
    parts = _LITERAL.split("\n".join(lines))
    parts[::2] = [re.sub(r"(?<!\\)([*|])|(?<=\w)_(?!\w)", _escaped, part) for part in parts[::2]]
    lines[:] = "".join(parts).split("\n")


def _escaped(match: re.Match) -> str:
    return "\\" + match.group(0)


def setup(app: Any) -> None:
    """Before numpydoc, which writes markup of its own."""
    app.connect("autodoc-process-docstring", _plain, priority=100)
