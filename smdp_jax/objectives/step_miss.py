"""Is a learned score good enough to believe a run? One backward step against the data."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.checks import warn
from smdp_jax.compiled import once
from smdp_jax.scores.preconditioner import Preconditioner
from smdp_jax.scores.step import LearnedStep
from smdp_jax.sde import SDE, Scalar, ScoreFn, State
from smdp_jax.solve.gaussian import GaussianStep, bound
from smdp_jax.solve.integrate import advance
from smdp_jax.solve.inverses import walked
from smdp_jax.solve.reversal import reverse_sde
from smdp_jax.trajectories import Trajectories, window

_MISS_WARNING = 3.0


def mean_square(
    tree: State, scale: State | None = None, transform: Callable[[Any], Any] | None = None
) -> Scalar:
    """Mean over all entries of a tree of |entry / scale|^2; a leaf of scale 0 does not count."""
    leaves = jax.tree.leaves(tree if transform is None else transform(tree))
    count: Any = sum(math.prod(x.shape) for x in leaves)
    if scale is not None:
        scales = jax.tree.leaves(scale)
        leaves = [
            jnp.where(s > 0, x, jnp.zeros_like(x)) / jnp.where(s > 0, s, 1).astype(x.dtype)
            for x, s in zip(leaves, scales, strict=True)
        ]
        if len(leaves) > 1:
            shares = [jnp.mean(s > 0) * x.size for x, s in zip(leaves, scales, strict=True)]
            count = sum(shares)
    sizes = [jnp.abs(x) for x in leaves]
    # Squares and sums of half precision overflow; leaves may differ in dtype.
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(jnp.float32, *sizes)
    total = sum(jnp.sum(size.astype(dtype) ** 2) for size in sizes)
    return total / (count if isinstance(count, int) else count.astype(dtype))


def step_miss(
    sde: SDE,
    score: ScoreFn,
    data: Trajectories,
    *,
    key: PRNGKeyArray,
    samples: int | None = None,
    noise_level: float = 1.0,
    solver: diffrax.AbstractSolver[Any] | GaussianStep | None = None,
) -> Float[Array, "steps"]:
    """Squared miss of one backward step over its noise variance, by time.

    ``E |D(x_i) - x_{i-1}|^2 / (g^2 dt)`` per entry, D the noise-free reverse-time step. 1 is the
    optimum for short steps; far above 1 the score or the step is wrong there. One good step at a
    time does not prove that a path of many stays on the data.

    Parameters
    ----------
    sde, score : SDE, callable
        The process; ``score(t, x, args)``, or a step correction on its own steps.
    data, key
        Paths, best ones that were not trained on; chooses some of them.
    samples : int, optional
        How many paths; default 256, fewer for states of more than 16 entries, whose mean needs
        fewer.
    noise_level, solver
        The alpha of the step, 1 has the miss 1 at the optimum; default as for sampling.

    Returns
    -------
    array (times - 1,)
        The miss of the step from ``ts[i + 1]`` to ``ts[i]``.
    """
    sde = walked(sde, score)
    return _step_miss(sde, score, data, key, samples, _Level(float(noise_level)), solver)


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Level:
    """A noise level that is no array to the program."""

    alpha: float


@once
def _step_miss(
    sde: SDE,
    score: ScoreFn,
    data: Trajectories,
    key: PRNGKeyArray,
    samples: int | None,
    level: _Level,
    solver: diffrax.AbstractSolver[Any] | GaussianStep | None,
) -> Array:
    back = replace(reverse_sde(sde, score, noise_level=level.alpha), diffusion=None)
    stepper = bound(solver, sde, score, data.at(0, 0), level.alpha)

    def miss(piece: Trajectories, earlier: State, later: State) -> Scalar:
        how = {"args": piece.args, "solver": stepper, "save": "last"}
        reached, _ = advance(back, later, -piece.ts[::-1], **how)
        t0, t1 = piece.ts
        root = lambda g: g * jnp.sqrt(t1 - t0).astype(g.dtype)
        scale = jax.tree.map(root, sde.g_of_step(t0, t1, later))
        return mean_square(jax.tree.map(jnp.subtract, reached, earlier), scale)

    return _by_time(miss, data, key, samples)


@once
def learned_step_miss(step: LearnedStep, data: Trajectories, key: PRNGKeyArray) -> Array:
    """Squared miss of a learned step back over the mean squared increment, by time."""

    def miss(piece: Trajectories, earlier: State, later: State) -> Scalar:
        reached = step(piece.ts[1], piece.ts[0], later, piece.args)
        distance = jax.tree.map(jnp.subtract, reached, earlier)
        return mean_square(distance, step.preconditioner.increment)

    return _by_time(miss, data, key, None)


def _by_time(
    miss: Callable[[Trajectories, State, State], Scalar],
    data: Trajectories,
    key: PRNGKeyArray,
    samples: int | None,
) -> Array:
    """Mean over some paths, time by time (times - 1,)."""
    if samples is None:
        entries = sum(leaf.size for leaf in jax.tree.leaves(data.at(0, 0)))
        samples = max(8, min(256, 4096 // max(entries, 1), data.num_samples))
    chosen = jax.random.randint(key, (samples,), 0, data.num_samples)

    def of_one(sample: Array, start: Array) -> tuple[Scalar, Any]:
        piece = window(data, sample, start, 1)
        states = (jax.tree.map(lambda x, i=i: x[i], piece.xs) for i in range(2))
        return miss(piece, *states), None if piece.mask is None else piece.mask.all()

    def at(start: Array) -> Array:
        misses, seen = jax.vmap(of_one, in_axes=(0, None))(chosen, start)
        return jnp.mean(misses, where=seen)

    return jax.lax.map(at, jnp.arange(data.num_times - 1))


class _Nothing:
    """A network that adds nothing to the Gaussian it starts from."""

    @staticmethod
    def apply(variables: Any, t: Any, x: State, args: Any) -> State:
        return jax.tree.map(jnp.zeros_like, x)


_NOTHING = _Nothing()


def gaussian_of(learned: Any, sde: SDE, data: Trajectories) -> Any:
    """What a score or correction is with a network of zero: that of the data's moments."""
    own = learned.preconditioner
    base = own if isinstance(own, Preconditioner) else Preconditioner.of(sde, data)
    return replace(learned, model=_NOTHING, variables={}, preconditioner=base)


def warn_of_miss(
    miss: np.ndarray, ts: Any, kind: str, gaussian: Callable[[], np.ndarray] | None = None
) -> None:
    """Say where one step misses the data at many times; a score before it learns is ``gaussian``.

    Where that misses little, training has gone astray, else a step amplifies more than the noise.
    """
    bad = ~(miss <= _MISS_WARNING)
    if bad.mean() <= 0.1:
        return
    worst = int(np.nanargmax(miss)) if np.isfinite(miss).any() else int(bad.argmax())
    unit = "its mean squared increment" if kind == "step" else "its noise variance"
    remedy = "train longer, or with a smaller learning rate"
    if gaussian is None:
        best = "1 is a network that adds nothing"
    else:
        first = float(np.median(gaussian()[bad]))
        best = f"1 is the optimum, and the Gaussian of the data's moments misses by {first:.3g}"
        if first > max(_MISS_WARNING, 0.5 * float(np.median(miss[bad]))):
            best += " too"
            remedy = "a step is too large for what it amplifies, so store more times"
            remedy += " (or the noise is larger than SDE.diffusion says)"
        elif first > _MISS_WARNING:
            remedy += ", and try smaller steps"
    most = f"worst {miss[worst]:.3g} times at t={float(ts[worst + 1]):g}"
    warn(
        f"one backward step misses the data by more than {_MISS_WARNING:g} times {unit} at "
        f"{bad.mean():.0%} of the times ({most}; {best}: {remedy})"
    )
