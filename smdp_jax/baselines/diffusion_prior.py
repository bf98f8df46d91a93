"""A diffusion model of starts that knows no simulator: ``dx = -(x - m) / 2 dt + c dW``."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.baselines.parts import at_rest
from smdp_jax.checks import check_key, check_positive, check_samples
from smdp_jax.objectives import DenoisingScore
from smdp_jax.sde import SDE, Args, Scalar, ScoreFn, State
from smdp_jax.solve.time_grids import log_grid
from smdp_jax.training.fit import fit
from smdp_jax.trajectories import Trajectories


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DiffusionPrior:
    """An unconditional diffusion model of states.

    Parameters
    ----------
    score, ts : callable, array (times,)
        ``score(t, x, args)`` of the diffused states, t in diffusion time; such times from 0, at the
        last of which next to nothing is left of the state.
    mean, std : pytree
        Of the states, one number per leaf.
    """

    score: ScoreFn
    ts: Any
    mean: Any
    std: Any

    def sde(self) -> SDE:
        """Return the diffusion.

        Returns
        -------
        SDE
            ``dx = -(x - mean) / 2 dt + std dW``.
        """
        mean = self.mean
        drift = lambda t, x, args: jax.tree.map(lambda x, m: (m - x) / 2, x, mean)
        return SDE(drift, diffusion=self.std)

    def clean(self, t: Scalar, x: State, s: State) -> State:
        """Guess the state that was diffused (Tweedie's formula).

        Parameters
        ----------
        t, x, s : scalar, pytree, pytree
            Diffusion time; diffused state; its score.

        Returns
        -------
        pytree
            ``E[x(0) | x(t) = x]``.
        """
        left = jnp.exp(-jnp.asarray(t) / 2)

        def one(x: Array, s: Array, m: Array, c: Array) -> Array:
            return m + (x - m + (c**2 * (1 - left**2)).astype(x.dtype) * s) / left.astype(x.dtype)

        return jax.tree.map(one, x, s, self.mean, self.std)


def fit_diffusion_prior(
    states: State,
    model: Any,
    *,
    steps: int,
    key: PRNGKeyArray,
    levels: int = 64,
    end_time: float = 8.0,
    optimizer: optax.GradientTransformation | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> DiffusionPrior:
    """Train an unconditional diffusion model by denoising score matching.

    Parameters
    ----------
    states, model : pytree, flax.linen.Module
        Draws of the prior, leaves (samples, *state); network, as ``fit`` takes it.
    steps, key
        Updates; noise, parameters, batches.
    levels, end_time : int, float
        Steps of diffusion, dense near 0, up to the time at which ``exp(-end_time / 2)`` is left.
    optimizer, batch_size, progress
        As for ``fit``.

    Returns
    -------
    DiffusionPrior
        The trained model.

    Raises
    ------
    ValueError
        If states, numbers or key do not fit, or all states are the same.
    """
    count = check_samples(states, "states")
    check_positive(steps=steps, levels=levels)
    check_key(key)
    mean, std = jax.tree.map(jnp.mean, states), jax.tree.map(jnp.std, states)
    if not all(float(c) > 0 for c in jax.tree.leaves(std)):
        raise ValueError(f"states must vary, got {count} equal ones")
    ts = log_grid(0.0, end_time, levels, offset=1e-2)
    prior = DiffusionPrior(at_rest, ts, mean, std)
    k_paths, k_fit = jax.random.split(key)
    data = Trajectories(ts, _diffused(prior, states, k_paths))

    def kernel_score(t: Any, x: State, x0: State, args: Args) -> State:
        left, spread = jnp.exp(-t / 2), -jnp.expm1(-t)
        centre = jax.tree.map(lambda x, m: m + left.astype(x.dtype) * (x - m), x0, mean)
        score = lambda x, m, c: (m - x) / (c**2 * spread).astype(x.dtype)
        return jax.tree.map(score, x, centre, std)

    objective = DenoisingScore(kernel_score=kernel_score)
    leaves = [tuple(map(float, jax.tree.leaves(tree))) for tree in (mean, std)]
    how = {"steps": steps, "batch_size": batch_size, "precondition": False, "progress": progress}
    network = _Preconditioned(model, *leaves)
    found = fit(prior.sde(), network, data, objective, optimizer, key=k_fit, **how)
    return DiffusionPrior(found.score, ts, mean, std)


class _Preconditioned(nn.Module):
    """The score of the diffused Gaussian, which keeps its variance, and a scaled network."""

    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @nn.compact
    def __call__(self, t: Any, x: State, args: Args) -> State:
        """Evaluate at one time and one unbatched state."""
        leaves, tree = jax.tree.flatten(x)
        y = [(x - m) / c for x, m, c in zip(leaves, self.mean, self.std, strict=True)]
        out = jax.tree.leaves(self.model(t, jax.tree.unflatten(tree, y), args))
        spread = jnp.sqrt(-jnp.expm1(-jnp.maximum(jnp.asarray(t), 1e-6)))
        sums = [n / spread.astype(n.dtype) - y for n, y in zip(out, y, strict=True)]
        scores = [total / c for total, c in zip(sums, self.std, strict=True)]
        return jax.tree.unflatten(tree, scores)


def _diffused(prior: DiffusionPrior, states: State, key: PRNGKeyArray) -> State:
    """Exact paths of the diffusion, leaves (samples, times, *state)."""
    kept = jnp.exp(-jnp.diff(prior.ts) / 2)
    leaves, tree = jax.tree.flatten(states)
    keys = jax.tree.unflatten(tree, list(jax.random.split(key, len(leaves))))

    def paths(x0: Array, m: Array, c: Array, key: Array) -> Array:
        def body(x: Array, step: tuple) -> tuple[Array, Array]:
            r, key = step
            noise = jnp.sqrt(1 - r**2).astype(x.dtype) * jax.random.normal(key, x.shape, x.dtype)
            x = m + r.astype(x.dtype) * (x - m) + c * noise
            return x, x

        _, later = jax.lax.scan(body, x0, (kept, jax.random.split(key, len(kept))))
        return jnp.moveaxis(jnp.concatenate([x0[None], later]), 0, 1)

    return jax.jit(jax.tree_util.Partial(jax.tree.map, paths))(states, prior.mean, prior.std, keys)
