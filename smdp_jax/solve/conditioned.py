"""What conditioning on observations returns, and what is to be said of it."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from smdp_jax.checks import check_finite, check_that, concrete, warn
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
    ts, ess : array (times,)
        Times of the solve, and the particles' effective size at each (before resampling).
    resampled : bool array (times - 1,)
        Whether they were resampled on the way to that time.
    temperatures, acceptance, step_sizes : array (256,)
        Of the tempered end state, by stage; NaN where no stage was needed. Sizes are shares of the
        width of the draws.
    foreign, independent, rounds : scalar
        Share of the end state's coordinates in which ``E[score x] = -1`` fails: the score is not
        that of the draws. Independent draws that the particles at ``ts[0]`` are worth. How often
        the twist was learned: once from the data, then from the particles themselves.
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
    samples, log_weights
        Leaves (particles, *state), and logs of weights of sum 1, (particles,): all the same for
        resampled particles.
    log_evidence, log_evidence_error : scalar
        Log density of what was seen, and its error, in nats: from the spread of the weights and of
        what became of each draw, and, where few particles count, how far it is too low if the
        weights are log-normal.
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
    if not concrete(found):
        return
    info, error = found.info, float(found.log_evidence_error)
    count, sizes = len(info.finite), np.nan_to_num(np.asarray(info.ess))
    reached = np.nan_to_num(np.asarray(info.temperatures)).max()
    said = f"the tempered end state must reach temperature 1, got {reached:g}: a log_likelihood"
    remedy = "(more particles, gentler tempering, or a larger covariance)"
    check_that(reached >= 1, f"{said} that is not finite, or that no draw is near to {remedy}")
    worst = int(sizes.argmin())
    least, where = sizes[worst], f"at t={float(info.ts[worst]):g}"
    if least < 1 - 1e-3:
        check_finite(found.samples, "samples")
        said = "the effective size of the particles must stay above 1"
        raise ValueError(f"{said}, got {least:g} {where}: {_REMEDIES}")
    worth, often = float(info.independent), int(np.sum(np.asarray(info.resampled)))
    if least < min(10, count / 2):
        said = f"only {least:.1f} of {count} particles count {where}"
        warn(f"{said}, so spread and evidence mean little: {_REMEDIES}")
    elif worth < min(20, count / 4) or error > 0.9:
        said = f"the {count} particles at t={float(info.ts[0]):g} are worth {worth:.1f}"
        why = f"they were resampled {often} times on the way and descend from few, or are far off"
        known = f"the log evidence is known to {error:.2g} nats"
        warn(f"{said} independent draws, and {known}: {why}: {_REMEDIES}")
    step = np.asarray(info.step_sizes)[np.isfinite(info.step_sizes)][-1]
    if (1 - step) ** (tempering.moves + tempering.final_moves) > 0.5:
        said = f"moves of the end state are short (step size {step:.2g} of 1), it stays near its"
        warn(f"{said} draws: more moves (Tempering), more draws, or a larger covariance")
    if (share := float(info.foreign)) > 0.1:
        said = f"the score at t={float(info.ts[-1]):g} is not that of the end states: E[score x]"
        got = f"must be -1 in each coordinate, got others in {share:.0%} of them"
        warn(f"{said} {got}: train it longer or on more paths, or check its args and units")
