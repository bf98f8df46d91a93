r"""Guided diffusion: a diffusion model of starts that knows no simulator, guided through one.

    s + scale * grad_x log N(x_T; F(x0_hat(t, x)), r^2)

s the score of the diffused starts, x0_hat the mean of the start given x by Tweedie's formula, F the
simulation without noise, r the spread that the noise gives its end (diffusion posterior sampling,
Chung et al. 2023, eq. 16). Normalised, as in their algorithm 1, the push is bounded: it is the
gradient of ``-sqrt(n) |e|``, e the miss over r in n entries, which is that of ``-|e|^2 / 2`` where
``|e|^2 = n``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.baselines.diffusion_prior import DiffusionPrior
from smdp_jax.baselines.parts import as_posterior, check_asked, half_square
from smdp_jax.checks import check_holds, check_key, check_positive, check_samples
from smdp_jax.evaluate.ensembles import crps_ensemble
from smdp_jax.posterior.sampling import Posterior, sample_posterior
from smdp_jax.sde import SDE, Args, Scalar, State
from smdp_jax.solve.noise_free import NoiseFree
from smdp_jax.solve.terms import white_noise


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Guided:
    """Score of the diffused start, pushed towards what explains ``args``' end state."""

    prior: DiffusionPrior
    end: Any
    spread: Any
    scale: Any
    normalised: bool = field(default=False, metadata={"static": True})

    def __call__(self, t: Scalar, x: State, args: Args) -> State:
        x_end, own = args

        def log_likelihood(x: State) -> tuple[Array, State]:
            s = self.prior.score(t, x, None)
            found = self.end(self.prior.clean(t, x, s), own)
            miss = half_square(jax.tree.map(jnp.subtract, found, x_end), self.spread)
            if self.normalised:
                entries = sum(leaf.size for leaf in jax.tree.leaves(x_end))
                miss = jnp.sqrt(2 * entries * (miss + jnp.finfo(miss.dtype).tiny))
            return -miss, s

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
    normalised: bool = False,
    args: Args = None,
    solver: diffrax.AbstractSolver[Any] | None = None,
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
    x_end, ts : pytree, array (times,)
        Observed state at ``ts[-1]``, unbatched; increasing times of the simulation.
    num_samples, key, spread
        How many samples; the noise of their diffusion; spread of the end given the start, in units
        of the state, a number or a pytree, see `end_spread`.
    scale, normalised : number, bool
        Strength of the guidance, best searched (`search_scale`); whether the push is divided by the
        size of the miss: where the noise is small, nothing else is stable.
    args, solver, substeps, chunk_size
        Of the simulation: conditions, default Heun for drifts, steps per interval of ``ts``;
        samples at once, default all.

    Returns
    -------
    Posterior
        Samples (num_samples, *state).
    """
    check_asked(sde, x_end, ts, num_samples=num_samples)
    check_key(key)
    k_start, k_walk = jax.random.split(key)
    many = jax.tree.map(lambda x: jnp.zeros((num_samples, *x.shape), x.dtype), x_end)
    white = white_noise(k_start, many)
    start = jax.tree.map(lambda w, m, c: m + c * w, white, prior.mean, prior.std)
    end = NoiseFree(sde, jnp.asarray(ts), solver, substeps)
    score = Guided(prior, end, spread, scale, normalised)
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
    prior, sde
        As for `guided_posterior`.
    truths, ends, ts : pytree, pytree, array (times,)
        Starts and ends of simulated paths, leaves (cases, *state), and their times.
    scales : sequence of float
        Strengths to try, at least one.
    num_samples, key
        Samples for each case, at least 2; the same noise for every scale.
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
    check_holds("scales", len(scales), 1, "number")
    keys = jax.random.split(key, cases)

    @jax.jit
    def score_of(scale: Array) -> Array:
        def one(case: tuple) -> Array:
            truth, x_end, key = case
            how = {"num_samples": num_samples, "key": key, "scale": scale} | options
            found = guided_posterior(prior, sde, x_end, ts, **how)
            each = jax.tree.map(crps_ensemble, found.samples, truth)
            return jnp.mean(jnp.concatenate([c.ravel() for c in jax.tree.leaves(each)]))

        return jnp.mean(jax.lax.map(one, (truths, ends, keys)))

    values = {scale: float(score_of(jnp.asarray(scale, float))) for scale in scales}
    values = {scale: v if np.isfinite(v) else np.inf for scale, v in values.items()}
    return min(values, key=lambda scale: values[scale]), values
