"""Gains and covariances of every step of a backward kernel, from paths."""

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.checks import check_choice
from smdp_jax.compiled import once, parts_of
from smdp_jax.scores.blocks import Transform
from smdp_jax.scores.own_steps import move_of, noise_of
from smdp_jax.scores.regression import Regression, regress
from smdp_jax.scores.tables import KernelTables, base_of, with_input_noise
from smdp_jax.sde import SDE, Args, FlowMap, Scalar, State
from smdp_jax.solve.condition_splines import Hats
from smdp_jax.trajectories import Trajectories

Base = Literal["auto", "state", "inverse"]

_LEAST_BOUND = 4.0
_AT_ONCE = 2**22


def check_base(name: str, base: Any) -> None:
    """Check that a base is known."""
    check_choice(name, base, *get_args(Base))


@dataclass(frozen=True)
class _NegatedDrift:
    """One step of a drift back by its negated increment."""

    sde: SDE

    def _parts(self) -> tuple:
        return (parts_of(self.sde),)

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


def tables_of(
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
    x, args = data.at(0, -1), data.args_of(0)
    dtype = jax.tree.leaves(x)[0].dtype
    differ = None if data.args_axes is None else data.args
    hats = Hats.of(differ, data.num_samples, _most_features(data, transform), dtype)

    how = (transform, physics, spread, input_noise > 0)
    mean, size, noise, moves, groups, largest, moved = _estimate(
        sde, data, hats, how, input_noise, steps, key
    )
    probe = (x, args, moves)
    tables = KernelTables(
        data.ts, groups, hats, (mean, size), noise, probe, largest, transform, spread, physics
    )
    return tables if physics is None else replace(tables, moved=moved)


@once
def _estimate(
    sde: SDE, data: Trajectories, hats: Hats, how: tuple, sigma: Any, steps: Any, key: PRNGKeyArray
) -> tuple[Any, ...]:
    """What the tables hold, as arrays alone: a result that names functions would keep them."""
    transform, physics, spread, noisy = how
    x, args = data.at(0, -1), data.args_of(0)
    dtype = jax.tree.leaves(x)[0].dtype
    noise = noise_of(sde, data.ts, x)
    mean, size = (jax.tree.map(f, data.xs) for f in (jnp.mean, jnp.std))
    size = jax.tree.map(lambda s: jnp.where(s > 0, s, jnp.ones_like(s)), size)
    samples = jnp.arange(data.num_samples)
    features = jax.vmap(lambda i: hats(data.args_of(i), dtype))(samples)
    unit, probe = jax.tree.map(jnp.ones_like, size), (x, args, move_of(sde, data.ts, x, args))
    empty = KernelTables(
        data.ts, (), hats, (mean, size), noise, probe, unit, transform, spread, physics
    )

    def one(step: Array) -> tuple[tuple[Regression, ...], State, State]:
        def pair(i: Array) -> tuple[Any, ...]:
            own = jax.random.fold_in(jax.random.fold_in(key, step), i)
            earlier, later = data.at(i, step), data.at(i, step + 1)
            if noisy:
                later = with_input_noise(empty, own, step, later, sigma)
            base = base_of(empty, step, later, data.args_of(i))
            moved = jax.tree.map(lambda b, x: jnp.abs(b - x).max(), base, later)
            return *(transform.to(s) for s in (earlier, base, later)), moved

        # Simulators have states of their own in between: not those of all paths at once.
        entries = sum(leaf.size for leaf in jax.tree.leaves(x))
        most = len(samples) if physics is None else max(_AT_ONCE // entries, 1)
        earlier, base, later, moved = jax.lax.map(pair, samples, batch_size=min(most, len(samples)))
        pairs = zip(earlier, base, later, strict=True)
        groups = tuple(regress(x, b, y, features) for x, b, y in pairs)

        def missed(x: Any, b: Any, features: Array) -> State:
            white = (g.missed(x, b, features) for g, x, b in zip(groups, x, b, strict=True))
            return transform.back(tuple(white), probe[0])

        left = jax.vmap(missed)(earlier, base, features)
        largest = jax.tree.map(lambda w: jnp.abs(w).max(), left)
        return groups, largest, jax.tree.map(jnp.max, moved)

    groups, largest, moved = jax.lax.map(one, jnp.asarray(steps))
    largest = jax.tree.map(lambda w: jnp.maximum(w.max(), _LEAST_BOUND), largest)
    return mean, size, noise, probe[2], groups, largest, moved


def _most_features(data: Trajectories, transform: Transform) -> int:
    """Twenty paths for each number that a regression finds."""
    shapes = jax.eval_shape(transform.to, data.at(0, 0))
    return max(data.num_samples // (20 * (1 + max(b.shape[-1] for b in shapes))), 1)
