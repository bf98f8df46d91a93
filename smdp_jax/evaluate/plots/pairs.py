"""Figures of posteriors without a closed form: entries, and pairs of entries."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smdp_jax.checks import check_holds
from smdp_jax.evaluate.arrays import by_name
from smdp_jax.evaluate.plots import _style as style

_SHARES = (0.5, 0.9)


@style.styled
def histograms(
    samples: Any,
    truth: Any = None,
    prior: Any = None,
    *,
    entries: Sequence[int] | None = None,
    bins: int | None = None,
) -> Figure:
    """Draw the marginal posterior of each entry, beside the prior and the true start.

    Parameters
    ----------
    samples : Posterior, Conditioned or pytree
        Draws; leaves (draws, *state).
    truth, prior : pytree, optional
        The state they should hold, unbatched; draws from the prior, leaves (draws, *state).
    entries, bins : sequence of int, int, optional
        Which entries, in the order of the leaves, default all of up to 6, else 6 equally spaced;
        bins over the range of what is drawn, default 8 to 40, by the number of draws.

    Returns
    -------
    Figure
        A panel for each entry. Draws that are not finite are left out, and counted in its title.
    """
    drawn = columns(samples, 1, entries, 6)
    before = {} if prior is None else columns(prior, 1, None, 1 << 30)
    true = like(truth, list(drawn), "truth")
    rows = -(-len(drawn) // 3)
    wide = min(len(drawn), 3)
    figure = style.new_figure(2.9 * wide + 0.6, 2.4 * rows + 0.5)
    panels = figure.subplots(rows, wide, squeeze=False).ravel()
    for axes in panels[len(drawn) :]:
        axes.set_axis_off()
    for axes, (name, values) in zip(panels, drawn.items(), strict=False):
        finite = _finite(name, values)
        others = before.get(name, finite[:0])
        edges = _edges([finite, others[np.isfinite(others)]], true.get(name), bins)
        if others.size:
            density = np.histogram(others, edges, density=True)[0]
            axes.stairs(density, edges, fill=True, color=style.PALE, alpha=0.6, label="prior")
        _stairs(axes, finite, edges)
        if name in true:
            axes.axvline(true[name], color=style.EXACT, linestyle="--", label="truth")
        lost = values.size - finite.size
        axes.set(title=f"{lost:,} of {values.size:,} not finite" if lost else "", xlabel=name)
        axes.set_yticks([])
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel("density")
    style.legend_below(figure, panels[0])
    return figure


@style.styled
def pair_plot(
    samples: Any,
    truth: Any = None,
    *,
    entries: Sequence[int] | None = None,
    bins: int | None = None,
) -> Figure:
    """Draw marginals on the diagonal, and the density of every pair of entries below it.

    Parameters
    ----------
    samples, truth
        As for `histograms`; the truth is a cross.
    entries, bins
        As for `histograms`, but for up to 4 entries; pairs have as many bins along each axis.

    Returns
    -------
    Figure
        A triangle of panels; contours hold 50 and 90 % of the draws.
    """
    drawn = columns(samples, 1, entries, 4)
    true = like(truth, list(drawn), "truth")
    names, count = list(drawn), len(drawn)
    good = np.all([np.isfinite(values) for values in drawn.values()], axis=0)
    kept = {name: _finite(name, values[good]) for name, values in drawn.items()}
    edges = {name: _edges([v], true.get(name), bins) for name, v in kept.items()}
    figure = style.new_figure(1.9 * count + 0.9, 1.9 * count + 0.7)
    panels = figure.subplots(count, count, squeeze=False)
    for row, below in enumerate(names):
        for column, across in enumerate(names):
            axes = panels[row, column]
            if column > row:
                axes.set_axis_off()
                continue
            if row == column:
                _stairs(axes, kept[below], edges[below])
                axes.set_yticks([])
            else:
                _density(axes, kept[across], kept[below], edges[across], edges[below])
                if true:
                    look = {"color": style.EXACT, "markersize": 11, "markeredgewidth": 1.8}
                    axes.plot(true[across], true[below], "+", **look)
            if row == column and true:
                axes.axvline(true[across], color=style.EXACT, linestyle="--")
            axes.set_xlim(edges[across][0], edges[across][-1])
            axes.locator_params(axis="x", nbins=3)
            _label(axes, row, column, count, across, below)
    lost = int((~good).sum())
    note = f"; {lost:,} not finite" if lost else ""
    figure.suptitle(f"{int(good.sum()):,} draws{note}", fontsize=9.5, color=style.SOFT)
    return figure


def _label(axes: Axes, row: int, column: int, count: int, across: str, below: str) -> None:
    """Names and numbers on the outer sides alone."""
    if row == count - 1:
        axes.set_xlabel(across)
    else:
        axes.tick_params(labelbottom=False)
    if column == 0 and row:
        axes.set_ylabel(below)
        axes.locator_params(axis="y", nbins=3)
    elif row != column:
        axes.tick_params(labelleft=False)


def _finite(name: str, values: np.ndarray) -> np.ndarray:
    finite = values[np.isfinite(values)]
    check_holds(f"samples of {name}", finite.size, 1, "finite draw")
    return finite


def _edges(values: Sequence[np.ndarray], also: float | None, bins: int | None) -> np.ndarray:
    """Equal bins over all that is drawn, but for the last thousandth on either side."""
    ends = [np.quantile(v, [0.001, 0.999]) for v in values if v.size]
    if also is not None:
        ends.append(np.array([also, also]))
    low, high = np.min(ends), np.max(ends)
    bins = bins or int(np.clip(round(2 * values[0].size ** (1 / 3)), 8, 40))
    margin = 0.04 * (high - low) or 1e-6 * max(abs(low), 1e-12) + 1e-12
    return np.linspace(low - margin, high + margin, bins + 1)


def _stairs(axes: Axes, values: np.ndarray, edges: np.ndarray) -> None:
    heights = np.histogram(values, edges)[0] / (values.size * np.diff(edges))
    style.bars(axes, heights, edges)


def _density(
    axes: Axes, x: np.ndarray, y: np.ndarray, x_edges: np.ndarray, y_edges: np.ndarray
) -> None:
    """Draws as points, and the contours of a smoothed histogram that hold shares of them."""
    shown = slice(None, None, max(x.size // 1500, 1))
    axes.plot(x[shown], y[shown], ".", color=style.LEARNED, markersize=2, alpha=0.35)
    counts = _smoothed(np.histogram2d(x, y, (x_edges, y_edges))[0])
    order = np.sort(counts.ravel())[::-1]
    held = np.cumsum(order) / max(order.sum(), 1e-300)
    levels = sorted({float(order[np.searchsorted(held, share)]) for share in _SHARES})
    levels = [level for level in levels if 0 < level < order[0]]
    if levels and x.size >= 50:
        centres = [(edges[1:] + edges[:-1]) / 2 for edges in (x_edges, y_edges)]
        axes.contour(*centres, counts.T, levels, colors=style.LEARNED, linewidths=1.1)
    axes.set_ylim(y_edges[0], y_edges[-1])


def _smoothed(counts: np.ndarray) -> np.ndarray:
    """Binomial weights over five bins along each axis: few draws make ragged contours."""
    weights = np.array([1, 4, 6, 4, 1]) / 16
    for axis in (0, 1):
        counts = np.apply_along_axis(np.convolve, axis, counts, weights, "same")
    return counts


def samples_of(given: Any) -> Any:
    """The samples of a posterior, equally weighted, or a tree of them as it is."""
    samples, weights = getattr(given, "samples", given), getattr(given, "log_weights", None)
    if weights is None or np.ptp(weights) == 0:
        return samples
    share = np.cumsum(np.exp(np.asarray(weights, np.float64) - np.max(weights)))
    index = np.searchsorted(share / share[-1], (np.arange(len(share)) + 0.5) / len(share))
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], samples)


def columns(given: Any, axes: int, entries: Sequence[int] | None, most: int) -> dict[str, Any]:
    """Chosen entries (default: ``most`` of them) by name, such as ``x[3]``, with leading axes."""
    found: dict[str, np.ndarray] = {}
    for place, leaf in by_name(samples_of(given)).items():
        name = place or "x"
        values = np.asarray(leaf, np.float64)
        if values.ndim < axes:
            raise ValueError(f"{name} must have {axes} axes before the state, got {values.shape}")
        state = values.shape[axes:]
        for index in np.ndindex(state):
            told = f"{name}[{', '.join(map(str, index))}]" if state else name
            found[told] = values[(..., *index)]
    if not found or next(iter(found.values())).size == 0:
        raise ValueError(f"samples must hold at least one draw of one entry, got {given}")
    count = len(found)
    some = range(count) if count <= most else np.linspace(0, count - 1, most).astype(int).tolist()
    chosen = list(some if entries is None else entries)
    if not chosen or not all(0 <= i < count for i in chosen):
        raise ValueError(f"entries must be indices below {count}, got {chosen}")
    names = list(found)
    return {names[i]: found[names[i]] for i in chosen}


def like(given: Any, names: Sequence[str], what: str) -> dict[str, float]:
    """The same entries of one state."""
    if given is None:
        return {}
    one = columns(given, 0, None, 1 << 30)
    if missing := [name for name in names if name not in one]:
        raise ValueError(f"{what} must be one state like the samples', got none of {missing}")
    return {name: float(one[name]) for name in names}
