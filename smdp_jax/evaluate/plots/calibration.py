"""Figures of calibration: coverage over level, and histograms of ranks."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from smdp_jax.evaluate.plots import _style as style
from smdp_jax.evaluate.plots._style import ArrayND


@style.styled
def coverage_curve(
    levels: ArrayND, coverage: Mapping[str, ArrayND], *, num_cases: int | None = None
) -> Figure:
    """Coverage over credibility level; a calibrated posterior follows the diagonal.

    Parameters
    ----------
    levels : array
        Credibility levels in [0, 1], shape (levels,), increasing.
    coverage : mapping of str to array
        Share of cases covered, by name, shape (levels,); from `marginal_coverage` or
        `expected_coverage`.
    num_cases : int or None
        Number of cases; draws the band that holds 95 % of the shares at each level if calibrated.

    Returns
    -------
    Figure
        One square panel.

    Raises
    ------
    ValueError
        If the shapes do not belong together, or there is nothing to draw.
    """
    levels = style.array("levels", levels, 1)
    if not coverage:
        raise ValueError("coverage must hold at least one array; got an empty mapping")
    figure = style.new_figure(4.4, 4.2)
    axes = figure.subplots()
    if num_cases is not None:
        half = 1.96 * np.sqrt(levels * (1 - levels) / num_cases)
        axes.fill_between(
            levels,
            levels - half,
            levels + half,
            color=style.PALE,
            alpha=0.5,
            linewidth=0,
            label=f"95 % band, {num_cases:,} cases",
        )
    axes.plot([0, 1], [0, 1], color=style.EXACT, linewidth=1, linestyle=":", label="calibrated")
    for index, (name, given) in enumerate(coverage.items()):
        values = style.array(name, given, 1)
        style.same_shape(name, values, levels.shape)
        cycle = index % len(style.SERIES)
        axes.plot(
            levels, values, color=style.SERIES[cycle], linestyle=style.DASHES[cycle], label=name
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    axes.set_xlabel("credibility level")
    axes.set_ylabel("share of cases covered")
    style.grid_lines(axes)
    style.legend(axes, loc="upper left")
    return figure


@style.styled
def rank_histogram(ranks: ArrayND, num_draws: int, *, bins: int | None = None) -> Figure:
    """Histogram of calibration ranks with the band expected of uniform ones.

    Parameters
    ----------
    ranks : array
        Ranks in 0 ... num_draws, any shape (entries are pooled).
    num_draws : int
        Posterior draws per case, L.
    bins : int or None
        Number of bins, at most L + 1; by default at most 20.

    Returns
    -------
    Figure
        One panel; the band holds 99 % of the counts of each bin if ranks are uniform and
        independent.

    Raises
    ------
    ValueError
        If there is no rank, one is out of range, or ``bins`` is.
    """
    values = np.ravel(np.asarray(ranks))
    if values.size == 0 or values.min() < 0 or values.max() > num_draws:
        raise ValueError(f"ranks must lie in 0 ... {num_draws} and not be empty; got {values}")
    bins = min(num_draws + 1, 20) if bins is None else bins
    if not 1 <= bins <= num_draws + 1:
        raise ValueError(f"bins must lie between 1 and num_draws + 1 = {num_draws + 1}; got {bins}")
    edges = np.ceil(np.arange(bins + 1) * (num_draws + 1) / bins)
    share = np.diff(edges) / (num_draws + 1)
    counts = np.histogram(values, edges - 0.5)[0]
    # Bins hold one rank more or less: shown as density relative to uniform.
    half = 2.576 * np.sqrt((1 - share) / (values.size * share))
    figure = style.new_figure(5.6, 3.2)
    axes = figure.subplots()
    axes.stairs(
        1 + half,
        edges / (num_draws + 1),
        baseline=np.maximum(1 - half, 0),
        fill=True,
        color=style.PALE,
        alpha=0.5,
        label="99 % of bins if uniform",
    )
    axes.stairs(
        counts / (values.size * share),
        edges / (num_draws + 1),
        color=style.LEARNED,
        linewidth=1.6,
        baseline=None,
        label="ranks",
    )
    axes.axhline(1, color=style.EXACT, linewidth=1, linestyle=":")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("rank of the truth / number of draws")
    axes.set_ylabel("frequency relative to uniform")
    axes.set_title(f"{values.size:,} ranks among {num_draws:,} draws")
    style.legend_below(figure, axes)
    return figure
