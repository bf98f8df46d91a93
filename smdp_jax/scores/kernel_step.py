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
from smdp_jax.scores.tables import KernelTables, inputs
from smdp_jax.sde import Args, Scalar, State
from smdp_jax.solve.terms import white_noise

# The noise of a state may be less by a factor of up to e^4 (near a bound paths hardly differ), but
# larger by e^2 at most: the chain can't run off.
_LEAST, _LARGEST = 4.0, 2.0


def residual(
    kernel: Any, step: Any, earlier: State, later: State, args: Args
) -> tuple[State, State]:
    """What the mean misses, in units of the linear part's covariance, and its log size."""
    explained, scale = remainder(kernel, step, later, args)
    missed = whitened(kernel, step, earlier, later, args)
    return jax.tree.map(jnp.subtract, missed, explained), scale


def whitened(kernel: Any, step: Any, earlier: State, later: State, args: Args) -> State:
    """What the linear part misses, in units of its covariance."""
    transform = kernel.tables.transform
    centre, factors = linear(kernel, step, later, args)
    white = tuple(
        solve_lower(factor, z - m)
        for factor, z, m in zip(factors, transform.to(earlier), centre, strict=True)
    )
    return transform.back(white, earlier)


def remainder(kernel: Any, step: Any, x: State, args: Args) -> tuple[State, State]:
    """Evaluate the network: N in units of the linear part's covariance, and h of the noise."""
    nothing = jax.tree.map(jnp.zeros_like, x)
    if kernel.model is None:
        return nothing, nothing

    def asked(flag: int) -> Any:
        seen = shown(kernel.model, kernel.tables, step, x, args, flag)
        return apply_network(kernel.model, kernel.variables, *seen)

    if not kernel.tables.spread:
        mean, scale = asked(0), nothing
    elif takes_trees(kernel.model):
        mean, scale = asked(0)
    else:
        mean, scale = asked(0), asked(1)
    # No remainder is larger than what some path of the data missed: the chain can't run off.
    mean = jax.tree.map(_bounded, mean, kernel.tables.largest)
    scale = jax.tree.map(
        lambda h: jnp.where(h < 0, _bounded(h, _LEAST), _bounded(h, _LARGEST)), scale
    )
    if kernel.trust is None:
        return mean, scale
    shares = zip((mean, scale), kernel.trust, strict=True)
    mean, scale = (jax.tree.map(lambda v, a=a: a.astype(v.dtype) * v, part) for part, a in shares)
    return mean, scale


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
        return t, (scaled, white), args
    return t, scaled, (args, white, jnp.full_like(t, flag))


def _bounded(values: Array, largest: Any) -> Array:
    """Keep values within a bound, smoothly."""
    largest = jnp.asarray(largest, values.dtype)
    return largest * jnp.tanh(values / largest)


def draw(
    kernel: Any,
    key: PRNGKeyArray,
    step: Any,
    x: State,
    args: Args,
    amplitude: Any = None,
) -> tuple[State, State]:
    """Draw the earlier state, and return the remainder beside it."""
    transform = kernel.tables.transform
    centre, factors = linear(kernel, step, x, args)
    explained, scale = remainder(kernel, step, x, args)
    noise = white_noise(key, x)
    if amplitude is not None:
        noise = jax.tree.map(lambda n: amplitude.astype(n.dtype) * n, noise)
    kick = transform.back(coloured(kernel, step, transform.to(noise)), x)
    white = transform.to(jax.tree.map(lambda n, h, k: n + k * jnp.exp(h), explained, scale, kick))
    return state_of(kernel, centre, factors, white, x), explained


def linear(kernel: Any, step: Any, x: State, args: Args) -> tuple[Blocks, Blocks]:
    """Mean of the linear part, and the factors of its covariance, in blocks."""
    tables = kernel.tables
    base = x
    if tables.physics is not None:
        base = tables.physics(tables.ts[step + 1], tables.ts[step], x, args)
    blocks = tables.transform.to(base)
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
