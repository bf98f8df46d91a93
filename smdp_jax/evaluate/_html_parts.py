"""The pieces of HTML that a report is made of, each escaped where it is made, and PNG files."""

import base64
import dataclasses
import html
import io
import os
import re
import struct
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from smdp_jax.files import write_atomically

PNG_DPI = 160
"""Dots per inch of saved figures: sharp on dense screens and in print."""


@runtime_checkable
class SavesFigure(Protocol):
    """What is needed of a figure; `matplotlib.figure.Figure` has it."""

    def savefig(self, fname: Any, **options: Any) -> None:
        """Write the figure."""


def figure_png(figure: SavesFigure, *, dpi: int = PNG_DPI) -> bytes:
    """Render a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def save_figures(
    directory: str | os.PathLike[str], figures: Mapping[str, SavesFigure], *, dpi: int = PNG_DPI
) -> dict[str, Path]:
    """Save figures as ``directory``/figures/``name``.png, each file whole or not at all.

    Parameters
    ----------
    directory, figures, dpi : path, mapping of str to figure, int
        Directory of the run; figures by name, which becomes a file name; dots per inch, positive.

    Returns
    -------
    dict[str, Path]
        Path of each file.

    Raises
    ------
    ValueError
        If a name is empty, starts with a dot, or holds a path separator.
    """
    for name in figures:
        if not name or name.startswith(".") or "/" in name or "\\" in name:
            said = 'a figure name must be a plain file name such as "score"'
            raise ValueError(f"{said}, got {name!r}")
    folder = Path(directory) / "figures"
    return {
        name: write_atomically(folder / f"{name}.png", figure_png(figure, dpi=dpi))
        for name, figure in figures.items()
    }


_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def text(value: Any) -> str:
    """Any value as text that is safe in an element and in a quoted attribute."""
    return html.escape(str(value), quote=True)


def number(value: Any) -> str:
    """A figure as the reader wants it: integers whole, others to four significant digits."""
    if isinstance(value, str | bool):
        return str(value)
    if hasattr(value, "item") and getattr(value, "size", 1) == 1:
        value = value.item()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def paragraphs(content: str, kind: str = "") -> str:
    """Plain text; an empty line starts a new paragraph, an indented line or a list's a new one."""
    attribute = f' class="{kind}"' if kind else ""
    blocks = [block.rstrip() for block in re.split(r"\n\s*\n", content) if block.strip()]
    lines = [re.sub(r"[ \t]*\n(?![ \t]|[-*] |\d+\. )", " ", block).strip() for block in blocks]
    return "\n".join(f"<p{attribute}>{text(block)}</p>" for block in lines)


def status(line: str, good: bool) -> str:
    """The line that says whether all is well."""
    kind, mark = ("good", "✓") if good else ("bad", "✗")
    return f'<p class="status {kind}" role="status">{mark} {text(line)}</p>'


_MARK = '<span class="mark {0}" title="{1}" aria-label="{1}">{2}</span> '
_MARKS = {
    True: (_MARK.format("good", "met", "✓"), ""),
    False: (_MARK.format("bad", "missed", "✗"), ' class="missed"'),
    None: ("", ""),
}


def metrics_table(rows: Sequence[Any]) -> str:
    """Rows of ``Metric``; empty columns are left out."""
    if not rows:
        return ""
    with_target, with_note = any(row.wanted for row in rows), any(row.note for row in rows)
    head = ["<th>Metric</th>", '<th class="n">This run</th>']
    head += ['<th class="n">Target</th>'] * with_target + ["<th>Note</th>"] * with_note
    body = []
    for row in rows:
        mark, kind = _MARKS[row.met]
        suffix = f' <span class="unit">{text(row.unit)}</span>' if row.unit else ""
        cells = [f'<th scope="row">{text(row.name)}</th>']
        cells.append(f'<td class="n">{mark}{text(number(row.value))}{suffix}</td>')
        if with_target:
            shown = f"{text(row.wanted)}{suffix}" if row.wanted else "–"
            cells.append(f'<td class="n">{shown}</td>')
        if with_note:
            cells.append(f'<td class="note">{text(row.note)}</td>')
        body.append(f"<tr{kind}>{''.join(cells)}</tr>")
    return (
        f'<div class="wide"><table class="metrics"><thead><tr>{"".join(head)}</tr></thead>\n'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def figure(drawn: SavesFigure | bytes, caption: str, alt: str = "") -> str:
    """A figure or PNG inside the page, at its size in inches, with its caption."""
    png = drawn if isinstance(drawn, bytes) else figure_png(drawn)
    if not png.startswith(_PNG_SIGNATURE):
        raise ValueError(f"a figure must be a PNG, got bytes that start with {png[:8]!r}")
    # CSS counts 96 pixels per inch, the file PNG_DPI.
    width, height = (round(side * 96 / PNG_DPI) for side in struct.unpack(">II", png[16:24]))
    data = base64.b64encode(png).decode()
    return (
        f'<figure><div class="plot"><img width="{width}" height="{height}" '
        f'alt="{text(alt or caption)}" src="data:image/png;base64,{data}"></div>\n'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def contents(titles: Sequence[str]) -> str:
    """Links to the sections, where there are enough to get lost in."""
    if len(titles) < 3:
        return ""
    links = [f'<li><a href="#s{i}">{text(title)}</a></li>' for i, title in enumerate(titles)]
    return f'<nav aria-label="Sections"><ul>{"".join(links)}</ul></nav>'


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings and dataclasses as (dotted name, value) rows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if not isinstance(value, Mapping) or not value:
        return [(prefix, str(value))]
    inner = [(f"{prefix}.{key}" if prefix else str(key), v) for key, v in value.items()]
    return [row for name, v in inner for row in flatten(v, name)]


def folded_table(title: str, values: Mapping[str, Any] | None) -> str:
    """A table of names and values that opens on a click."""
    if not values:
        return ""
    row = '<tr><th scope="row"><code>{}</code></th><td><code>{}</code></td></tr>'
    rows = "".join(row.format(text(name), text(value)) for name, value in flatten(values))
    return (
        f'<details><summary>{text(title)}</summary><div class="wide">'
        f'<table class="pairs"><tbody>{rows}</tbody></table></div></details>'
    )


def command(line: str) -> str:
    """How to make the report again."""
    if not line:
        return ""
    code = f"<pre><code>{text(line)}</code></pre>"
    return f'<section id="reproduce"><h2>Reproduce</h2>\n{code}</section>'


def page(title: str, body: str) -> str:
    """A whole document with its style."""
    style = files("smdp_jax.evaluate").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
