"""Equations as MathML, which browsers lay out themselves: no script, no font, no network."""

from typing import Any

from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

_log = logging.getLogger(__name__)


def _mathml(node: Any, block: bool) -> str:
    try:
        return tex2mathml(node.astext(), as_block=block)
    except MathError as error:
        _log.warning("%s in %r", error, node.astext(), location=node)
        return f"<code>{node.astext()}</code>"


def _inline(translator: Any, node: Any) -> None:
    translator.body.append(_mathml(node, block=False))


def _display(translator: Any, node: Any) -> None:
    number = get_node_equation_number(translator, node) if node["number"] else ""
    translator.body.append(translator.starttag(node, "div", CLASS="math"))
    if number:
        translator.body.append(f'<span class="eqno">({number})')
        translator.add_permalink_ref(node, "Link to this equation")
        translator.body.append("</span>")
    translator.body.append(_mathml(node, block=True) + "</div>\n")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer; ``html_math_renderer = "mathml"`` asks for it."""
    app.add_html_math_renderer("mathml", (_written(_inline), None), (_written(_display), None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _written(visit: Any) -> Any:
    """A visitor that writes the node whole."""
    from docutils.nodes import SkipNode

    def visitor(translator: Any, node: Any) -> None:
        visit(translator, node)
        raise SkipNode

    return visitor
