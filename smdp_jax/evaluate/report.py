"""One self-contained HTML page per run: metrics beside their targets, figures, config, environment.

The page needs no network: styles are inline and figures are PNG data inside it.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from smdp_jax.checks import check_choice, check_within
from smdp_jax.evaluate import _html_parts as parts
from smdp_jax.evaluate._html_parts import SavesFigure
from smdp_jax.files import write_atomically


@dataclass(frozen=True)
class Metric:
    """One row of a metrics table.

    Parameters
    ----------
    name : str
        What is measured, as the reader should see it.
    value, target : object
        The figure: a number, a scalar array, or text such as "0.97 ± 0.01"; what it should be
        (exact value, floor, or published figure), or None.
    unit, note : str
        Unit of both, empty if dimensionless; where the target is from, or how to read the figure.
    bound, tolerance : str, float, optional
        Which side of the target the value should be on, "at least" or "at most", or how near to it.
        Neither: the target is what an exact or ideal result would have.

    Raises
    ------
    ValueError
        For another bound, a negative tolerance, both, or either without a target.
    """

    name: str
    value: Any
    target: Any = None
    unit: str = ""
    note: str = ""
    bound: Literal["at least", "at most"] | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        check_choice("bound", self.bound, "at least", "at most", None)
        judged = self.bound is not None, self.tolerance is not None
        if all(judged) or (any(judged) and self.target is None):
            said = "Metric must have a target to be judged by, and either a bound or a tolerance"
            raise ValueError(f"{said}, got {self}")
        if self.tolerance is not None:
            check_within("[0, inf]", tolerance=self.tolerance)

    @property
    def wanted(self) -> str:
        """The target as the reader should see it, "" without one."""
        if self.target is None:
            return ""
        sign = {"at least": "≥ ", "at most": "≤ ", None: ""}[self.bound]
        around = "" if self.tolerance is None else f" ± {self.tolerance:.2g}"
        return f"{sign}{parts.number(self.target)}{around}"

    @property
    def met(self) -> bool | None:
        """Whether the value is where it should be (what is not finite is not); None: not asked."""
        value, target = _as_number(self.value), _as_number(self.target)
        if value is not None and not math.isfinite(value):
            return False
        if value is None or target is None:
            return None
        if self.tolerance is not None:
            return abs(value - target) <= self.tolerance
        if self.bound is None:
            return None
        return value >= target if self.bound == "at least" else value <= target


def _as_number(value: Any) -> float | None:
    """A figure as a number, nan for "not finite", None for other text."""
    if isinstance(value, str):
        return math.nan if value == "not finite" else None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def status_of(metrics: Sequence[Metric], lost_paths: tuple[int, int] | None = None) -> str:
    """One line: how many targets are met, which rows are missed, and how many paths were lost."""
    judged = [row for row in metrics if row.met is not None]
    missed = [row.name for row in judged if not row.met]
    line = [f"{len(judged) - len(missed)} of {len(judged)} targets met"]
    if missed:
        line.append(f"missed: {', '.join(missed)}")
    if lost_paths is not None:
        line.append(f"{lost_paths[0]} of {lost_paths[1]} paths lost")
    return "; ".join(line)


def text_table(metrics: Sequence[Metric]) -> str:
    """Rows for a terminal: mark, name, value, target, note, in columns."""
    marks = {True: "met", False: "MISSED", None: ""}
    rows = [("", "", "this run", "target", "")]
    for row in metrics:
        value = f"{parts.number(row.value)} {row.unit}".rstrip()
        rows.append((marks[row.met], row.name, value, row.wanted, row.note))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = (
        f"{mark:<{widths[0]}}  {name:<{widths[1]}}  {value:>{widths[2]}}  {target:<{widths[3]}}  "
        f"{note}".rstrip()
        for mark, name, value, target, note in rows
    )
    return "\n".join(lines)


@dataclass(frozen=True)
class ReportFigure:
    """A figure with its caption.

    Parameters
    ----------
    figure, caption, alt : figure or bytes, str, str
        A matplotlib figure, or a finished PNG; what one sees and what it should look like; a
        description for those who cannot see it (the caption if empty).
    """

    figure: SavesFigure | bytes
    caption: str
    alt: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the report, shown in this order: text, metrics, figures.

    Parameters
    ----------
    title, text, metrics, figures
        Heading; plain text, in which an empty line starts a new paragraph; rows of a table; figures
        with captions.
    """

    title: str
    text: str = ""
    metrics: Sequence[Metric] = ()
    figures: Sequence[ReportFigure] = ()


def _status(metrics: Sequence[Metric], lost_paths: tuple[int, int] | None) -> str:
    """What a reader should know before the first figure; "" where nothing is judged."""
    judged = [row.met for row in metrics if row.met is not None]
    if not judged and lost_paths is None:
        return ""
    good = all(judged) and not (lost_paths and lost_paths[0])
    return parts.status(status_of(metrics, lost_paths), good)


def _section(index: int, section: Section) -> str:
    body = [
        f'<section id="s{index}">',
        f"<h2>{parts.text(section.title)}</h2>",
        parts.paragraphs(section.text),
        parts.metrics_table(section.metrics),
        *(parts.figure(item.figure, item.caption, item.alt) for item in section.figures),
        "</section>",
    ]
    return "\n".join(body)


def write_report(
    path: str | os.PathLike[str],
    title: str,
    sections: Sequence[Section],
    *,
    summary: str = "",
    metrics: Sequence[Metric] = (),
    config: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    command: str = "",
    lost_paths: tuple[int, int] | None = None,
) -> Path:
    """Write one offline HTML page, whole or not at all.

    Parameters
    ----------
    path, title
        File to write, for example ``run / "report.html"``; name of the experiment.
    sections : sequence of Section
        What is shown, in order.
    summary, metrics : str, sequence of Metric
        One to three sentences under the title, what was done and what came out; the key figures,
        shown first, each beside its target where it has one.
    config, environment, command : mapping or None, mapping or None, str
        The resolved configuration (nested mappings and dataclasses become dotted names); for
        example `describe_environment()`; the shell command that makes this report again.
    lost_paths : (int, int) or None
        Backward paths that did not stay finite, and how many there were, for the status line. It
        opens the page: targets met of those that have a bound, rows that miss theirs, lost paths.

    Returns
    -------
    Path
        ``path``. All text is escaped, so that no value can change the page.

    Raises
    ------
    ValueError
        If the title is empty, or a figure given as bytes is not a PNG.
    """
    if not title.strip():
        raise ValueError(f"a report needs a title, got {title!r}")
    body = [
        f"<header><h1>{parts.text(title)}</h1>",
        parts.paragraphs(summary, kind="lead"),
        _status([*metrics, *(m for section in sections for m in section.metrics)], lost_paths),
        "</header>",
        parts.metrics_table(metrics),
        parts.contents([section.title for section in sections]),
        *(_section(index, section) for index, section in enumerate(sections)),
        parts.command(command),
        parts.folded_table("Configuration", config),
        parts.folded_table("Environment", environment),
    ]
    page = parts.page(title, "\n".join(part for part in body if part))
    return write_atomically(path, page.encode())
