"""Figures of calibration: coverage over level, and histograms of ranks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smdp_jax.checks import check_holds, check_within
from smdp_jax.evaluate.arrays import check_entries
from smdp_jax.evaluate.calibration import expected_coverage
from smdp_jax.evaluate.plots import _style as style
from smdp_jax.evaluate.plots._style import ArrayND
from smdp_jax.evaluate.rank_bands import rank_band


@style.styled
def coverage_curve(
    levels: ArrayND, coverage: Mapping[str, ArrayND], *, num_cases: int | None = None
) -> Figure:
    """Coverage over credibility level; a calibrated posterior follows the diagonal.

    Parameters
    ----------
    levels, coverage : array, mapping of str to array
        Increasing credibility levels in [0, 1], and shares of cases covered, by name, from
        `marginal_coverage` or `expected_coverage`: shape (levels,).
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
    check_holds("coverage", len(coverage), 1, "array")
    figure = style.new_figure(4.4, 4.2)
    axes = figure.subplots()
    if num_cases is not None:
        style.share_band(axes, levels, levels, num_cases, f"95 % band, {num_cases:,} cases")
    style.coverage_axes(axes)
    for index, (name, given) in enumerate(coverage.items()):
        values = style.array(name, given, 1, levels.shape)
        axes.plot(levels, values, label=name, **style.series(index))
    axes.set_ylabel("share of cases covered")
    style.legend(axes, loc="upper left")
    return figure


@style.styled
def rank_histogram(ranks: ArrayND, num_draws: int, *, bins: int | None = None) -> Figure:
    """Histogram of calibration ranks with the band expected of uniform ones.

    Parameters
    ----------
    ranks, num_draws : array, int
        Ranks in 0 ... num_draws, any shape (entries are pooled); posterior draws per case, L.
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
    check_holds("ranks", values.size, 1, "rank")
    check_entries(f"[0, {num_draws}]", ranks=values)
    bins = min(num_draws + 1, 20) if bins is None else bins
    check_within(f"[1, {num_draws + 1}]", bins=bins)
    edges = np.ceil(np.arange(bins + 1) * (num_draws + 1) / bins)
    share = np.diff(edges) / (num_draws + 1)
    counts = np.histogram(values, edges - 0.5)[0]
    # Bins hold one rank more or less: shown as density relative to uniform.
    half = 2.576 * np.sqrt((1 - share) / (values.size * share))
    figure = style.new_figure(5.6, 3.2)
    axes = figure.subplots()
    places = edges / (num_draws + 1)
    pale = {"fill": True, "color": style.PALE, "alpha": 0.5, "label": "99 % of bins if uniform"}
    axes.stairs(1 + half, places, baseline=np.maximum(1 - half, 0), **pale)
    dark = {"color": style.LEARNED, "linewidth": 1.6, "label": "ranks"}
    axes.stairs(counts / (values.size * share), places, baseline=None, **dark)
    style.guide(axes, 1)
    axes.set(xlim=(0, 1), xlabel="rank of the truth / number of draws")
    axes.set(ylabel="frequency relative to uniform")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{values.size:,} ranks among {num_draws:,} draws")
    style.legend_below(figure, axes)
    return figure


@style.styled
def calibration_panel(report: Any) -> Figure:
    """Coverage over credibility level, and cumulative ranks less what uniform ones would have.

    Parameters
    ----------
    report : CalibrationReport
        From `calibration_report`.

    Returns
    -------
    Figure
        Left: coverage of central intervals with 3 standard errors, and TARP's expected coverage.
        Right: share of ranks up to each, less the uniform share, of every observable and of TARP,
        and the band that holds uniform ranks everywhere with 95 %. Hill then valley: draws too
        high; S-shapes: too wide or too narrow.

    Raises
    ------
    ValueError
        If no case is left to draw.
    """
    if report.cases_used == 0:
        raise ValueError(f"report must have a case to draw, got {report.lost:.0%} of paths lost")
    figure = style.new_figure(8.2, 3.9)
    left, right = figure.subplots(1, 2)
    fine = np.linspace(0, 1, 101, dtype=np.float32)
    style.share_band(left, fine, fine, report.cases_used)
    style.coverage_axes(left)
    tarp = expected_coverage(report.tarp_ranks, report.draws_used, fine)
    left.plot(fine, np.asarray(tarp), color=style.INK, linestyle=style.DASHES[1], label="TARP")
    look = {"fmt": "o", "markersize": 5, "color": style.LEARNED, "label": "central intervals"}
    left.errorbar(report.levels, report.coverage, yerr=3 * report.coverage_error, **look)
    left.set_ylabel("share of truths covered")
    style.legend(left, "upper left")
    _cumulative(right, report)
    style.legend_below(figure, right, columns=3)
    return figure


def _cumulative(axes: Axes, report: Any) -> None:
    """Cumulative shares of ranks, less the uniform ones, in their band."""
    draws = report.draws_used
    band = rank_band(report.cases_used, draws)
    low, high = band.low - band.expected, band.high - band.expected
    style.band(axes, band.expected, low, high, "95 % band")
    series = dict(zip(report.observables, report.sbc_ranks.T, strict=True))
    for index, (name, ranks) in enumerate((series | {"TARP": report.tarp_ranks}).items()):
        shares = np.bincount(ranks, minlength=draws + 1).cumsum()[:-1] / report.cases_used
        round_, cycle = divmod(index, len(style.SERIES))
        color = style.INK if name == "TARP" else style.SERIES[cycle]
        look = {"color": color, "linestyle": style.DASHES[1 if name == "TARP" else round_ % 6]}
        axes.plot(band.expected, shares - band.expected, linewidth=1.2, label=name, **look)
    style.guide(axes, 0)
    axes.set(xlim=(0, 1), xlabel="rank / draws", ylabel="share of ranks below, less uniform")
    axes.grid(True)
