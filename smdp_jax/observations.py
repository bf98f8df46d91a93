"""What was seen of an end state, or at several times: partial, noisy, and what led to it.

Particles, not approximations: the answer is exact for the score and the steps it is given, up to
the number of particles, and comes with the evidence of what was seen.
"""

import math
import reprlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.checks import (
    check_finite,
    check_key,
    check_kind,
    check_positive,
    check_samples,
    concrete,
)
from smdp_jax.scores.learned import check_evaluates, check_is_score
from smdp_jax.scores.reference import reference_of
from smdp_jax.scores.sensors import LinearObservation, Observation
from smdp_jax.scores.twist import LinearTwist, sights_of, time_index
from smdp_jax.sde import SDE, Args, ScoreFn, State
from smdp_jax.solve.batches import split_of
from smdp_jax.solve.conditioning import Conditioning
from smdp_jax.solve.particles import Weighted, choose, stated_error, systematic
from smdp_jax.solve.tempering import Tempering
from smdp_jax.solve.transitions import transitions_of
from smdp_jax.trajectories import Trajectories

__all__ = ["ConditionInfo", "Conditioned", "condition"]


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
        Its error in nats: from the spread of the weights, and, where few particles count, how far
        it is too low if the weights are log-normal.
    info : ConditionInfo
        Effective sizes, temperatures, acceptance.
    """

    samples: Any
    log_weights: Any
    log_evidence: Any
    log_evidence_error: Any
    info: Any


def condition(
    sde: SDE,
    score: ScoreFn,
    observations: Sequence[LinearObservation | Observation],
    ts: Float[Array, "times"],
    *,
    num_particles: int,
    key: PRNGKeyArray,
    data: Trajectories | None = None,
    ends: State | None = None,
    twist: LinearTwist | Literal["learn"] | None = "learn",
    solver: Any = None,
    args: Args = None,
    tempering: Tempering | None = None,
    threshold: float = 0.5,
    resample: bool = True,
    chunk_size: int | None = None,
    mesh: Mesh | None = None,
) -> Conditioned:
    """Sample what led to sensors' readings, at one time or at several.

    The end state is drawn from the simulator's own end states, tempered from what they are to what
    the observations make of them, and carried back by the reverse-time SDE; on the way particles
    are weighted by what was seen, and resampled. With a twist they are steered by what is still to
    come, which is needed where sensors tell much. Use ``jax.vmap`` over ``key`` or values; the
    evidence has no derivative (``certify`` has one).

    Parameters
    ----------
    sde : SDE
        The forward process.
    score : callable
        ``score(t, x, args)``, a score: a step correction is none.
    observations : sequence of LinearObservation or Observation
        What was seen, each at one of ``ts``.
    ts : array (times,)
        Increasing times of the backward solve.
    num_particles : int
        Particles; each answer is exact as they grow.
    key : PRNG key
        Randomness.
    data : Trajectories, optional
        Simulated paths up to ``ts[-1]``: for end states, and for the twist.
    ends : pytree, optional
        Draws of the end state, leaves (draws, *state), in place of those of ``data``.
    twist : LinearTwist, "learn" or None
        What steers the particles. "learn": ``LinearTwist.of(data, observations)`` where there are
        sensors before the end, and data. None: sensors are seen from one step away only.
    solver : GaussianStep or Transitions, optional
        Gaussian laws of one step; default those of ``Euler()``, or ``Splitting()`` for flow maps.
    args : pytree, optional
        Conditions.
    tempering : Tempering, optional
        How the end state is tempered.
    threshold : float
        Particles are resampled where their effective size falls below this share.
    resample : bool
        Return equally weighted samples.
    chunk_size : int, optional
        Particles stepped at once, to bound memory; default all.
    mesh : jax.sharding.Mesh, optional
        Devices that share the particles along its axis ``data``, of which ``num_particles`` must
        be a multiple; they move where they are resampled, and come back split.

    Returns
    -------
    Conditioned
        Samples at ``ts[0]``, the evidence with its error, and diagnostics.

    Raises
    ------
    ValueError
        For a step correction, an observation at no time of ``ts`` or of another shape, traced times
        or data, or if no particle is left.
    TypeError
        If the score is no function.

    References
    ----------
    Del Moral, Doucet, Jasra (2006), "Sequential Monte Carlo samplers"; Wu et al. (2023), arXiv
    2306.17775, for twisted diffusion.
    """
    num_particles, chunk_size = check_positive(num_particles=num_particles, chunk_size=chunk_size)
    check_key(key)
    check_is_score(score, "condition")
    if num_particles is not None and num_particles < 2:
        raise ValueError(f"num_particles must be at least 2, to know a spread, got {num_particles}")
    if not concrete(ts, data, ends):
        raise ValueError(
            "ts, data and ends must be known before tracing, got a traced array: close over them, "
            "and trace key, values, covariances and args"
        )
    if tempering is not None:
        check_kind("tempering", tempering, "a Tempering(...)", "moves", "final_moves")
    split = split_of(mesh)
    if split is not None and num_particles is not None and num_particles % split.count:
        if not split.gathered:
            raise ValueError(
                f"num_particles must be a multiple of the mesh's {split.count} devices, got "
                f"{num_particles}"
            )
        split = None
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], got {threshold}")
    with jax.ensure_compile_time_eval():  # known, also where values are traced
        draws = _ends(data, ends, ts)
        like, metric = jax.tree.map(lambda x: x[0], draws), reference_of(draws).spread
    check_evaluates(sde, score, ts, like, args)
    indices = _check_observations(observations, ts, like, args)
    placed = list(zip(indices, observations, strict=True))
    sensors = [(i, o) for i, o in placed if isinstance(o, LinearObservation)]
    if isinstance(twist, str):
        if twist != "learn":
            raise ValueError(f"twist must be a LinearTwist, 'learn' or None, got {twist!r}")
        early = any(i < len(ts) - 1 for i, _ in sensors)
        with jax.ensure_compile_time_eval():
            twist = LinearTwist.of(data, observations) if early and data is not None else None
    plan = Conditioning(
        ts,
        transitions_of(solver, sde, score, ts, like, args),
        sights_of(sensors, twist, ts, like),
        tuple((i, o.log_likelihood) for i, o in placed if isinstance(o, Observation)),
        metric,
        Tempering() if tempering is None else tempering,
        threshold,
        chunk_size,
        split,
    )
    if split is not None:
        plan, score, draws, key, args = split.known((plan, score, draws, key, args))
    found = _condition(plan, score, draws, key, args, num_particles, resample)
    _check_particles(found)
    _check_moves(found.info, plan.tempering)
    _check_foreign(found.info)
    return found if split is None else split.returned(found)


@eqx.filter_jit
def _condition(
    plan: Conditioning,
    score: ScoreFn,
    draws: State,
    key: PRNGKeyArray,
    args: Args,
    count: int,
    resample: bool,
) -> Conditioned:
    k_pick, k_temper, k_smooth, k_last = jax.random.split(key, 4)
    _, unravel = ravel_pytree(jax.tree.map(lambda x: x[0], draws))
    start = jax.vmap(lambda x: ravel_pytree(x)[0])(choose(draws, _picks(k_pick, draws, count)))
    start = start if plan.split is None else plan.split.pin(start)
    end = plan.temper(k_temper, score, start, unravel, args)
    carried = plan.carry(k_smooth, score, end.x, unravel, args)
    x, log_weights = carried.x, jax.nn.log_softmax(carried.log_weights)
    if resample:
        x = x[systematic(k_last, log_weights)]
        log_weights = jnp.full_like(log_weights, -math.log(count))
    if plan.split is not None:
        x, log_weights = plan.split.pin((x, log_weights))
    full = jnp.full((), count, carried.ess.dtype)
    info = ConditionInfo(
        plan.ts,
        jnp.concatenate([carried.ess, full[None]]),
        carried.resampled,
        end.temperatures,
        end.acceptance,
        end.step_sizes,
        jnp.asarray(end.foreign),
        jnp.isfinite(x).all(axis=1),
    )
    return Conditioned(
        jax.vmap(unravel)(x),
        log_weights,
        end.log_evidence + carried.log_evidence,
        stated_error(end.doubt + carried.doubt),
        info,
    )


def _picks(key: PRNGKeyArray, draws: State, count: int) -> Array:
    """Every draw as often as every other, in an order of its own where too few or too many."""
    number = jax.tree.leaves(draws)[0].shape[0]
    keys = [jax.random.fold_in(key, i) for i in range(-(-count // number))]
    return jnp.concatenate([jax.random.permutation(k, number) for k in keys])[:count]


def _ends(data: Trajectories | None, ends: State | None, ts: Any) -> State:
    if ends is None:
        if data is None:
            raise ValueError("condition must have data=Trajectories or ends=draws, got neither")
        check_kind("data", data, "Trajectories(ts, xs)", "ts", "xs")
        data.check()
        if not np.isclose(data.ts, float(ts[-1]), rtol=0, atol=1e-4 * np.diff(data.ts).min()).any():
            raise ValueError(
                f"data must hold ts[-1]={float(ts[-1]):g}, got times from {float(data.ts[0]):g} to "
                f"{float(data.ts[-1]):g}: store it, or give draws of the end state, ends="
            )
        index = time_index(data.ts, float(ts[-1]), "the data's ts")
        ends = jax.tree.map(lambda x: x[:, index], data.xs)
    number = check_samples(ends, "ends")
    if number < 2:
        raise ValueError(f"ends must hold at least 2 draws, got {number}")
    return jax.tree.map(jnp.asarray, ends)


def _check_observations(observations: Any, ts: Any, like: State, args: Args) -> list[int]:
    if not isinstance(observations, Sequence) or not observations:
        raise ValueError(
            f"observations must be a list of at least one, got {reprlib.repr(observations)}"
        )
    for o in observations:
        if isinstance(o, Observation):
            shape = jax.eval_shape(o.log_likelihood, like, args)
            if jnp.shape(shape) != ():
                raise ValueError(
                    f"log_likelihood must return one number, got shape {jnp.shape(shape)}"
                )
        elif not isinstance(o, LinearObservation):
            raise TypeError(
                f"observations must be LinearObservation or Observation, got {type(o).__name__}"
            )
    return [time_index(ts, o.time, "the solve's ts") for o in observations]


def _check_particles(found: Conditioned) -> None:
    if not concrete(found):
        return
    sizes = np.nan_to_num(np.asarray(found.info.ess))
    if np.isnan(found.info.temperatures).all() or not np.nanmax(found.info.temperatures) >= 1:
        raise ValueError(
            "the tempered end state must reach temperature 1, got "
            f"{np.nanmax(found.info.temperatures):g} after {len(found.info.temperatures)} stages: "
            "observations that no end state is near to (more particles, gentler tempering, or a "
            "larger covariance), or a log_likelihood that is not finite"
        )
    worst = int(sizes.argmin())
    remedies = (
        "more particles, tempering, a twist learned from data, more steps, or a larger covariance"
    )
    where = f"at t={float(found.info.ts[worst]):g}"
    if sizes[worst] < 1 - 1e-3:
        check_finite(found.samples, "samples")
        raise ValueError(
            f"the effective size of the particles must stay above 1, got {sizes[worst]:g} {where}: "
            f"{remedies}"
        )
    if sizes[worst] < min(10, len(found.log_weights) / 2):
        warnings.warn(
            f"only {sizes[worst]:.1f} of {len(found.log_weights)} particles count {where}, so "
            f"spread and evidence mean little: {remedies}",
            stacklevel=3,
        )


def _check_moves(info: ConditionInfo, tempering: Tempering) -> None:
    """Warn where the end states stay near the draws that they began as."""
    if not concrete(info):
        return
    sizes = np.asarray(info.step_sizes)
    last = sizes[np.isfinite(sizes)][-1]
    left = (1 - last) ** (tempering.moves + tempering.final_moves)
    if left > 0.5:
        warnings.warn(
            f"moves of the end state are short (step size {last:.2g} of 1), so that it stays near "
            "the draws that it began as: take more moves (Tempering), more draws and particles, or "
            "a larger covariance; a thin law, or a score that is not one, asks for short moves",
            stacklevel=3,
        )


def _check_foreign(info: ConditionInfo) -> None:
    """Warn where the score at the end is not that of the draws."""
    if concrete(info) and (share := float(info.foreign)) > 0.1:
        warnings.warn(
            f"the score at t={float(info.ts[-1]):g} is not that of the end states: E[score x] must "
            f"be -1 in each coordinate, got others in {share:.0%} of them, so that samples and "
            "evidence are wrong: train it longer or on more paths, or check its args and units",
            stacklevel=3,
        )
