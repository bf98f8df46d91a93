"""What was seen of an end state, or at several times: partial, noisy, and what led to it.

Particles, not approximations: the answer is exact for the score and the steps it is given, up to
the number of particles, and comes with the evidence of what was seen.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.checks import (
    check_holds,
    check_key,
    check_kind,
    check_positive,
    check_samples,
    check_shape,
    check_that,
    check_within,
    concrete,
)
from smdp_jax.scores.learned import check_evaluates, check_is_score
from smdp_jax.scores.looks import Looks
from smdp_jax.scores.reference import reference_of
from smdp_jax.scores.rounds import conditioned
from smdp_jax.scores.sensors import LinearObservation, Observation
from smdp_jax.scores.twist import LinearTwist
from smdp_jax.sde import SDE, Args, ScoreFn, State
from smdp_jax.solve.batches import Split, split_of
from smdp_jax.solve.conditioned import Conditioned, say_how_it_went
from smdp_jax.solve.conditioning import Conditioning
from smdp_jax.solve.tempering import Tempering
from smdp_jax.solve.time_grids import time_index
from smdp_jax.solve.transitions import transitions_of
from smdp_jax.trajectories import Trajectories


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
    are weighted by what was seen, and resampled (Del Moral, Doucet, Jasra 2006, "Sequential Monte
    Carlo samplers"). With a twist they are steered by what is still to come (Wu et al. 2023, arXiv
    2306.17775), as sensors that tell much ask for. Use ``jax.vmap`` over ``key`` or values; the
    evidence has no derivative (``certify`` has one).

    Parameters
    ----------
    sde : SDE
        The forward process.
    score : callable
        ``score(t, x, args)``, a score: a step correction is none.
    observations : sequence of LinearObservation or Observation
        What was seen, each at one of ``ts``.
    ts, num_particles, key
        Increasing times of the backward solve; particles, and randomness; each answer is exact as
        they grow.
    data, ends : Trajectories, pytree
        Simulated paths up to ``ts[-1]``, for end states and for the twist; draws of the end state
        in the place of theirs, leaves (draws, *state).
    twist : LinearTwist, "learn" or None
        What steers the particles. "learn": ``LinearTwist.of(data, observations)`` where there are
        sensors before the end, and data; where its particles descend from few, it is learned again
        from them, twice at most, as physics that is not linear asks for. None: sensors are seen
        from one step away only.
    solver : GaussianStep or Transitions, optional
        Gaussian laws of one step; default those of ``Euler()``, or ``Splitting()`` for flow maps.
    args, tempering
        Conditions; how the end state is tempered, a ``Tempering``.
    threshold, resample : float, bool
        Particles are resampled where their effective size falls below this share; return equally
        weighted samples.
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
    ValueError, TypeError
        For a step correction, an observation at no time of ``ts`` or of another shape, traced times
        or data, or if no particle is left.
    """
    num_particles, chunk_size = check_positive(
        optional="chunk_size", num_particles=num_particles, chunk_size=chunk_size
    )
    check_is_score(score, "condition")
    check_key(key)
    check_positive(least=2, num_particles=num_particles)  # to know a spread
    if tempering is not None:
        check_kind("tempering", tempering, "a Tempering(...)", "moves", "final_moves")
    known = twist is None or twist == "learn" or isinstance(twist, LinearTwist)
    check_that(known, "twist must be a LinearTwist, 'learn' or None", twist)
    check_within("(0, 1]", threshold=threshold)
    said = "ts, data and ends must be known before tracing (which key, values, covariances and args"
    check_that(concrete(ts, data, ends), f"{said} need not), got a traced array: close over them")
    split = _split(mesh, num_particles)
    with jax.ensure_compile_time_eval():  # known, also where values are traced
        draws = _ends(data, ends, ts)
        like, metric = jax.tree.map(lambda x: x[0], draws), reference_of(draws).spread
    check_evaluates(sde, score, ts, like, args)
    indices = _check_observations(observations, ts, like, args)
    placed = list(zip(indices, observations, strict=True))
    sensors = [(i, o) for i, o in placed if isinstance(o, LinearObservation)]
    learned = twist == "learn" and any(i < len(ts) - 1 for i, _ in sensors)
    if isinstance(twist, str):
        with jax.ensure_compile_time_eval():
            twist = LinearTwist.of(data, observations) if learned and data is not None else None
    looks = Looks.of(sensors, like)
    tables = looks.tables(twist, ts)
    steps = transitions_of(solver, sde, score, ts, like, args)
    rest = tuple((i, o.log_likelihood) for i, o in placed if isinstance(o, Observation))
    how = (tempering or Tempering(), threshold, chunk_size, split)
    plan = Conditioning(ts, steps, looks.sights(tables), rest, metric, *how)
    given = (plan, looks, tables, score, draws, key, args)
    plan, looks, tables, score, draws, key, args = given if split is None else split.known(given)
    found = conditioned(
        plan, looks, tables, score, draws, key, args, num_particles, resample, learned
    )
    say_how_it_went(found, plan.tempering)
    return found if split is None else split.returned(found)


def _split(mesh: Mesh | None, num_particles: Any) -> Split | None:
    split = split_of(mesh)
    if split is None or not num_particles % split.count:
        return split
    said = f"num_particles must be a multiple of the mesh's {split.count} devices"
    check_that(split.gathered, said, num_particles)
    return None


def _ends(data: Trajectories | None, ends: State | None, ts: Any) -> State:
    if ends is None:
        if data is None:
            raise ValueError("condition must have data=Trajectories or ends=draws, got neither")
        check_kind("data", data, "Trajectories(ts, xs)", "ts", "xs")
        data.check()
        index = time_index(data.ts, float(ts[-1]), "the data's ts (or give ends=draws)", "ts[-1]")
        ends = jax.tree.map(lambda x: x[:, index], data.xs)
    check_holds("ends", check_samples(ends, "ends"), 2, "draws")
    return jax.tree.map(jnp.asarray, ends)


def _check_observations(observations: Any, ts: Any, like: State, args: Args) -> list[int]:
    some = isinstance(observations, Sequence) and observations
    check_that(some, "observations must be a list of at least one", observations)
    for o in observations:
        if isinstance(o, Observation):
            found = jax.eval_shape(o.log_likelihood, like, args)
            check_shape("what log_likelihood returns", found, (), ", one number")
        elif not isinstance(o, LinearObservation):
            got = type(o).__name__
            raise TypeError(f"observations must be LinearObservation or Observation, got {got}")
    return [time_index(ts, o.time, "the solve's ts") for o in observations]
