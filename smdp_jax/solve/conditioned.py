"""What conditioning on observations returns, and what is to be said of it."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from smdp_jax.checks import check_finite, concrete, warn
from smdp_jax.solve.particles import Weighted
from smdp_jax.solve.tempering import Tempering

_REMEDIES = (
    "more particles, tempering, a twist learned from data, more steps, or a larger covariance"
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ConditionInfo:
    """How the particles fared.

    Parameters
    ----------
    ts : array (times,)
        Times of the solve.
    ess : array (times,)
        Effective size of the particles at each of ``ts`` (before resampling).
    resampled : bool array (times - 1,)
        Whether they were resampled on the way to that time.
    temperatures, acceptance, step_sizes : array (256,)
        Of the tempered end state, by stage; NaN where no stage was needed. Sizes are shares of the
        width of the draws.
    foreign : scalar
        Share of the end state's coordinates in which ``E[score x] = -1`` fails: the score is not
        that of the draws.
    independent : scalar
        Independent draws that the particles at ``ts[0]`` are worth: relatives count as one, as far
        as they are alike.
    rounds : scalar
        How often the twist was learned: once from the data, then from the particles themselves.
    finite : bool array (particles,)
        Whether each particle ended finite.
    """

    ts: Any
    ess: Any
    resampled: Any
    temperatures: Any
    acceptance: Any
    step_sizes: Any
    foreign: Any
    independent: Any
    rounds: Any
    finite: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Conditioned(Weighted):
    """Posterior of the state at ``ts[0]``, given all that was seen.

    Parameters
    ----------
    samples : pytree
        Leaves (particles, *state).
    log_weights : array (particles,)
        Logs of weights of sum 1; all the same for resampled particles.
    log_evidence : scalar
        Log density of what was seen, in nats.
    log_evidence_error : scalar
        Its error in nats: from the spread of the weights and of what became of each draw, and,
        where few particles count, how far it is too low if the weights are log-normal.
    info : ConditionInfo
        Effective sizes, temperatures, acceptance.
    """

    samples: Any
    log_weights: Any
    log_evidence: Any
    log_evidence_error: Any
    info: Any


def say_how_it_went(found: Conditioned, tempering: Tempering) -> None:
    """Refuse what has no particles left; warn where few of them count, or moves were short."""
    if concrete(found):
        few = _check_particles(found)
        if not few:
            _check_relatives(found)
        _check_moves(found.info, tempering)
        _check_foreign(found.info)


def _check_particles(found: Conditioned) -> bool:
    """Whether few count at some time."""
    sizes = np.nan_to_num(np.asarray(found.info.ess))
    if np.isnan(found.info.temperatures).all() or not np.nanmax(found.info.temperatures) >= 1:
        raise ValueError(
            "the tempered end state must reach temperature 1, got "
            f"{np.nanmax(found.info.temperatures):g} after {len(found.info.temperatures)} stages: "
            "observations that no end state is near to (more particles, gentler tempering, or a "
            "larger covariance), or a log_likelihood that is not finite"
        )
    worst = int(sizes.argmin())
    where = f"at t={float(found.info.ts[worst]):g}"
    if sizes[worst] < 1 - 1e-3:
        check_finite(found.samples, "samples")
        raise ValueError(
            f"the effective size of the particles must stay above 1, got {sizes[worst]:g} {where}: "
            f"{_REMEDIES}"
        )
    few = bool(sizes[worst] < min(10, len(found.log_weights) / 2))
    if few:
        warn(
            f"only {sizes[worst]:.1f} of {len(found.log_weights)} particles count {where}, so "
            f"spread and evidence mean little: {_REMEDIES}",
        )
    return few


def _check_relatives(found: Conditioned) -> None:
    """Warn where the particles at the first time descend from few."""
    info, error = found.info, float(found.log_evidence_error)
    count, independent = len(info.finite), float(info.independent)
    times = int(np.sum(np.asarray(info.resampled)))
    if independent < min(20, count / 4) or error > 0.9:
        warn(
            f"the {count} particles at t={float(info.ts[0]):g} are worth {independent:.1f} "
            f"independent draws, and the log evidence is known to {error:.2g} nats: they were "
            f"resampled {times} times on the way and descend from few, so spread is too narrow, or "
            f"all are far from the posterior: {_REMEDIES}",
        )


def _check_moves(info: ConditionInfo, tempering: Tempering) -> None:
    """Warn where the end states stay near the draws that they began as."""
    sizes = np.asarray(info.step_sizes)
    last = sizes[np.isfinite(sizes)][-1]
    left = (1 - last) ** (tempering.moves + tempering.final_moves)
    if left > 0.5:
        warn(
            f"moves of the end state are short (step size {last:.2g} of 1), so that it stays near "
            "the draws that it began as: take more moves (Tempering), more draws and particles, or "
            "a larger covariance; a thin law, or a score that is not one, asks for short moves",
        )


def _check_foreign(info: ConditionInfo) -> None:
    """Warn where the score at the end is not that of the draws."""
    if (share := float(info.foreign)) > 0.1:
        warn(
            f"the score at t={float(info.ts[-1]):g} is not that of the end states: E[score x] must "
            f"be -1 in each coordinate, got others in {share:.0%} of them, so that samples and "
            "evidence are wrong: train it longer or on more paths, or check its args and units",
        )
