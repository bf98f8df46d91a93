"""How particles fared on the way to a posterior: effective sizes, and the tempered end state."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smdp_jax.checks import check_kind, check_positive
from smdp_jax.evaluate.plots import _style as style
from smdp_jax.evaluate.plots._style import ArrayND


@style.styled
def particles(
    ts: ArrayND,
    ess: ArrayND,
    resampled: ArrayND,
    temperatures: ArrayND,
    acceptance: ArrayND,
    step_sizes: ArrayND,
    *,
    num_particles: int,
    log_evidence: float | None = None,
    log_evidence_error: float = 0.0,
    time_unit: str = "",
) -> Figure:
    """Draw the record that ``condition`` returns as ``info``.

    Good: the share of particles that count stays above a few per cent at all times, few stages of
    tempering were needed, and about half to nine tenths of the moves are accepted.

    Parameters
    ----------
    ts, ess, resampled : array
        Times and effective sizes there, shape (times,); whether particles were resampled on the way
        to each time but the last, shape (times - 1,).
    temperatures, acceptance, step_sizes : array
        Of the tempered end state, shape (stages,); NaN where no stage was needed.
    num_particles, log_evidence, log_evidence_error, time_unit
        Particles; log density of what was seen and its standard error, in nats (None: not shown);
        unit of the times, empty if dimensionless.

    Returns
    -------
    Figure
        Left: share of the particles that count, over time; right: acceptance and step sizes over
        the temperature of the end state.

    Raises
    ------
    ValueError
        If the shapes do not belong together, or ``num_particles`` is not positive.
    """
    check_positive(num_particles=num_particles)
    ts = style.array("ts", ts, 1)
    ess = style.array("ess", ess, 1, ts.shape)
    resampled = style.array("resampled", resampled, 1, (ts.size - 1,)) > 0
    temperatures = style.array("temperatures", temperatures, 1)
    given = {"acceptance": acceptance, "step size": step_sizes}
    stages = {name: style.array(name, v, 1, temperatures.shape) for name, v in given.items()}
    figure = style.new_figure(8.6, 3.2)
    left, right = figure.subplots(1, 2)
    _shares(left, ts, ess / num_particles, resampled)
    left.set_xlabel(style.label("time $t$", time_unit))
    if log_evidence is not None:
        error = f" ± {log_evidence_error:.2g}" if log_evidence_error else ""
        left.set_title(f"log evidence {log_evidence:.4g}{error} nats")
    kept = np.isfinite(temperatures)
    for i, (name, values) in enumerate(stages.items()):
        right.plot(temperatures[kept], values[kept], marker=".", label=name, **style.series(i))
    right.set_xscale("log")
    right.set_ylim(0, 1.05)
    right.set(title=f"End state: {int(kept.sum())} stages", xlabel="share of the log-likelihood")
    for axes in (left, right):
        axes.grid(True)
        style.legend(axes)
    return figure


def evidence_panel(past: Any, *, time_unit: str = "") -> Figure:
    """Draw how many particles of a conditioned posterior count, and its evidence.

    Parameters
    ----------
    past, time_unit : Conditioned, str
        From ``condition``; unit of the times, empty if dimensionless.

    Returns
    -------
    Figure
        As of `particles`; another posterior, which has no evidence, is refused with a TypeError.

    Raises
    ------
    TypeError
        If it is another posterior, which has no evidence.
    """
    check_kind("past", past, "what condition returns", "log_evidence", "info")
    names = ("ts", "ess", "resampled", "temperatures", "acceptance", "step_sizes")
    given: Any = [getattr(past.info, name) for name in names]
    told = {n: float(getattr(past, n)) for n in ("log_evidence", "log_evidence_error")}
    return particles(*given, num_particles=len(past.log_weights), time_unit=time_unit, **told)


def _shares(axes: Axes, ts: np.ndarray, share: np.ndarray, resampled: np.ndarray) -> None:
    """Over time, from the last back to the first."""
    axes.plot(ts, share, color=style.LEARNED, label="count")
    where = np.flatnonzero(resampled)
    axes.plot(ts[where], share[where], "o", color=style.FLOW, markersize=4, label="resampled")
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("share of the particles")
