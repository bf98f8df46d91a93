"""Walk a backward kernel from an end state to the start of its grid."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.checks import check_that, check_within, concrete, warn
from smdp_jax.compiled import once
from smdp_jax.scores.kernel import LearnedKernel, first_step
from smdp_jax.scores.kernel_step import draw
from smdp_jax.scores.seen import SeenRange
from smdp_jax.scores.tables import with_input_noise
from smdp_jax.sde import Args, State
from smdp_jax.solve.backward import BackwardSolve, SolveInfo
from smdp_jax.solve.integrate import Save, Watched, scan_saving
from smdp_jax.solve.looked import Ends
from smdp_jax.trajectories import Trajectories


class KernelWalk(eqx.Module):
    """One path of ``steps`` steps that ends at step ``first`` of the kernel's grid."""

    first: int = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    input_noise: Array
    denoise_last: bool = eqx.field(static=True)
    save: Any = eqx.field(static=True, converter=lambda s: s if isinstance(s, str) else tuple(s))

    def __call__(
        self, kernel: LearnedKernel, x_end: State, key: PRNGKeyArray, args: Args
    ) -> tuple[State, SolveInfo]:
        """Return the saved states, ordered like the grid, and diagnostics."""
        dtype = jax.tree.leaves(x_end)[0].dtype

        def back(carry: tuple, n: Array) -> tuple[tuple, None]:
            x, state, watched = carry
            step = self.first + self.steps - 1 - n
            noise_key, input_key = jax.random.split(jax.random.fold_in(key, n))
            x = with_input_noise(kernel.tables, input_key, step, x, self.input_noise)
            amplitude = jnp.where(n == self.steps - 1, 0.0, 1.0) if self.denoise_last else None
            x, explained = draw(kernel, noise_key, step, x, args, amplitude)
            sizes = [jnp.max(jnp.abs(r)).astype(dtype) for r in jax.tree.leaves(explained)]
            finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(x)]).all()
            lost_at = jnp.where(finite, -jnp.inf, kernel.ts[step]).astype(kernel.ts.dtype)
            largest = jnp.maximum(watched.largest, jnp.max(jnp.stack(sizes)))
            left_at = watched.left_at
            if kernel.range is not None:
                now = jnp.where(kernel.range.outside(kernel.ts[step], x), kernel.ts[step], -jnp.inf)
                left_at = jnp.maximum(left_at, now.astype(kernel.ts.dtype))
            seen = Watched(largest, jnp.maximum(watched.lost_at, lost_at), left_at)
            return (x, state, seen), None

        save: Save = self.save
        if not isinstance(save, str):
            save = [self.steps - range(self.steps + 1)[i] for i in save]
        never = jnp.asarray(-jnp.inf, kernel.ts.dtype)
        left = None if kernel.range is None else never
        nothing = Watched(jnp.zeros((), dtype), never, left)
        xs, watched = scan_saving(back, (x_end, None, nothing), self.steps, 1, save)
        if save != "last":
            xs = jax.tree.map(lambda x: x[::-1], xs)
        finite = watched.lost_at == -jnp.inf
        steps = jnp.asarray(self.steps)
        return xs, SolveInfo(steps, finite, watched.largest, watched.lost_at, watched.left_at)


def kernel_walk(
    kernel: LearnedKernel, asked: BackwardSolve, ends: Ends, input_noise: Any
) -> KernelWalk:
    """Set up the walk that ``sample_posterior`` was asked for."""
    for name in ("solver", "controller"):
        said = f"{name} needs a score, got a LearnedKernel, which has its own steps"
        check_that(getattr(asked, name) is None, said)
    (noise,) = check_within("[0, inf)", input_noise=input_noise)
    first, steps = first_step(kernel.ts, asked.ts), len(asked.ts) - 1
    size = jnp.asarray(noise, jax.tree.leaves(ends.x)[0].dtype)
    _warn_of_far(kernel, ends, first + steps)
    return KernelWalk(first, steps, size, asked.denoise_last, asked.save)


def _warn_of_far(kernel: LearnedKernel, ends: Ends, last: int) -> None:
    """Say which end states and conditions are beyond those of the training paths."""
    if not concrete(ends, kernel) or not all(
        getattr(leaf, "is_fully_addressable", True) for leaf in jax.tree.leaves(ends)
    ):
        return
    if kernel.range is not None:
        outside = _outside(kernel.range, kernel.ts[last], ends.x)
        if far := int(outside.sum()):
            said = f"sample_posterior: {far} of {outside.size} end states lie outside of the range"
            where = f"of the training paths at t={float(kernel.ts[last]):g}"
            warn(f"{said} {where}: check the units of x_end, or train on paths that end there")
    for name, value, low, high in kernel.tables.hats.beyond(ends.args, ends.mapped):
        said = f"{name}={value:.4g} lies outside of the training paths' [{low:.4g}, {high:.4g}]"
        warn(f"sample_posterior: {said}: train on paths with such conditions")


@once
def _outside(seen: SeenRange, t: Array, ends: State) -> Array:
    return jax.vmap(lambda x: seen.outside(t, x))(ends)


def drawn_back(
    kernel: LearnedKernel,
    paths: Trajectories,
    i: Array,
    key: PRNGKeyArray,
    draws: int,
    look: Callable[[State, Array], Any],
) -> tuple[State, Any]:
    """Walk draws back from the end of a path: starts (draws, *state), looks at every step."""
    steps, args = paths.num_times - 1, paths.args_of(i)
    ends = jax.tree.map(lambda x: jnp.broadcast_to(x, (draws, *x.shape)), paths.at(i, steps))

    def back(states: State, step: Array) -> tuple[State, Any]:
        keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, step), i), draws)
        states = jax.vmap(lambda k, x: draw(kernel, k, step, x, args)[0])(keys, states)
        return states, look(states, step)

    starts, seen = jax.lax.scan(back, ends, jnp.arange(steps - 1, -1, -1))
    return starts, jax.tree.map(lambda v: v[::-1], seen)
