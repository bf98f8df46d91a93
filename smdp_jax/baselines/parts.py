"""What the baselines share: distances, and samples with their diagnostics."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from smdp_jax.checks import check_finite, check_positive, finite_rows
from smdp_jax.posterior.sampling import Posterior
from smdp_jax.sde import SDE, Args, State
from smdp_jax.solve.backward import SolveInfo
from smdp_jax.solve.process import check_time_grid


def check_asked(sde: SDE, x_end: State, ts: Any, **counts: Any) -> None:
    """Check what is asked for: a grid, an end state that was observed, and counts."""
    check_time_grid(ts, sde)
    check_finite(x_end, "x_end")
    check_positive(**counts)


def at_rest(t: Any, x: State, args: Args) -> State:
    """No motion, as a drift; or no score."""
    return jax.tree.map(jnp.zeros_like, x)


def as_posterior(samples: State, evaluations: int, lost_at: Any) -> Posterior:
    """Samples (num_samples, *state), with which of them are finite."""
    kept = finite_rows(samples)
    times = jnp.where(kept, -jnp.inf, jnp.asarray(lost_at, float))
    none = jnp.zeros(kept.shape)
    return Posterior(samples, SolveInfo(jnp.full(kept.shape, evaluations), kept, none, times))


def half_square(miss: State, spread: State) -> Array:
    """``sum of (miss / spread)^2 / 2`` over all entries; spread a number, or one per leaf."""
    scaled = jax.tree.map(lambda m, s: m / jnp.asarray(s, m.dtype), miss, by_leaf(spread, miss))
    return sum((jnp.sum(v**2) for v in jax.tree.leaves(scaled)), jnp.zeros(())) / 2


def by_leaf(spread: State, x: State) -> State:
    """One number for all leaves of a state, or a tree of them as it is."""
    same = jax.tree.structure(spread) == jax.tree.structure(x)
    return spread if same else jax.tree.map(lambda _: spread, x)
