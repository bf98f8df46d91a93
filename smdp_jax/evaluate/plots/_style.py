"""The one place that decides how figures look.

Colours are those of Okabe & Ito (2008), told apart with every common colour vision, each with one
meaning in all figures. Figures are made without pyplot: nothing global changes, and a figure is
freed when its last reference goes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from jaxtyping import Shaped
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from smdp_jax.checks import check_holds, check_shape
from smdp_jax.evaluate.arrays import AnyArray

INK = "#1b1f24"
"""Text, axes, and whatever is exact or true."""
SOFT = "#6b7580"
"""Secondary text and reference lines."""
PALE = "#b4bcc5"
"""Data in the background."""
LEARNED = "#0072B2"
"""Learned quantities and samples of the reverse-time SDE."""
FLOW = "#D55E00"
"""The probability-flow ODE."""
EXACT = INK
"""Closed forms and truths."""
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B07800", "#3D92C7")
"""Further series, in this order: Okabe and Ito's, the last two darker, to be seen on white."""
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1)), (0, (8, 3)))
"""Line styles that go with `SERIES`, so that curves differ in print without colour."""
DIVERGING = "RdBu_r"
"""Signed fields: white is zero."""
SEQUENTIAL = "viridis"
"""Positive fields."""

RC: dict[Any, Any] = {
    "font.size": 9.5,
    "font.family": "sans-serif",
    "mathtext.fontset": "dejavusans",
    "axes.titlesize": 10.5,
    "axes.titleweight": "normal",
    "axes.titlelocation": "left",
    "axes.titlepad": 7.0,
    "axes.labelsize": 9.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "grid.color": "#e3e7eb",
    "grid.linewidth": 0.7,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "lines.linewidth": 1.6,
    "figure.facecolor": "white",
    "image.interpolation": "nearest",
}

ArrayND = Shaped[AnyArray, "..."]
"""What is drawn: any array, checked by `array`."""

P = ParamSpec("P")


@contextmanager
def settings() -> Iterator[None]:
    """Use this style inside, and leave matplotlib's settings as they were."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC)
        yield


def styled(function: Callable[P, Figure]) -> Callable[P, Figure]:
    """Run a plotting function with this style."""

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with settings():
            figure = function(*args, **kwargs)
            # Ticks are made at the first drawing, and counted at each: both in this style.
            for axes in figure.axes:
                axes.tick_params(which="both", labelsize=RC["xtick.labelsize"])
            figure.draw_without_rendering()
            return figure

    return wrapper


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure of this size in inches whose parts do not overlap."""
    return Figure(figsize=(width, height), layout="constrained")


def label(name: str, unit: str) -> str:
    """Label an axis: the name, and the unit in brackets unless dimensionless."""
    return f"{name} [{unit}]" if unit else name


def per_unit(unit: str) -> str:
    """Unit of a density or a score of something measured in ``unit``."""
    return unit and (f"1/{unit}" if unit.isalnum() else f"1/({unit})")


def series(index: int) -> dict[str, Any]:
    """Colour and dashes of one curve among several."""
    cycle = index % len(SERIES)
    return {"color": SERIES[cycle], "linestyle": DASHES[cycle]}


def band(axes: Axes, x: Any, low: Any, high: Any, name: str | None = None) -> None:
    """A pale band behind the data."""
    axes.fill_between(x, low, high, color=PALE, alpha=0.5, linewidth=0, label=name)


def share_band(axes: Axes, x: Any, shares: Any, number: int, name: str | None = None) -> None:
    """The band that holds 95 % of shares among a number of draws, if these are the true ones."""
    half = 1.96 * np.sqrt(shares * (1 - shares) / number)
    band(axes, x, shares - half, shares + half, name)


def bars(axes: Axes, heights: np.ndarray, edges: np.ndarray) -> None:
    """A histogram of samples."""
    axes.stairs(heights, edges, fill=True, color=LEARNED, alpha=0.35, label="samples")
    axes.stairs(heights, edges, color=LEARNED, linewidth=0.8)


def sample_lines(axes: Axes, points: np.ndarray, samples: np.ndarray) -> list[Line2D]:
    """Samples (samples, points) as thin lines."""
    lines = axes.plot(points, samples.T, color=LEARNED, linewidth=0.8, alpha=0.5)
    lines[0].set_label("samples")
    return lines


def note(axes: Axes, text: str, x: Any, height: float, above: int, **options: Any) -> None:
    """Small text just right of x, at a share of the height and some points above."""
    axes.annotate(
        text, (x, height), xycoords=("data", "axes fraction"), xytext=(3, above),
        textcoords="offset points", fontsize=8, color=SOFT, **options,
    )  # fmt: skip


def colour_bar(figure: Figure, image: Any, axes: Any, name: str, **options: Any) -> None:
    """A bar without a frame."""
    figure.colorbar(image, ax=axes, label=name, **options).outline.set_visible(False)


def guide(axes: Axes, height: float | int, name: str | None = None) -> None:
    """A dotted line at what is exact."""
    axes.axhline(height, color=EXACT, linewidth=1, linestyle=":", label=name)


def coverage_axes(axes: Axes) -> None:
    """A square for shares over credibility levels, with the diagonal of what is calibrated."""
    axes.plot([0, 1], [0, 1], color=EXACT, linewidth=1, linestyle=":", label="calibrated")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="credibility level")
    axes.grid(True)


def legend(axes: Axes, loc: Any = "best") -> None:
    """A legend inside the axes, if anything has a label."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc=loc)


def legend_below(figure: Figure, axes: Axes, columns: int = 4) -> None:
    """A legend under the figure, where it covers nothing; transparent lines are shown solid."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    look = {"loc": "outside lower center", "ncols": min(columns, len(handles))}
    for handle in figure.legend(handles, labels, **look).legend_handles:
        if isinstance(handle, Line2D | LineCollection):
            handle.set_alpha(1.0)


def log_y(axes: Axes, values: np.ndarray) -> None:
    """Make the y axis of positive values logarithmic, with plain numbers where they span little."""
    axes.set_yscale("log")
    low, high = float(values.min()), float(values.max())
    if high < 300 * low:
        marks = (1.0, 2.0, 5.0) if high > 5 * low else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
        axes.yaxis.set_major_locator(LogLocator(subs=marks))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def array(
    name: str, value: Any, ndim: int | Sequence[int], shape: tuple[int | None, ...] = ()
) -> np.ndarray:
    """A numpy copy of an array with so many axes, the last ones of a shape (None: any length)."""
    value = np.asarray(value, dtype=np.float64)
    allowed = (ndim,) if isinstance(ndim, int) else tuple(ndim)
    if value.ndim not in allowed:
        wanted = " or ".join(map(str, allowed))
        raise ValueError(f"{name} must have {wanted} axes, got shape {value.shape}")
    check_holds(name, value.size, 1, "number")
    before = value.ndim - len(shape)
    pairs = zip(value.shape, (None,) * before + shape, strict=True)
    check_shape(name, value, tuple(has if wants is None else wants for has, wants in pairs))
    return value


def robust_limit(*arrays: np.ndarray, percent: float) -> float:
    """Largest modulus of a symmetric colour scale that a few extreme values do not set."""
    values = np.abs(np.concatenate([np.ravel(values) for values in arrays]))
    values = values[np.isfinite(values)]
    if not values.size:
        return 1.0
    return float(np.percentile(values, percent)) or float(values.max()) or 1.0
