"""Figures of calibration: coverage over level, and histograms of ranks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smdp_jax.evaluate.calibration import expected_coverage, rank_band
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
        raise ValueError("coverage must hold at least one array, got an empty mapping")
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
        raise ValueError(f"ranks must lie in 0 ... {num_draws} and not be empty, got {values}")
    bins = min(num_draws + 1, 20) if bins is None else bins
    if not 1 <= bins <= num_draws + 1:
        raise ValueError(f"bins must lie between 1 and num_draws + 1 = {num_draws + 1}, got {bins}")
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
    cases, draws = report.cases_used, report.draws_used
    if cases == 0:
        raise ValueError(f"report must have a case to draw, got {report.lost:.0%} of paths lost")
    figure = style.new_figure(8.2, 3.9)
    left, right = figure.subplots(1, 2)
    fine = np.linspace(0, 1, 101, dtype=np.float32)
    half = 1.96 * np.sqrt(fine * (1 - fine) / cases)
    left.fill_between(fine, fine - half, fine + half, color=style.PALE, alpha=0.5, linewidth=0)
    left.plot([0, 1], [0, 1], color=style.EXACT, linewidth=1, linestyle=":", label="calibrated")
    tarp = expected_coverage(report.tarp_ranks, draws, fine)
    left.plot(fine, np.asarray(tarp), color=style.INK, linestyle=style.DASHES[1], label="TARP")
    left.errorbar(
        report.levels,
        report.coverage,
        yerr=3 * report.coverage_error,
        fmt="o",
        markersize=5,
        color=style.LEARNED,
        label="central intervals",
    )
    left.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    left.set_xlabel("credibility level")
    left.set_ylabel("share of truths covered")
    style.legend(left, "upper left")
    _cumulative(right, report)
    for axes in (left, right):
        style.grid_lines(axes)
    style.legend_below(figure, right, columns=3)
    return figure


def _cumulative(axes: Axes, report: Any) -> None:
    """Cumulative shares of ranks, less the uniform ones, in their band."""
    draws = report.draws_used
    band = rank_band(report.cases_used, draws)
    axes.fill_between(
        band.expected,
        band.low - band.expected,
        band.high - band.expected,
        color=style.PALE,
        alpha=0.5,
        linewidth=0,
        label="95 % band",
    )
    series = dict(zip(report.observables, report.sbc_ranks.T, strict=True))
    for index, (name, ranks) in enumerate((series | {"TARP": report.tarp_ranks}).items()):
        shares = np.bincount(ranks, minlength=draws + 1).cumsum()[:-1] / report.cases_used
        cycle = index % len(style.SERIES)
        color = style.INK if name == "TARP" else style.SERIES[cycle]
        dash = style.DASHES[1 if name == "TARP" else index // len(style.SERIES) % 6]
        axes.plot(
            band.expected,
            shares - band.expected,
            color=color,
            linestyle=dash,
            linewidth=1.2,
            label=name,
        )
    axes.axhline(0, color=style.EXACT, linewidth=1, linestyle=":")
    axes.set_xlim(0, 1)
    axes.set_xlabel("rank / draws")
    axes.set_ylabel("share of ranks below, less uniform")
