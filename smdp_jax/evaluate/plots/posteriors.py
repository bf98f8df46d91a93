"""Figures of scalar posteriors against their closed forms."""

import numpy as np
from matplotlib.figure import Figure

from smdp_jax.evaluate.plots import _style as style
from smdp_jax.evaluate.plots._style import ArrayND


@style.styled
def posterior_histogram(
    samples: ArrayND,
    grid: ArrayND,
    exact_density: ArrayND,
    *,
    bins: int = 50,
    state_unit: str = "",
) -> Figure:
    """Histogram of posterior samples under the exact posterior density.

    Parameters
    ----------
    samples : array
        Samples of x0, any shape, in units of the state; those outside the grid are counted in the
        normalisation and not shown.
    grid : array
        States, shape (points,), increasing.
    exact_density : array
        Posterior density on the grid, shape (points,), in 1 / units of the state.
    bins : int
        Number of bins over the grid.
    state_unit : str
        Unit for the axes; empty if dimensionless.

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
    if finite.size == 0:
        raise ValueError(f"no sample is finite, got {values.size} samples")
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
    learned_probability : array
        Share of posterior samples at +1, shape (points,).
    exact_probability : array
        The same in closed form, shape (points,).
    num_samples : int or None
        Samples behind each share; draws the band in which 95 % of the shares would lie if the
        exact curve held.
    state_unit : str
        Unit for the axis; empty if dimensionless.

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
    style.grid_lines(axes, "y")
    style.legend(axes, loc="upper left")
    return figure
