r"""Backward paths weighed against the simulator's own law of them.

``log w = log p_0(x_0) + sum_j [log N(x_{j+1}; F(x_j), Q) - log N(x_j; mu(x_{j+1}), Sigma)]`` has
``E[w] = p(x_T)``, whatever the score; ``E[log w]`` falls short of ``log p(x_T)`` by the
Kullback-Leibler distance of the sampler's paths from the posterior's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.sde import Args, ScoreFn, State
from smdp_jax.solve.flow_density import LogDensity
from smdp_jax.solve.particles import doubts, effective_size, log_mean_exp, over_particles, resampled
from smdp_jax.solve.transitions import StepKernel, Transitions


class PathWeights(eqx.Module):
    """The backward sampler from one end state."""

    ts: Array
    steps: Transitions
    prior: LogDensity = eqx.field(static=True)
    chunk_size: int | None = eqx.field(static=True)
    offset: int = eqx.field(static=True, default=0)
    """Step of a kernel's own grid at which ``ts`` begins."""

    def step(
        self, score: ScoreFn | StepKernel, key: PRNGKeyArray, j: Array, x1: State, args: Args
    ) -> tuple[State, Array]:
        """Draw the state at ``ts[j]``; forward over backward density of the step."""
        t0, t1 = self.ts[j], self.ts[j + 1]
        if isinstance(score, StepKernel):
            x0 = score.sample(key, self.offset + j, x1, args)
            density = jnp.asarray(score.log_density(self.offset + j, x0, x1, args))
        else:
            mean, spread = self.steps.backward(score, t1, t0, x1, args)
            flat, unravel = ravel_pytree(mean)
            white = unravel(jax.random.normal(key, flat.shape, flat.dtype))
            kick = spread.power(0.5, white)
            x0, density = jax.tree.map(jnp.add, mean, kick), spread.log_density(kick)
        onward, noise = self.steps.forward(t0, t1, x0, args)
        gain = noise.log_density(jax.tree.map(jnp.subtract, x1, onward))
        return x0, gain - density.astype(gain.dtype)

    def independent(
        self, score: ScoreFn | StepKernel, key: PRNGKeyArray, x_end: State, count: int, args: Args
    ) -> tuple[State, Array]:
        """States at ``ts[0]`` and log weights of ``count`` paths."""

        def path(key: PRNGKeyArray) -> tuple[State, Array]:
            def step(carry: tuple, j: Array) -> tuple[tuple, None]:
                x, total = carry
                x, gain = self.step(score, jax.random.fold_in(key, j), j, x, args)
                return (x, total + gain), None

            zero = jnp.zeros((), ravel_pytree(x_end)[0].dtype)
            (x, total), _ = jax.lax.scan(step, (x_end, zero), self._order())
            return x, total + self._start(x, args)

        return over_particles(path, jax.random.split(key, count), chunk_size=self.chunk_size)

    def resampled(
        self,
        score: ScoreFn | StepKernel,
        key: PRNGKeyArray,
        x_end: State,
        count: int,
        args: Args,
        reference: Callable[[Array, State], Array],
        threshold: float,
    ) -> "Resampled":
        """The same, resampled on the way; ``reference(j, x)`` guesses log p at ``ts[j]``."""

        def step(carry: tuple, j: Array) -> tuple[tuple, Array]:
            x, logs, evidence, doubt = carry
            k_move, k_pick = jax.random.split(jax.random.fold_in(key, j))

            def move(key: PRNGKeyArray, x1: State) -> tuple[State, Array]:
                x0, gain = self.step(score, key, j, x1, args)
                aim = jax.lax.cond(
                    j == 0, lambda x: self._start(x, args), lambda x: reference(j, x), x0
                )
                return x0, gain + aim - reference(j + 1, x1)

            x, gains = over_particles(
                move, jax.random.split(k_move, count), x, chunk_size=self.chunk_size
            )
            logs = logs + gains
            logs = jnp.where(jnp.isfinite(logs), logs, -jnp.inf)
            size = effective_size(logs)

            def resample(args: tuple) -> tuple:
                x, logs, evidence, doubt = args
                done = evidence + log_mean_exp(logs), doubt + doubts(logs)
                return *resampled(k_pick, x, logs), *done

            few = (size < threshold * count) & (j > 0)
            carry = jax.lax.cond(few, resample, lambda a: a, (x, logs, evidence, doubt))
            return carry, size

        zero = jnp.zeros((), ravel_pytree(x_end)[0].dtype)
        start = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *jnp.shape(x))), x_end)
        known = reference(jnp.asarray(len(self.ts) - 1), x_end).astype(zero.dtype)
        first = (start, jnp.zeros(count, zero.dtype), known, jnp.zeros(2, zero.dtype))
        (x, logs, evidence, doubt), sizes = jax.lax.scan(step, first, self._order())
        return Resampled(x, logs, evidence + log_mean_exp(logs), doubt + doubts(logs), sizes[::-1])

    def _order(self) -> Array:
        return jnp.arange(len(self.ts) - 1)[::-1]

    def _start(self, x: State, args: Args) -> Array:
        return jnp.asarray(self.prior(x, args)).astype(ravel_pytree(x)[0].dtype)


class Resampled(NamedTuple):
    """States at ``ts[0]``, weights since the last resampling, evidence, effective sizes by time."""

    x: Any
    log_weights: Array
    log_evidence: Array
    doubt: Array
    ess: Array
