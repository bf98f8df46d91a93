"""What was seen of an end state, or at several times: partial, noisy, and what led to it.

Particles, not approximations: the answer is exact for the score and the steps it is given, up to
the number of particles, and comes with the evidence of what was seen.
"""

import math
import reprlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.checks import (
    check_finite,
    check_key,
    check_kind,
    check_like,
    check_positive,
    check_process,
    check_samples,
    check_time_grid,
    concrete,
)
from smdp_jax.scores.learned import check_is_score
from smdp_jax.scores.reference import reference_of
from smdp_jax.scores.twist import LinearTwist, time_index
from smdp_jax.sde import SDE, Args, ScoreFn, State
from smdp_jax.solve.particles import choose, over_particles, systematic, weighted_mean
from smdp_jax.solve.smoothing import Sight, smooth
from smdp_jax.solve.tempering import Metric, Target, Tempering, temper
from smdp_jax.solve.transitions import Spread, transitions_of
from smdp_jax.trajectories import Trajectories

__all__ = ["ConditionInfo", "Conditioned", "LinearObservation", "Observation", "condition"]


@dataclass(frozen=True, eq=False)
class Observation:
    """Anything that was seen of the state at one time.

    Parameters
    ----------
    time : float
        When; a time of the solve's ``ts``.
    log_likelihood : callable
        ``log_likelihood(x, args)``, log density of what was seen given one state there, in nats;
        differentiable at the last time, where particles follow its gradient.

    Raises
    ------
    TypeError
        If ``log_likelihood`` is no function.
    """

    time: float
    log_likelihood: Callable[[Any, Any], Any]

    def __post_init__(self) -> None:
        if not callable(self.log_likelihood):
            raise TypeError(
                f"Observation.log_likelihood must be a function (x, args), got "
                f"{reprlib.repr(self.log_likelihood)}"
            )


@dataclass(frozen=True, eq=False)
class LinearObservation:
    """Sensors: ``value = operator(x) + noise`` at one time, with Gaussian noise.

    Parameters
    ----------
    time : float
        When; a time of the solve's ``ts``.
    operator : callable, index, mask or matrix
        A linear function of one state (its matrix is found by ``jax.linear_transpose``), an index
        such as ``np.s_[::4, ::4]``, a boolean array (or tree) like the state, or a matrix
        (sensors, entries) acting on all entries of the state in the order of its leaves.
    value : array
        What was seen, in the units of the state, with the shape of ``operator(x)``.
    covariance : float or array
        Of the noise, in squared units: a number, one per sensor, or a matrix (sensors, sensors).
    seen : boolean array, optional
        Like ``value``: False leaves out a broken sensor, whose value may then be NaN.

    Raises
    ------
    ValueError
        If the covariance is not positive, or a value that is not left out is not finite.
    """

    time: float
    operator: Any
    value: Any
    covariance: Any
    seen: Any = None

    def __post_init__(self) -> None:
        value = jnp.asarray(self.value)
        if self.seen is not None and np.shape(self.seen) != value.shape:
            raise ValueError(
                f"LinearObservation.seen must have the shape of value {value.shape}, got "
                f"{np.shape(self.seen)}"
            )
        kept = self.kept
        if concrete(value):
            wrong = np.flatnonzero(~np.isfinite(np.asarray(value)).reshape(-1) & kept)
            if wrong.size:
                raise ValueError(
                    "LinearObservation.value must be finite, got "
                    f"{np.asarray(value).reshape(-1)[wrong[0]]} at sensor {wrong[0]}: leave broken "
                    "sensors out by seen="
                )
        _check_covariance(self.covariance, kept)

    @property
    def kept(self) -> np.ndarray:
        """Which sensors count, flat.

        Returns
        -------
        bool array, shape (sensors,)
            All, without ``seen``.
        """
        if self.seen is None:
            return np.ones(np.size(self.value), bool)
        return np.asarray(self.seen, bool).reshape(-1)

    def apply(self, x: State) -> Any:
        """Look at one state.

        Parameters
        ----------
        x : pytree
            State, unbatched.

        Returns
        -------
        array
            What the sensors would show without noise.

        Raises
        ------
        ValueError
            If a mask, matrix or index does not fit the state.
        """
        operator = self.operator
        if callable(operator):
            return operator(x)
        leaves = jax.tree.leaves(operator)
        if all(np.asarray(o).dtype == bool and np.ndim(o) for o in leaves):
            if jax.tree.map(np.shape, operator) != jax.tree.map(np.shape, x):
                raise ValueError(
                    f"a mask must be like the state {jax.tree.map(np.shape, x)}, got "
                    f"{jax.tree.map(np.shape, operator)}"
                )
            picked = jax.tree.map(lambda o, x: x[np.nonzero(np.asarray(o))], operator, x)
            return jnp.concatenate(jax.tree.leaves(picked))
        if np.ndim(operator) == 2 and isinstance(operator, (np.ndarray, jax.Array)):
            flat, _ = ravel_pytree(x)
            if operator.shape[1] != flat.size:
                raise ValueError(
                    f"a matrix as operator must have {flat.size} columns, one per entry of the "
                    f"state, got shape {operator.shape}"
                )
            return jnp.asarray(operator, flat.dtype) @ flat
        if not isinstance(x, (jax.Array, np.ndarray)):
            raise ValueError(
                f"operator must be a function for a state of several leaves, got {operator!r}"
            )
        return x[operator]

    def matrix(self, like: State) -> Array:
        """Rows of the operator, of the sensors that count.

        Parameters
        ----------
        like : pytree
            A state, for its structure.

        Returns
        -------
        array, shape (sensors, entries)
            In the order of the leaves' entries.

        Raises
        ------
        ValueError
            If the operator is not linear, or its shape is not that of ``value``.
        """
        flat, unravel = ravel_pytree(jax.tree.map(jnp.zeros_like, like))
        look = lambda v: jnp.asarray(self.apply(unravel(v)))
        shape = jax.eval_shape(look, flat)
        if shape.shape != np.shape(self.value):
            raise ValueError(
                f"operator must return the shape of value {np.shape(self.value)}, got {shape.shape}"
            )
        # Linear where its derivative is; a function that is not has no transpose.
        probe = jax.random.normal(jax.random.key(0), flat.shape, flat.dtype)
        value, pull = jax.vjp(look, probe)
        basis = jnp.eye(value.size, dtype=value.dtype)[np.flatnonzero(self.kept)]
        rows = jax.vmap(lambda e: pull(e.reshape(value.shape))[0])(basis)
        shown = look(probe).reshape(-1)[np.flatnonzero(self.kept)]
        size = jnp.abs(rows) @ jnp.abs(probe)
        if concrete(rows) and bool(jnp.any(jnp.abs(rows @ probe - shown) > 1e-3 * size + 1e-6)):
            raise ValueError(
                "operator must be linear, without an offset, got one that is not: use "
                "Observation(time, log_likelihood)"
            )
        return rows

    def noise(self, dtype: Any) -> Array:
        """Covariance of the sensors that count.

        Parameters
        ----------
        dtype : dtype
            Of the result.

        Returns
        -------
        array, shape (sensors, sensors)
            Positive definite.
        """
        pick, full = np.flatnonzero(self.kept), jnp.asarray(self.covariance, dtype)
        if full.ndim == 2 and full.shape[0] == self.kept.size:
            return full[np.ix_(pick, pick)]
        diagonal = jnp.broadcast_to(full.reshape(-1) if full.ndim else full, (self.kept.size,))
        return jnp.diag(diagonal[pick])

    def read(self, dtype: Any) -> Array:
        """Values of the sensors that count.

        Parameters
        ----------
        dtype : dtype
            Of the result.

        Returns
        -------
        array, shape (sensors,)
            Flat.
        """
        return jnp.asarray(self.value, dtype).reshape(-1)[np.flatnonzero(self.kept)]


def _check_covariance(covariance: Any, kept: np.ndarray) -> None:
    shape = np.shape(covariance)
    size = kept.size
    if shape not in ((), (size,), (size, size)) and math.prod(shape) != size:
        raise ValueError(
            f"covariance must be a number, one per sensor ({size}), or a matrix of shape "
            f"{(size, size)}, got shape {shape}"
        )
    if not concrete(covariance):
        return
    values = np.asarray(covariance, np.float64)
    if len(shape) == 2 and shape[0] == size and shape[1] == size:
        symmetric = np.allclose(values, values.T, atol=1e-6 * np.abs(values).max())
        least = np.linalg.eigvalsh(values).min() if np.isfinite(values).all() else np.nan
        if not (symmetric and least > 0):
            raise ValueError(
                "covariance must be symmetric and positive definite, got least eigenvalue "
                f"{least:g}"
            )
    elif not (values > 0).all() or not np.isfinite(values).all():
        raise ValueError(f"covariance must be positive and finite, got {values.min():g}")


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
        Of the tempered end state, by stage; NaN where no stage was needed.
    finite : bool array (particles,)
        Whether each particle ended finite.
    """

    ts: Any
    ess: Any
    resampled: Any
    temperatures: Any
    acceptance: Any
    step_sizes: Any
    finite: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Conditioned:
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
        Its standard error from the spread of the weights, in nats.
    info : ConditionInfo
        Effective sizes, temperatures, acceptance.
    """

    samples: Any
    log_weights: Any
    log_evidence: Any
    log_evidence_error: Any
    info: Any

    def mean(self, function: Callable[[Any], Any] = lambda x: x) -> Any:
        """Posterior expectation of a function of one state.

        Parameters
        ----------
        function : callable
            ``function(x)`` of one state, a tree of floating point arrays; default the state.

        Returns
        -------
        pytree
            Weighted mean.
        """
        return weighted_mean(self.log_weights, self.samples, function)


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
) -> Conditioned:
    """Sample what led to sensors' readings, at one time or at several.

    The end state is drawn from the simulator's own end states, tempered from what they are to what
    the observations make of them, and carried back by the reverse-time SDE; on the way particles
    are weighted by what was seen, and resampled. With a twist they are steered by what is still to
    come, which is needed where sensors tell much.

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

    Returns
    -------
    Conditioned
        Samples at ``ts[0]``, the evidence with its error, and diagnostics.

    Raises
    ------
    ValueError
        For a step correction, an observation at no time of ``ts`` or of another shape, or if no
        particle is left.
    TypeError
        If the score is no function.

    References
    ----------
    Del Moral, Doucet, Jasra (2006), "Sequential Monte Carlo samplers"; Wu et al. (2023), arXiv
    2306.17775, for twisted diffusion.
    """
    num_particles, chunk_size = check_positive(num_particles=num_particles, chunk_size=chunk_size)
    check_key(key)
    check_time_grid(ts, sde)
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], got {threshold}")
    draws = _ends(data, ends, ts)
    like = jax.tree.map(lambda x: x[0], draws)
    _check(sde, score, like, ts, args)
    indices = _check_observations(observations, ts, like, args)
    placed = list(zip(indices, observations, strict=True))
    sensors = [(i, o) for i, o in placed if isinstance(o, LinearObservation)]
    if isinstance(twist, str):
        if twist != "learn":
            raise ValueError(f"twist must be a LinearTwist, 'learn' or None, got {twist!r}")
        early = any(i < len(ts) - 1 for i, _ in sensors)
        twist = LinearTwist.of(data, observations) if early and data is not None else None
    plan = _Plan(
        sde,
        ts,
        transitions_of(sde, solver),
        _sights(sensors, twist, ts, like),
        tuple((i, o.log_likelihood) for i, o in placed if isinstance(o, Observation)),
        reference_of(draws).spread,
        Tempering() if tempering is None else tempering,
        threshold,
        chunk_size,
    )
    found = _condition(plan, score, draws, key, args, num_particles, resample)
    _check_particles(found)
    return found


class _Plan(eqx.Module):
    """Everything that is decided before the particles start."""

    sde: SDE = eqx.field(static=True)
    ts: Array
    steps: Any
    sights: tuple[Sight, Sight]
    rest: tuple = eqx.field(static=True)
    metric: Spread
    tempering: Tempering = eqx.field(static=True)
    threshold: float = eqx.field(static=True)
    chunk_size: int | None = eqx.field(static=True)


@eqx.filter_jit
def _condition(
    plan: _Plan,
    score: ScoreFn,
    draws: State,
    key: PRNGKeyArray,
    args: Args,
    count: int,
    resample: bool,
) -> Conditioned:
    k_pick, k_temper, k_smooth, k_last = jax.random.split(key, 4)
    number = jax.tree.leaves(draws)[0].shape[0]
    # Every draw as often as every other, in an order of its own where there are too few or many.
    order = jnp.concatenate(
        [
            jax.random.permutation(jax.random.fold_in(k_pick, i), number)
            for i in range(-(-count // number))
        ]
    )[:count]
    _, unravel = ravel_pytree(jax.tree.map(lambda x: x[0], draws))
    flat = lambda tree: ravel_pytree(tree)[0]
    start = jax.vmap(flat)(choose(draws, order))
    last = len(plan.ts) - 1
    gain, seen, constant = jax.tree.map(lambda x: x[-1], plan.sights[1]).whitened()

    def scores(x: Array) -> Array:
        one = lambda v: flat(score(plan.ts[-1], unravel(v), args))
        return over_particles(one, x, chunk_size=plan.chunk_size)

    def rest_of(j: int, v: Array) -> Array:
        values = [f(unravel(v), args) for i, f in plan.rest if i == j]
        return sum(values, jnp.zeros((), v.dtype))

    def rest_at_end(x: Array) -> tuple[Array, Array]:
        return jax.vmap(jax.value_and_grad(lambda v: rest_of(last, v)))(x)

    metric = Metric(lambda p, v: flat(plan.metric.power(p, unravel(v))))
    target = Target(scores, gain, seen, rest_at_end)
    end = temper(k_temper, start, target, metric, plan.tempering)

    def backward(t1: Any, t0: Any, v: Array) -> tuple[Array, Callable]:
        mean, spread = plan.steps.backward(score, t1, t0, unravel(v), args)
        return flat(mean), lambda p, w: flat(spread.power(p, unravel(w)))

    def rest(j: Array, x: Array) -> Array:
        times = sorted({i for i, _ in plan.rest})
        total = jnp.zeros(len(x), x.dtype)
        for i in times:
            found = jax.lax.cond(
                j == i,
                lambda x, i=i: jax.vmap(lambda v: rest_of(i, v))(x),
                lambda x: jnp.zeros(len(x), x.dtype),
                x,
            )
            total = total + found
        return total

    carried = smooth(
        k_smooth,
        end.x,
        plan.ts,
        backward,
        *plan.sights,
        rest,
        threshold=plan.threshold,
        chunk_size=plan.chunk_size,
    )
    x, log_weights = carried.x, jax.nn.log_softmax(carried.log_weights)
    if resample:
        x = x[systematic(k_last, log_weights)]
        log_weights = jnp.full_like(log_weights, -math.log(count))
    full = jnp.full((), count, carried.ess.dtype)
    info = ConditionInfo(
        plan.ts,
        jnp.concatenate([carried.ess, full[None]]),
        carried.resampled,
        end.temperatures,
        end.acceptance,
        end.step_sizes,
        jnp.isfinite(x).all(axis=1),
    )
    return Conditioned(
        jax.vmap(unravel)(x),
        log_weights,
        constant + end.log_evidence + carried.log_evidence,
        jnp.sqrt(end.variance + carried.variance),
        info,
    )


def _sights(
    sensors: Sequence[tuple[int, LinearObservation]],
    twist: LinearTwist | None,
    ts: Any,
    like: State,
) -> tuple[Sight, Sight]:
    """What is left to be seen at every time, without and with the sensors at that very time."""
    entries, _ = ravel_pytree(like)
    rows = [o.matrix(like) for _, o in sensors]
    owner = np.repeat([i for i, _ in sensors], [len(r) for r in rows]).astype(int)
    empty = jnp.zeros((0, entries.size), entries.dtype)
    matrix = jnp.concatenate([*rows, empty])
    values = jnp.concatenate([*(o.read(entries.dtype) for _, o in sensors), empty[:, 0]])
    noise = jax.scipy.linalg.block_diag(*(o.noise(entries.dtype) for _, o in sensors))
    noise = noise if sensors else jnp.zeros((0, 0), entries.dtype)
    when = np.arange(len(ts))[:, None]
    if twist is not None and twist.gain.shape[1:] != matrix.shape:
        raise ValueError(
            f"twist must be of these observations: {matrix.shape[0]} sensors of "
            f"{matrix.shape[1]} entries, got {twist.gain.shape[1]} of {twist.gain.shape[2]}"
        )

    def at(t: Any, plus: Any, minus: Any, here: Any) -> tuple[Sight, Sight]:
        if twist is None:
            gain, missing, widened = matrix, values, noise
        else:
            gain, offset, residual = twist.at(t)
            gain = jnp.where(here[:, None], matrix, gain)
            missing = values - jnp.where(here, 0, offset)
            widened = noise + jnp.where(here[:, None] | here[None, :], 0, residual)
        return Sight.of(gain, missing, widened, minus), Sight.of(gain, missing, widened, plus)

    here = owner[None] == when
    plus = here if twist is None else owner[None] <= when
    return jax.vmap(at)(jnp.asarray(ts), *map(jnp.asarray, (plus, plus & ~here, here)))


def _ends(data: Trajectories | None, ends: State | None, ts: Any) -> State:
    if ends is None:
        if data is None:
            raise ValueError("condition must have data=Trajectories or ends=draws, got neither")
        data.check()
        index = time_index(data.ts, float(ts[-1]), "the data's ts, as is ts[-1]")
        ends = jax.tree.map(lambda x: x[:, index], data.xs)
    number = check_samples(ends, "ends")
    if number < 2:
        raise ValueError(f"ends must hold at least 2 draws, got {number}")
    return jax.tree.map(jnp.asarray, ends)


def _check(sde: SDE, score: ScoreFn, x: State, ts: Any, args: Args) -> None:
    check_is_score(score, "condition")
    check_kind("score", score, "a function score(t, x, args), such as fit.score", "__call__")
    check_process(sde, ts, x, args, maps=("drift", "inverse"))
    t = jax.ShapeDtypeStruct((), jnp.result_type(ts))
    check_like(x, jax.eval_shape(score, t, x, args), "score")


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
            "observations that no end state is near to, or a log_likelihood that is not finite"
        )
    worst = int(sizes.argmin())
    remedies = "more particles, a twist learned from data, more steps, or a larger covariance"
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
