"""Walk a backward kernel from an end state to the start of its grid."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.checks import check_number
from smdp_jax.scores.kernel import LearnedKernel, first_step
from smdp_jax.scores.kernel_step import draw
from smdp_jax.scores.tables import with_input_noise
from smdp_jax.sde import Args, State
from smdp_jax.solve.backward import BackwardSolve, SolveInfo
from smdp_jax.solve.integrate import Save, Watched, scan_saving


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
            return (x, state, Watched(largest, jnp.maximum(watched.lost_at, lost_at))), None

        save: Save = self.save
        if not isinstance(save, str):
            save = [self.steps - range(self.steps + 1)[i] for i in save]
        nothing = Watched(jnp.zeros((), dtype), jnp.asarray(-jnp.inf, kernel.ts.dtype))
        xs, watched = scan_saving(back, (x_end, None, nothing), self.steps, 1, save)
        if save != "last":
            xs = jax.tree.map(lambda x: x[::-1], xs)
        finite = watched.lost_at == -jnp.inf
        return xs, SolveInfo(jnp.asarray(self.steps), finite, watched.largest, watched.lost_at)


def kernel_walk(
    kernel: LearnedKernel, asked: BackwardSolve, x_end: State, input_noise: Any
) -> KernelWalk:
    """Set up the walk that ``sample_posterior`` was asked for."""
    for name in ("solver", "controller"):
        if getattr(asked, name) is not None:
            raise ValueError(f"{name} needs a score, got a LearnedKernel, which has its own steps")
    noise = check_number("input_noise", input_noise)
    if not 0 <= noise < math.inf:
        raise ValueError(f"input_noise must be at least 0 and finite, got {input_noise}")
    first, steps = first_step(kernel.ts, asked.ts), len(asked.ts) - 1
    size = jnp.asarray(noise, jax.tree.leaves(x_end)[0].dtype)
    return KernelWalk(first, steps, size, asked.denoise_last, asked.save)
