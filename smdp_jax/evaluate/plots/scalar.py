"""Figures of scalar processes: scores in the (t, x) plane, paths, posteriors."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from smdp_jax.checks import check_holds, check_positive
from smdp_jax.evaluate.plots import _style as style
from smdp_jax.evaluate.plots._style import ArrayND


def _mass_outline(density: np.ndarray) -> np.ndarray:
    """Density relative to the level whose superlevel set holds 99 %, time by time."""
    ordered = -np.sort(-density, axis=1)
    held = np.cumsum(ordered, axis=1)
    index = np.argmax(held >= 0.99 * held[:, -1:], axis=1)
    level = np.take_along_axis(ordered, index[:, None], axis=1)
    return density / np.where(level > 0, level, 1)


def _heat_map(
    axes: Axes, ts: np.ndarray, xs: np.ndarray, values: np.ndarray, held: np.ndarray, top: float
) -> ScalarMappable:
    """Signed values over (t, x), pale where no data tell them; returns the colours for a bar."""
    scale: dict[str, Any] = {"cmap": style.DIVERGING, "vmin": -top, "vmax": top}
    scale["alpha"] = np.where(held, 1.0, 0.3).T
    mesh = axes.pcolormesh(ts, xs, values.T, rasterized=True, **scale)
    return ScalarMappable(mesh.norm, mesh.cmap)


@style.styled
def score_field(
    ts: ArrayND,
    xs: ArrayND,
    learned: ArrayND,
    exact: ArrayND,
    *,
    density: ArrayND | None = None,
    time_unit: str = "",
    state_unit: str = "",
) -> Figure:
    """Learned and exact score over (t, x) on one colour scale, and their difference.

    Colour scales are symmetric, and cut at the 97th percentile of what is finite (and where there
    is density, if given); the difference has its own.

    Parameters
    ----------
    ts, xs : array
        Times (times,) and equally spaced states (points,), both increasing.
    learned, exact, density : array
        Scores, shape (times, points), in 1 / units of the state; p_t there, of any normalisation
        per time: the region that holds 99 % of it is outlined, and colours are pale outside, where
        no data tell the score.
    time_unit, state_unit : str
        Units for the axes; empty if dimensionless.

    Returns
    -------
    Figure
        Three panels.
    """
    ts, xs = style.array("ts", ts, 1), style.array("xs", xs, 1)
    shape = (ts.size, xs.size)
    learned = style.array("learned", learned, 2, shape)
    exact = style.array("exact", exact, 2, shape)
    outline = None
    if density is not None:
        outline = _mass_outline(style.array("density", density, 2, shape))
    held = np.ones(shape, bool) if outline is None else outline >= 1
    difference = learned - exact
    limit = style.robust_limit(exact[held], percent=97.0)
    off = style.robust_limit(difference[held], percent=97.0)
    figure = style.new_figure(10.0, 3.3)
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    titles = ("Learned", "Exact", "Learned − exact")
    fields, limits = (learned, exact, difference), (limit, limit, off)
    bars = ("", r"score $\partial_x \log p_t$", "difference")
    for axes, values, title, top, bar in zip(panels, fields, titles, limits, bars, strict=True):
        mesh = _heat_map(axes, ts, xs, values, held, top)
        if outline is not None:
            axes.contour(ts, xs, outline.T, levels=[1.0], colors=style.INK, linewidths=0.8)
        axes.set(title=title, xlabel=style.label("time $t$", time_unit))
        if bar:
            name = style.label(bar, style.per_unit(state_unit))
            style.colour_bar(figure, mesh, axes, name, extend="both", pad=0.02)
    panels[0].set_ylabel(style.label("state $x$", state_unit))
    return figure


def _lines(axes: Axes, ts: np.ndarray, paths: np.ndarray, **look: Any) -> None:
    """Many thin paths as one artist, more transparent the more there are."""
    segments = np.stack([np.broadcast_to(ts, paths.shape), paths], axis=-1)
    alpha = float(np.clip(20 / len(paths), 0.15, 0.9))
    axes.add_collection(LineCollection(list(segments), alpha=alpha, **look))
    axes.autoscale_view()


@style.styled
def trajectories(
    ts: ArrayND,
    forward: ArrayND,
    backward: ArrayND,
    *,
    flow: ArrayND | None = None,
    max_paths: int = 100,
    time_unit: str = "",
    state_unit: str = "",
) -> Figure:
    """Simulated paths beside the paths that were sampled backward, on one scale.

    Parameters
    ----------
    ts : array
        Times, shape (times,), increasing.
    forward, backward, flow : array
        Simulated paths, those of the reverse-time SDE, and those of the probability-flow ODE
        (optional, drawn over the others): shape (paths, times), in the order of ``ts`` and units
        of the state.
    max_paths, time_unit, state_unit
        At most this many of each are drawn, the first ones; units, empty if dimensionless.

    Returns
    -------
    Figure
        Two panels.

    Raises
    ------
    ValueError
        If the shapes do not belong together or ``max_paths`` is not positive.
    """
    check_positive(max_paths=max_paths)
    ts = style.array("ts", ts, 1)
    named = {"forward": forward, "backward": backward} | ({} if flow is None else {"flow": flow})
    paths = {
        name: style.array(name, given, 2, (None, ts.size))[:max_paths]
        for name, given in named.items()
    }
    figure = style.new_figure(8.6, 3.4)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    thin, wide = {"linewidths": 0.8}, {"linewidths": 1.3, "label": "probability-flow ODE"}
    _lines(panels[0], ts, paths["forward"], colors=style.SOFT, label="simulated", **thin)
    _lines(panels[1], ts, paths["backward"], colors=style.LEARNED, label="reverse-time SDE", **thin)
    if flow is not None:
        _lines(panels[1], ts, paths["flow"][:12], colors=style.FLOW, **wide)
    panels[0].set_title("Simulated forward")
    panels[1].set_title("Sampled backward")
    panels[0].set_ylabel(style.label("state $x$", state_unit))
    for axes in panels:
        axes.set_xlabel(style.label("time $t$", time_unit))
        axes.margins(x=0.01, y=0.05)
        axes.grid(True, axis="y")
    style.legend_below(figure, panels[1])
    return figure


@style.styled
def posterior_histogram(
    samples: ArrayND, grid: ArrayND, exact_density: ArrayND, *, bins: int = 50, state_unit: str = ""
) -> Figure:
    """Histogram of posterior samples under the exact posterior density.

    Parameters
    ----------
    samples : array
        Samples of x0, any shape, in units of the state; those outside the grid are counted in the
        normalisation and not shown.
    grid, exact_density : array
        Increasing states and the posterior density there in 1 / units of these, shape (points,).
    bins, state_unit
        Number of bins over the grid; unit for the axes, empty if dimensionless.

    Returns
    -------
    Figure
        One panel.

    Raises
    ------
    ValueError
        If the shapes do not belong together, or no sample is finite.
    """
    grid = style.array("grid", grid, 1)
    exact = style.array("exact_density", exact_density, 1, grid.shape)
    values = np.ravel(np.asarray(samples, np.float64))
    finite = values[np.isfinite(values)]
    check_holds("samples", finite.size, 1, "finite one")
    edges = np.linspace(grid[0], grid[-1], bins + 1)
    heights = np.histogram(finite, edges)[0] / (values.size * np.diff(edges))
    figure = style.new_figure(5.6, 3.4)
    axes = figure.subplots()
    style.bars(axes, heights, edges)
    axes.plot(grid, exact, color=style.EXACT, label="exact posterior")
    axes.set_xlabel(style.label("initial state $x_0$", state_unit))
    axes.set_ylabel(style.label("density", style.per_unit(state_unit)))
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    outside = values.size - int(np.sum((finite >= grid[0]) & (finite <= grid[-1])))
    more = f", {outside:,} outside the plot" if outside else ""
    axes.set_title(f"{values.size:,} samples{more}")
    style.legend(axes)
    return figure


@style.styled
def posterior_probability(
    x_end: ArrayND,
    learned_probability: ArrayND,
    exact_probability: ArrayND,
    *,
    num_samples: int | None = None,
    state_unit: str = "",
) -> Figure:
    """P(x0 = +1 | x_T) over the observed end state, sampled and exact.

    Parameters
    ----------
    x_end : array
        Observed end states, shape (points,), in units of the state.
    learned_probability, exact_probability : array
        Share of posterior samples at +1, and the same in closed form, shape (points,).
    num_samples, state_unit : int or None, str
        Samples behind each share, for the band in which 95 % of the shares would lie if the exact
        curve held; unit for the axis, empty if dimensionless.

    Returns
    -------
    Figure
        One panel.
    """
    x_end = style.array("x_end", x_end, 1)
    order = np.argsort(x_end)
    learned = style.array("learned_probability", learned_probability, 1, x_end.shape)
    exact = style.array("exact_probability", exact_probability, 1, x_end.shape)
    x_end, learned, exact = x_end[order], learned[order], exact[order]
    figure = style.new_figure(5.6, 3.4)
    axes = figure.subplots()
    if num_samples is not None:
        name = f"95 % of shares of {num_samples:,} exact samples"
        style.share_band(axes, x_end, exact, num_samples, name)
    axes.plot(x_end, exact, color=style.EXACT, label="exact")
    axes.plot(x_end, learned, "o", markersize=4, color=style.LEARNED, label="sampled")
    axes.axhline(0.5, color=style.SOFT, linewidth=0.8, linestyle=":")
    axes.set_xlabel(style.label("observed end state $x_T$", state_unit))
    axes.set_ylabel("$P(x_0 = +1 \\mid x_T)$")
    axes.set_ylim(-0.03, 1.03)
    axes.grid(True, axis="y")
    style.legend(axes, loc="upper left")
    return figure
