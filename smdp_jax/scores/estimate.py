"""Estimate the linear part of a backward kernel from paths, in the transform that suits them."""

from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.checks import check_process
from smdp_jax.compiled import once
from smdp_jax.scores import blocks
from smdp_jax.scores.blocks import Transform
from smdp_jax.scores.conditions import Hats
from smdp_jax.scores.kernel import LearnedKernel
from smdp_jax.scores.own_steps import move_of, noise_of
from smdp_jax.scores.regression import Regression, regress
from smdp_jax.scores.tables import KernelTables, with_input_noise
from smdp_jax.sde import SDE, Args, FlowMap, Scalar, State
from smdp_jax.trajectories import Trajectories, grid_axes

Base = Literal["state", "inverse"]

_LEAST_PATHS = 8
_JOINT_ENTRIES = 256
_COMPARED_STEPS = 6
_LEAST_BOUND = 4.0
# Nats per entry, and excess kurtosis.
_MUCH, _FAR = 0.2, 0.5


@dataclass(frozen=True)
class _NegatedDrift:
    """One step of a drift back by its negated increment."""

    sde: SDE

    def __call__(self, t1: Scalar, t0: Scalar, x: State, args: Args) -> State:
        assert self.sde.drift is not None
        back = t1 - t0
        drift = self.sde.drift(t1, x, args)
        return jax.tree.map(lambda x, p: x - jnp.asarray(back, x.dtype) * p, x, drift)


def physics_of(sde: SDE, base: Base) -> FlowMap | None:
    """Return b as a function; None where it is the state itself."""
    if base == "state":
        return None
    return sde.inverse if sde.step is not None else _NegatedDrift(sde)


def kernel_tables(
    sde: SDE,
    data: Trajectories,
    transform: Any = "auto",
    *,
    base: Base = "state",
    axes: int | None = None,
    input_noise: float = 0.0,
    network: bool = False,
    spread: bool = False,
    directions: int = 0,
    key: PRNGKeyArray,
) -> KernelTables:
    """Estimate gains and covariances of every step, for a network to come or to stand alone."""
    x = data.at(0, 0)
    if data.num_samples < _LEAST_PATHS:
        raise ValueError(
            f"a backward kernel is estimated from at least {_LEAST_PATHS} paths, got "
            f"{data.num_samples}"
        )
    if axes is None:  # of what has one: numbers beside a field are a group of their own
        axes = grid_axes([leaf for leaf in jax.tree.leaves(x) if leaf.ndim] or [jnp.zeros(())])
    physics = physics_of(sde, base)
    if transform == "auto":
        chosen = _best(sde, data, axes, network)
    elif isinstance(transform, str):
        if transform not in get_args(blocks.Kind):
            raise ValueError(
                f"BackwardKernel.transform must be 'auto', one of {get_args(blocks.Kind)}, or a "
                f"pair (forward, inverse), got {transform!r}"
            )
        chosen = blocks.named(cast(blocks.Kind, transform), axes)
    else:
        chosen = blocks.Custom(axes, *transform)
        blocks.check_unitary(chosen, x)
    tables = _tables(sde, data, chosen, physics, input_noise, key, spread=spread)
    return replace(tables, directions=directions)


def estimate_kernel(
    sde: SDE,
    data: Trajectories,
    *,
    transform: Any = "auto",
    base: Base = "state",
    grid_axes: int | None = None,
) -> LearnedKernel:
    """Estimate a backward kernel from paths, without a network.

    Exact for linear processes with Gaussian data, whatever the steps, where the transform leaves
    the blocks uncorrelated. In general it is the linear part of what ``BackwardKernel()`` learns.

    Parameters
    ----------
    sde : SDE
        The process that the paths follow.
    data : Trajectories
        Paths at the times that are to be walked back.
    transform : str or tuple of callables
        As for ``BackwardKernel``.
    base : "state" or "inverse"
        As for ``BackwardKernel``.
    grid_axes : int, optional
        As for ``BackwardKernel``.

    Returns
    -------
    LearnedKernel
        For ``sample_posterior``.

    Raises
    ------
    ValueError
        If there are too few paths, or the transform is unknown or not unitary.
    """
    data.check()
    check_process(sde, data.ts, data.at(0, -1), data.args_of(0))
    data = jax.tree.map(jnp.asarray, data)
    tables = kernel_tables(sde, data, transform, base=base, axes=grid_axes, key=jax.random.key(0))
    return LearnedKernel(None, {}, tables)


def _tables(
    sde: SDE,
    data: Trajectories,
    transform: Transform,
    physics: FlowMap | None,
    input_noise: float,
    key: PRNGKeyArray,
    steps: np.ndarray | None = None,
    spread: bool = False,
) -> KernelTables:
    """Tables of some steps (default: of all)."""
    steps = np.arange(data.num_times - 1) if steps is None else steps
    hats = Hats.of(data, _most_features(data, transform))
    x, args = data.at(0, -1), data.args_of(0)
    dtype = jax.tree.leaves(x)[0].dtype

    @once
    def estimate(data: Trajectories, key: PRNGKeyArray) -> KernelTables:
        noise = noise_of(sde, data.ts, x)
        mean, size = (jax.tree.map(f, data.xs) for f in (jnp.mean, jnp.std))
        size = jax.tree.map(lambda s: jnp.where(s > 0, s, jnp.ones_like(s)), size)
        samples = jnp.arange(data.num_samples)
        features = jax.vmap(lambda i: hats(data.args_of(i), dtype))(samples)
        unit, probe = jax.tree.map(jnp.ones_like, size), (x, args, move_of(sde, data.ts, x, args))
        empty = KernelTables(
            data.ts, (), hats, (mean, size), noise, probe, unit, transform, spread, physics
        )

        def one(step: Array) -> tuple[tuple[Regression, ...], State]:
            def pair(i: Array) -> tuple[Any, ...]:
                own = jax.random.fold_in(jax.random.fold_in(key, step), i)
                earlier, later = data.at(i, step), data.at(i, step + 1)
                if input_noise > 0:
                    later = with_input_noise(empty, own, step, later, input_noise)
                base = later
                if physics is not None:
                    base = physics(data.ts[step + 1], data.ts[step], later, data.args_of(i))
                return tuple(transform.to(s) for s in (earlier, base, later))

            earlier, base, later = jax.vmap(pair)(samples)
            pairs = zip(earlier, base, later, strict=True)
            groups = tuple(regress(x, b, y, features) for x, b, y in pairs)

            def missed(x: Any, b: Any, features: Array) -> State:
                white = (g.missed(x, b, features) for g, x, b in zip(groups, x, b, strict=True))
                return transform.back(tuple(white), probe[0])

            left = jax.vmap(missed)(earlier, base, features)
            return groups, jax.tree.map(lambda w: jnp.abs(w).max(), left)

        groups, largest = jax.lax.map(one, jnp.asarray(steps))
        largest = jax.tree.map(lambda w: jnp.maximum(w.max(), _LEAST_BOUND), largest)
        return replace(empty, groups=groups, largest=largest)

    return estimate(data, key)


def _most_features(data: Trajectories, transform: Transform) -> int:
    """Twenty paths for each number that a regression finds."""
    shapes = jax.eval_shape(transform.to, data.at(0, 0))
    return max(data.num_samples // (20 * (1 + max(b.shape[-1] for b in shapes))), 1)


def _best(sde: SDE, data: Trajectories, axes: int, network: bool) -> Transform:
    """Choose the transform whose kernel gives unseen steps the highest likelihood."""
    entries = sum(leaf.size for leaf in jax.tree.leaves(data.at(0, 0)))
    if axes == 0 or entries <= _LEAST_PATHS:
        return blocks.Joint()
    candidates: list[Transform] = [blocks.Periodic(axes), blocks.Cosine(axes), blocks.Points(axes)]
    held = max(min(data.num_samples // 5, 500), 2)
    known = min(data.num_samples - held, 2000)
    if entries <= _JOINT_ENTRIES and known >= 2 * entries:
        candidates.append(blocks.Joint())
    last = data.num_times - 2
    # The first step may start from a prior that lives on few modes, where floors decide.
    steps = np.unique(np.linspace(min(1, last), last, _COMPARED_STEPS).astype(int))
    seen, unseen = data[:known], data[known : known + held]

    def likelihood(transform: Transform) -> float:
        tables = _tables(sde, seen, transform, None, 0.0, jax.random.key(0), steps)
        kernel = LearnedKernel(None, {}, tables)

        @once
        def mean(kernel: LearnedKernel, paths: Trajectories) -> Array:
            def one(i: Array, n: Array) -> Scalar:
                at = jnp.asarray(steps)[n]
                earlier, later = paths.at(i, at), paths.at(i, at + 1)
                return kernel.log_density(n, earlier, later, paths.args_of(i))

            indices = jnp.arange(len(steps))
            return jax.vmap(lambda i: jax.vmap(lambda n: one(i, n))(indices))(
                jnp.arange(held)
            ).mean()

        value = float(mean(kernel, unseen))
        return value if np.isfinite(value) else -np.inf

    found = {transform: likelihood(transform) for transform in candidates}
    best = max(candidates, key=lambda transform: found[transform])
    # Where states are far from Gaussian the network does most of it, and does it best where an
    # entry's noise is its own, unless the blocks explain much more.
    near = found[best] - found[blocks.Points(axes)] < _MUCH * entries
    if network and near and not isinstance(best, blocks.Periodic) and abs(_excess(seen.xs)) > _FAR:
        return blocks.Points(axes)
    return best


@once
def _excess(xs: State) -> Array:
    """Mean excess kurtosis of the entries that vary, at all times: 0 where they are Gaussian."""
    total, count = jnp.zeros(()), jnp.zeros((), int)
    for x in jax.tree.leaves(xs):
        off = x - x.mean(axis=0, keepdims=True)
        square = (off**2).mean(axis=0, keepdims=True)
        varies = square > 0
        unit = off / jnp.sqrt(jnp.where(varies, square, 1))
        total += jnp.where(varies[0], (unit**4).mean(axis=0) - 3, 0).sum().astype(total.dtype)
        count += varies.sum()
    return total / jnp.maximum(count, 1).astype(total.dtype)
