r"""Guided diffusion: a diffusion model of starts that knows no simulator, guided through one.

    dx = -(x - m) / 2 dt + c dW,      s + scale * grad_x log N(x_T; F(x0_hat(t, x)), r^2)

x0_hat the mean of the start given x by Tweedie's formula, F the simulation without noise, r the
spread that the noise gives its end (diffusion posterior sampling, Chung et al. 2023, eq. 16).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.baselines.parts import as_posterior, at_rest, half_square, noise_free
from smdp_jax.checks import check_finite, check_key, check_positive, check_samples, check_time_grid
from smdp_jax.evaluate.ensembles import crps_ensemble
from smdp_jax.objectives import DenoisingScore
from smdp_jax.posterior import Posterior, sample_posterior
from smdp_jax.scores.tables import white_noise
from smdp_jax.sde import SDE, Args, Scalar, ScoreFn, State
from smdp_jax.solve.time_grids import log_grid
from smdp_jax.training.fit import fit
from smdp_jax.trajectories import Trajectories

__all__ = ["DiffusionPrior", "fit_diffusion_prior", "guided_posterior", "search_scale"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DiffusionPrior:
    """An unconditional diffusion model of states.

    Parameters
    ----------
    score : callable
        ``score(t, x, args)`` of the diffused states, t in diffusion time.
    ts : array (times,)
        Diffusion times from 0; at the last one next to nothing is left of the state.
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

        def drift(t: Any, x: State, args: Args) -> State:
            return jax.tree.map(lambda x, m: (m - x) / 2, x, mean)

        return SDE(drift, diffusion=self.std)

    def clean(self, t: Scalar, x: State, s: State) -> State:
        """Guess the state that was diffused (Tweedie's formula).

        Parameters
        ----------
        t : scalar
            Diffusion time.
        x : pytree
            Diffused state.
        s : pytree
            Its score.

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
    states : pytree
        Draws of the prior, leaves (samples, *state).
    model : flax.linen.Module
        Network, as ``fit`` takes it.
    steps : int
        Updates.
    key : PRNG key
        Noise, parameters, batches.
    levels : int
        Steps of diffusion, dense near 0.
    end_time : float
        Diffusion time at which a share ``exp(-end_time / 2)`` of the state is left.
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
    mean = jax.tree.map(jnp.mean, states)
    std = jax.tree.map(jnp.std, states)
    if not all(float(c) > 0 for c in jax.tree.leaves(std)):
        raise ValueError(f"states must vary, got {count} equal ones")
    ts = log_grid(0.0, end_time, levels, offset=1e-2)
    prior = DiffusionPrior(at_rest, ts, mean, std)
    k_paths, k_fit = jax.random.split(key)
    data = Trajectories(ts, _diffused(prior, states, k_paths))

    def centre(t: Any, x0: State, args: Args) -> State:
        left = jnp.exp(-t / 2)
        return jax.tree.map(lambda x, m: m + left.astype(x.dtype) * (x - m), x0, mean)

    def kernel_score(t: Any, x: State, x0: State, args: Args) -> State:
        spread = -jnp.expm1(-t)
        return jax.tree.map(
            lambda x, m, c: (m - x) / (c**2 * spread).astype(x.dtype), x, centre(t, x0, args), std
        )

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
        scores = [
            (n / spread.astype(n.dtype) - y) / c for n, y, c in zip(out, y, self.std, strict=True)
        ]
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


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["ts"],
    meta_fields=["sde", "solver", "substeps"],
)
@dataclass(frozen=True)
class _End:
    """The simulation without noise, equal to another of the same parts."""

    sde: SDE
    ts: Any
    solver: Any
    substeps: int

    def __call__(self, x: State, args: Args) -> State:
        return noise_free(self.sde, self.ts, self.solver, self.substeps)(x, args)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Guided:
    """Score of the diffused start, pushed towards what explains ``args``' end state."""

    prior: DiffusionPrior
    end: Any
    spread: Any
    scale: Any

    def __call__(self, t: Scalar, x: State, args: Args) -> State:
        x_end, own = args

        def log_likelihood(x: State) -> tuple[Array, State]:
            s = self.prior.score(t, x, None)
            found = self.end(self.prior.clean(t, x, s), own)
            return -half_square(jax.tree.map(jnp.subtract, found, x_end), self.spread), s

        push, s = jax.grad(log_likelihood, has_aux=True)(x)
        return jax.tree.map(lambda s, p: s + jnp.asarray(self.scale, s.dtype) * p, s, push)


def guided_posterior(
    prior: DiffusionPrior,
    sde: SDE,
    x_end: State,
    ts: Float[Array, "times"],
    *,
    num_samples: int,
    key: PRNGKeyArray,
    spread: Any,
    scale: Any = 1.0,
    args: Args = None,
    solver: diffrax.AbstractSolver | None = None,
    substeps: int = 1,
    chunk_size: int | None = None,
) -> Posterior:
    """Sample starts from a diffusion prior, guided by the simulation to an observed end.

    Parameters
    ----------
    prior : DiffusionPrior
        From `fit_diffusion_prior`.
    sde : SDE
        The process; its simulation without noise is differentiated at every step of the diffusion.
    x_end : pytree
        Observed state at ``ts[-1]``, unbatched.
    ts : array (times,)
        Increasing times of the simulation.
    num_samples : int
        Samples.
    key : PRNG key
        Noise of the diffusion.
    spread : number or pytree
        Spread of the end given the start, in units of the state; see `end_spread`.
    scale : number
        Strength of the guidance, best searched (`search_scale`).
    args, solver, substeps
        Of the simulation: conditions, default Heun for drifts, steps per interval of ``ts``.
    chunk_size : int, optional
        Samples at once; default all.

    Returns
    -------
    Posterior
        Samples (num_samples, *state).
    """
    check_time_grid(ts, sde)
    check_finite(x_end, "x_end")
    check_positive(num_samples=num_samples)
    check_key(key)
    k_start, k_walk = jax.random.split(key)
    many = jax.tree.map(lambda x: jnp.zeros((num_samples, *x.shape), x.dtype), x_end)
    white = white_noise(k_start, many)
    start = jax.tree.map(lambda w, m, c: m + c * w, white, prior.mean, prior.std)
    end = _End(sde, jnp.asarray(ts), solver, substeps)
    score = _Guided(prior, end, spread, scale)
    how = {"args": (x_end, args), "batch_axes": 1, "chunk_size": chunk_size}
    found = sample_posterior(prior.sde(), score, start, prior.ts, num_samples=1, key=k_walk, **how)
    samples = jax.tree.map(lambda x: x[:, 0], found.samples)
    return as_posterior(samples, len(prior.ts) - 1, ts[-1])


def search_scale(
    prior: DiffusionPrior,
    sde: SDE,
    truths: State,
    ends: State,
    ts: Float[Array, "times"],
    scales: Sequence[float],
    *,
    num_samples: int,
    key: PRNGKeyArray,
    **options: Any,
) -> tuple[float, dict[float, float]]:
    """Search the guidance scale on simulated pairs, by the CRPS of the starts.

    Parameters
    ----------
    prior : DiffusionPrior
        From `fit_diffusion_prior`.
    sde : SDE
        The process.
    truths, ends : pytree
        Starts and ends of simulated paths, leaves (cases, *state).
    ts : array (times,)
        Increasing times of the simulation.
    scales : sequence of float
        Strengths to try.
    num_samples : int
        Samples for each case, at least 2.
    key : PRNG key
        The same noise for every scale.
    **options
        Passed on to `guided_posterior`: ``spread``, ``solver``, ...

    Returns
    -------
    tuple (float, dict)
        The best scale, and the mean CRPS of each (inf where samples were lost).

    Raises
    ------
    ValueError
        If there is no scale, or fewer than 2 samples.
    """
    cases = check_samples(truths, "truths")
    check_positive(least=2, num_samples=num_samples)
    if not len(scales):
        raise ValueError("scales must hold at least one number, got none")
    keys = jax.random.split(key, cases)

    @jax.jit
    def score_of(scale: Array) -> Array:
        def one(case: tuple) -> Array:
            truth, x_end, key = case
            found = guided_posterior(
                prior, sde, x_end, ts, num_samples=num_samples, key=key, scale=scale, **options
            )
            each = jax.tree.map(crps_ensemble, found.samples, truth)
            return jnp.mean(jnp.concatenate([c.ravel() for c in jax.tree.leaves(each)]))

        return jnp.mean(jax.lax.map(one, (truths, ends, keys)))

    values = {scale: float(score_of(jnp.asarray(scale, float))) for scale in scales}
    values = {scale: v if np.isfinite(v) else float("inf") for scale, v in values.items()}
    return min(values, key=lambda scale: values[scale]), values
