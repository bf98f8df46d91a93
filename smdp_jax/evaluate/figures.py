"""Figures as PNG files."""

import io
import os
from collections.abc import Mapping
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
    directory : path
        Directory of the run.
    figures : mapping of str to figure
        Figures by name; a name becomes a file name and holds no path separator.
    dpi : int
        Dots per inch, positive.

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
            raise ValueError(
                f'a figure name must be a plain file name such as "score", got {name!r}'
            )
    folder = Path(directory) / "figures"
    return {
        name: write_atomically(folder / f"{name}.png", figure_png(figure, dpi=dpi))
        for name, figure in figures.items()
    }
