"""Estimate the linear part of a backward kernel from paths, in the blocks that suit them."""

from dataclasses import replace
from typing import Any, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.checks import check_holds, check_that, not_finite
from smdp_jax.scores import blocks
from smdp_jax.scores.choice import best_base, best_transform
from smdp_jax.scores.kernel import LearnedKernel
from smdp_jax.scores.moments import Base, check_base, physics_of, tables_of
from smdp_jax.scores.seen import SeenRange
from smdp_jax.scores.tables import KernelTables, base_of
from smdp_jax.sde import SDE
from smdp_jax.solve.process import check_process
from smdp_jax.trajectories import Trajectories, grid_axes

_LEAST_PATHS = 8


def kernel_tables(
    sde: SDE,
    data: Trajectories,
    transform: Any = "auto",
    *,
    base: Base = "auto",
    axes: int | None = None,
    input_noise: float = 0.0,
    network: bool = False,
    spread: bool = False,
    directions: int = 0,
    key: PRNGKeyArray,
) -> KernelTables:
    """Estimate gains and covariances of every step, for a network to come or to stand alone."""
    x = data.at(0, 0)
    check_holds("data for a backward kernel", data.num_samples, _LEAST_PATHS, "paths")
    if axes is None:  # of what has one: numbers beside a field are a group of their own
        axes = grid_axes([leaf for leaf in jax.tree.leaves(x) if leaf.ndim] or [jnp.zeros(())])
    if transform == "auto":
        chosen = best_transform(sde, data, axes, network)
    elif isinstance(transform, str):
        said = f"BackwardKernel.transform must be 'auto', one of {get_args(blocks.Kind)}, or a pair"
        check_that(transform in get_args(blocks.Kind), f"{said} (forward, inverse)", transform)
        chosen = blocks.named(cast(blocks.Kind, transform), axes)
    else:
        chosen = blocks.Custom(axes, *transform)
        blocks.check_unitary(chosen, x)
    if base == "auto":
        base = best_base(sde, data, chosen)
    tables = tables_of(sde, data, chosen, physics_of(sde, base), input_noise, key, spread=spread)
    if not_finite(tables.groups, "groups"):
        raise ValueError(_why_not_finite(sde, tables, data))
    return replace(tables, directions=directions)


def _why_not_finite(sde: SDE, tables: KernelTables, data: Trajectories) -> str:
    """Say which path the physics can't bring back; if none, numbers are too large to square."""
    bare = replace(tables, moved=None)

    @jax.jit
    def brought_back(data: Trajectories) -> Array:
        def finite(i: Array, step: Array) -> Array:
            back = base_of(bare, step, data.at(i, step + 1), data.args_of(i))
            return jnp.stack([jnp.isfinite(v).all() for v in jax.tree.leaves(back)]).all()

        of_path = lambda i: jax.vmap(lambda n: finite(i, n))(jnp.arange(data.num_times - 1))
        return jax.lax.map(of_path, jnp.arange(data.num_samples))

    if (bad := np.argwhere(~np.asarray(brought_back(data)))).size:
        name, (sample, step) = "inverse" if sde.drift is None else "drift", bad[0]
        where = f"sample {sample}, t={float(data.ts[step + 1]):g}"
        said = f"SDE.{name} is not finite on the paths, first in {where}: mend the simulator there"
        return f'{said}, leave these paths out, or take base="state"'
    return "the covariances of the paths must be finite: scale the states, or compute in float64"


def estimate_kernel(
    sde: SDE,
    data: Trajectories,
    *,
    transform: Any = "auto",
    base: Base = "auto",
    grid_axes: int | None = None,
) -> LearnedKernel:
    """Estimate a backward kernel from paths, without a network.

    Exact for linear processes with Gaussian data, whatever the steps, where the transform leaves
    the blocks uncorrelated. In general it is the linear part of what ``BackwardKernel()`` learns.

    Parameters
    ----------
    sde : SDE
        The process that the paths follow.
    data : Trajectories
        Paths at the times that are to be walked back.
    transform, base, grid_axes
        As for ``BackwardKernel``.

    Returns
    -------
    LearnedKernel
        For ``sample_posterior``.

    Raises
    ------
    ValueError
        If there are too few paths, the base is unknown, or the transform is, or is not unitary; if
        the inverse physics or the paths' covariances are not finite (which path).
    """
    check_base("base", base)
    data.check()
    check_process(sde, data.ts, data.at(0, -1), data.args_of(0))
    data = jax.tree.map(jnp.asarray, data)
    tables = kernel_tables(sde, data, transform, base=base, axes=grid_axes, key=jax.random.key(0))
    return LearnedKernel(None, {}, tables, range=SeenRange.of(data))
