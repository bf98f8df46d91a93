"""What a backward kernel knows beside its network, and what it shows the network of a state."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from smdp_jax.scores.blocks import Transform, matvec
from smdp_jax.scores.regression import Regression
from smdp_jax.sde import Args, FlowMap, Scalar, State
from smdp_jax.solve.condition_splines import Hats
from smdp_jax.solve.terms import white_noise


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KernelTables:
    """All that a kernel knows beside its network.

    ``groups``: a ``Regression`` per grid of the state, with a leading axis of steps. ``size``: mean
    and standard deviation of the states, ``largest``: that of the whitened misses of the linear
    part on the paths, one number per leaf. ``noise``: g sqrt(dt), leaves (steps,). ``probe``: a
    state, its conditions, and the physics there, which tell one process from another. ``physics(t1,
    t0, x, args)`` is one step back (None: b is x itself), and ``moved`` its largest change of an
    entry on the paths, leaves (steps,). With ``spread`` the network says how the noise depends on
    the state, too, along so many ``directions``.
    """

    ts: Any
    groups: tuple[Regression, ...]
    hats: Hats
    size: tuple[Any, Any]
    noise: Any
    probe: tuple[Any, Any, Any]
    largest: Any
    transform: Transform = field(metadata={"static": True})
    spread: bool = field(metadata={"static": True})
    physics: FlowMap | None = field(metadata={"static": True})
    moved: Any = None
    directions: int = field(default=0, metadata={"static": True})


def base_of(tables: KernelTables, step: Any, x: State, args: Args) -> State:
    """b: the later state, brought back by no more than the physics did on some path."""
    if tables.physics is None:
        return x
    ts, moved = tables.ts, tables.moved
    back = tables.physics(ts[step + 1], ts[step], x, args)
    if moved is None:
        return back
    return jax.tree.map(lambda x, b, m: x + jnp.clip(b - x, -m[step], m[step]), x, back, moved)


def inputs(tables: KernelTables, step: Any, x: State) -> tuple[Scalar, State, State]:
    """Time, a later state over its size, and the same with the covariance of its blocks out."""
    groups = jax.tree.map(lambda v: v[step], tables.groups)
    blocks = tables.transform.to(x)
    white = tuple(matvec(g.whitener, b - g.later_mean) for g, b in zip(groups, blocks, strict=True))
    ts = tables.ts
    t = (ts[step + 1] - ts[0]) / (ts[-1] - ts[0])
    scaled = jax.tree.map(lambda x, m, s: (x - m) / s, x, *tables.size)
    return t, scaled, tables.transform.back(white, x)


def with_input_noise(
    tables: KernelTables, key: PRNGKeyArray, step: Any, x: State, sigma: Any
) -> State:
    """Add sigma times the noise of one step of the process to a later state."""
    noisy = lambda x, z, n: x + jnp.asarray(sigma, x.dtype) * n[step] * z
    return jax.tree.map(noisy, x, white_noise(key, x), tables.noise)
