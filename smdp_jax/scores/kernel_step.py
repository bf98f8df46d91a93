"""One step of a backward kernel: its linear part, what its network adds, and draws of it.

``kernel`` is a ``LearnedKernel``; the formula stands there.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.scores.blocks import Blocks, matvec
from smdp_jax.scores.learned import apply_network
from smdp_jax.scores.regression import solve_lower
from smdp_jax.scores.state_noise import StateNoise, bounded, bounded_noise
from smdp_jax.scores.tables import KernelTables, base_of, inputs
from smdp_jax.sde import Args, Scalar, State
from smdp_jax.solve.terms import white_noise


def residual(
    kernel: Any, step: Any, earlier: State, later: State, args: Args
) -> tuple[State, StateNoise]:
    """What the mean misses, in units of the linear part's covariance, and S."""
    explained, noise = remainder(kernel, step, later, args)
    missed = whitened(kernel, step, earlier, later, args)
    return jax.tree.map(jnp.subtract, missed, explained), noise


def whitened(kernel: Any, step: Any, earlier: State, later: State, args: Args) -> State:
    """What the linear part misses, in units of its covariance."""
    transform = kernel.tables.transform
    centre, factors = linear(kernel, step, later, args)
    white = tuple(
        solve_lower(factor, z - m)
        for factor, z, m in zip(factors, transform.to(earlier), centre, strict=True)
    )
    return transform.back(white, earlier)


def remainder(kernel: Any, step: Any, x: State, args: Args) -> tuple[State, StateNoise]:
    """Evaluate the network: N in units of the linear part's covariance, and S of the noise."""
    nothing = jax.tree.map(jnp.zeros_like, x)
    if kernel.model is None:
        return nothing, StateNoise(nothing)

    def asked(flag: int) -> Any:
        seen = shown(kernel.model, kernel.tables, step, x, args, flag)
        return apply_network(kernel.model, kernel.variables, *seen)

    directions: tuple[State, ...] = ()
    if not kernel.tables.spread:
        mean, logs = asked(0), nothing
    elif takes_trees(kernel.model):
        mean, logs, *rest = asked(0)
        directions = tuple(rest)
    else:
        mean, logs = asked(0), asked(1)
    # No remainder is larger than what some path of the data missed: the chain can't run off.
    mean = jax.tree.map(bounded, mean, kernel.tables.largest)
    noise = bounded_noise(logs, directions)
    if kernel.trust is None:
        return mean, noise
    share, of_noise, along = kernel.trust
    return jax.tree.map(lambda v: share.astype(v.dtype) * v, mean), noise.shared(of_noise, along)


def takes_trees(model: Any) -> bool:
    """Whether a network takes a pair of states for a state, and returns such a pair."""
    return getattr(model, "takes_trees", False)


def shown(
    model: Any, tables: KernelTables, step: Any, x: State, args: Args, flag: int = 0
) -> tuple[Scalar, Any, Args]:
    """Time, state and conditions as the network is shown them."""
    t, scaled, white = inputs(tables, step, x)
    if not tables.spread:
        return t, scaled, (args, white)
    if takes_trees(model):
        # Its result is like the state that it is shown: one more for each direction.
        return t, (scaled, white, *(jax.tree.map(jnp.zeros_like, x),) * tables.directions), args
    return t, scaled, (args, white, jnp.full_like(t, flag))


def draw(
    kernel: Any, key: PRNGKeyArray, step: Any, x: State, args: Args, amplitude: Any = None
) -> tuple[State, State]:
    """Draw the earlier state, and return the remainder beside it."""
    transform = kernel.tables.transform
    centre, factors = linear(kernel, step, x, args)
    explained, state_noise = remainder(kernel, step, x, args)
    noise = white_noise(key, x)
    if amplitude is not None:
        noise = jax.tree.map(lambda n: amplitude.astype(n.dtype) * n, noise)
    kick = state_noise.times(transform.back(coloured(kernel, step, transform.to(noise)), x))
    white = transform.to(jax.tree.map(jnp.add, explained, kick))
    return state_of(kernel, centre, factors, white, x), explained


def linear(kernel: Any, step: Any, x: State, args: Args) -> tuple[Blocks, Blocks]:
    """Mean of the linear part, and the factors of its covariance, in blocks."""
    tables = kernel.tables
    blocks = tables.transform.to(base_of(tables, step, x, args))
    groups = jax.tree.map(lambda v: v[step], tables.groups)
    features = tables.hats(args, jnp.abs(blocks[0]).dtype)
    centre, factors = [], []
    for group, b in zip(groups, blocks, strict=True):
        offset, gain, factor = group.at(features)
        centre.append(group.mean + offset + matvec(gain, b - group.base_mean))
        factors.append(factor)
    return tuple(centre), tuple(factors)


def log_determinants(factors: Array) -> Array:
    """Of lower triangular factors of blocks."""
    return jnp.log(jnp.diagonal(factors, axis1=-2, axis2=-1).real).sum(axis=-1)


def state_of(kernel: Any, centre: Blocks, factors: Blocks, white: Blocks, like: State) -> State:
    """Bring whitened blocks to a state, about the mean of the linear part."""
    moved = tuple(m + matvec(f, w) for m, f, w in zip(centre, factors, white, strict=True))
    return kernel.tables.transform.back(moved, like)


def roots_of(kernel: Any, step: Any, blocks: Blocks) -> Blocks:
    """R_j of every block."""
    if kernel.left is not None:
        return tuple(root[step] for root in kernel.left)
    return tuple(
        jnp.broadcast_to(jnp.eye(b.shape[1], dtype=b.dtype), (*b.shape, b.shape[1])) for b in blocks
    )


def coloured(kernel: Any, step: Any, blocks: Blocks) -> Blocks:
    """White noise times R_j."""
    if kernel.left is None:
        return blocks
    return tuple(matvec(root[step], b) for root, b in zip(kernel.left, blocks, strict=True))
