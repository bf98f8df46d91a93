"""A network for whatever state the paths have, so that nothing need be chosen."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from smdp_jax.checks import check_holds
from smdp_jax.models.dilated_resnet import DilatedResNet
from smdp_jax.models.layout import Conditions, cell_grid, everything
from smdp_jax.models.mlp import MLP
from smdp_jax.trajectories import Trajectories, TrajectoryStream, as_stream, filled, grid_axes

_FEW_ENTRIES = 16
_FEW_PATHS = 300
# A field that is not alike everywhere is best seen as a whole where paths are many for its numbers.
_WHOLE_ENTRIES, _MANY_PATHS = 64, 2000
_LOOKED_AT = 256
# Conditions of this size and about 0, or not much farther off, are seen as they are.
_OWN_SIZE = 0.15, 3.0
_OWN_ENTRIES = 16


@dataclass(frozen=True)
class InUnits:
    """Conditions less a mean, over a size, leaf by leaf, or entry by entry of small leaves."""

    means: tuple[tuple[float, ...], ...]
    sizes: tuple[tuple[float, ...], ...]

    def __call__(self, args: Any) -> Any:
        """Return a tree like ``args``; what follows the leaves known is left as it is."""
        leaves, tree = jax.tree.flatten(args)
        if len(leaves) < len(self.means):
            raise ValueError(f"args must have {len(self.means)} leaves, got {len(leaves)}")
        for i, (mean, size) in enumerate(zip(self.means, self.sizes, strict=True)):
            if any(mean) or set(size) != {1.0}:
                x = jnp.asarray(leaves[i]).astype(jnp.result_type(float, leaves[i]))
                shape = x.shape if len(mean) > 1 else ()
                off, unit = (jnp.asarray(part, x.dtype).reshape(shape) for part in (mean, size))
                leaves[i] = (x - off) / unit
        return jax.tree.unflatten(tree, leaves)


def for_fields(data: Trajectories | TrajectoryStream | Iterable[Trajectories]) -> nn.Module:
    """Choose a network from the shape of the states, their periodicity and the number of paths.

    Fields get a ``DilatedResNet`` of as many channels as their grid and the number of paths bear.
    It is periodic where neighbours across the ends of the grid differ no more than others do, and
    sees coordinates where it is not, or where the mean of the paths differs between points. States
    of up to 16 numbers, and those on no one grid, get an ``MLP``, which sees all at once;
    so do fields of up to 64 that are not periodic and alike everywhere, from 2000 paths on.
    Conditions that are far from 0 or of another size than 1 are shown in units of their own.

    Parameters
    ----------
    data : Trajectories or stream
        The paths to learn from; of a stream, or an iterable of blocks, the first one is looked at.

    Returns
    -------
    flax.linen.Module
        Network ``model(t, x, args)``.

    Raises
    ------
    ValueError
        If there are no paths, or grids have more than three axes.
    """
    source, data = data, _first(data)
    check_holds("data", len(jax.tree.leaves(data.xs)) and data.num_samples, 1, "path")
    number, data = getattr(source, "num_samples", data.num_samples), filled(data)
    x = data.at(0, 0)
    axes = grid_axes(x)
    entries = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(x))
    seen = _seen(data)
    few = entries <= _FEW_ENTRIES
    how: dict[str, Any] = {"time_features": "log_fourier", "conditions": seen}
    if few or axes == 0 or not _on_one_grid(x, axes):
        return MLP((64,) * 3 if few else (192,) * 3, **how)
    if axes > 3:
        raise ValueError(f"for_fields knows grids of up to 3 axes, got {axes}: choose a network")
    cells = max(math.prod(leaf.shape[:axes]) for leaf in jax.tree.leaves(x))
    fields = [_some(leaf, axes) for leaf in jax.tree.leaves(data.xs)]
    periodic = all(_periodic(field, axes) for field in fields)
    alike = periodic and all(_alike(field, axes) for field in fields)
    if not alike and entries <= _WHOLE_ENTRIES and number >= _MANY_PATHS:
        return MLP((192,) * 3, **how)
    channels = 32 if cells <= 1024 else 24 if cells <= 4096 else 16
    if number < _FEW_PATHS:
        channels = max(channels // 2, 8)
    padding = "periodic" if periodic else "reflect"
    how |= {"dims": axes, "channels": channels, "padding": padding, "coordinates": not alike}
    return DilatedResNet(blocks=2, **how)


def _first(data: Any) -> Trajectories:
    """The paths, or the first block of a stream."""
    source = as_stream(data)
    return next(iter(source.blocks(jax.random.key(0)))) if hasattr(source, "blocks") else source


def _on_one_grid(x: Any, axes: int) -> bool:
    try:
        return bool(cell_grid(x, axes))
    except ValueError:
        return False


def _seen(data: Trajectories) -> Conditions:
    """Units for conditions, coarse enough that other paths of the same process have them, too."""
    paths = data.num_samples if data.args_axes is not None else 1
    units = []
    for leaf in jax.tree.leaves(data.args):
        values = np.asarray(leaf)
        if values.dtype.kind not in "fiu":
            units.append([(0.0, 1.0)])  # masks, and what the network will refuse
            continue
        rows = values.astype(float).reshape(paths, -1)[:_LOOKED_AT]
        units.append(_units(rows if rows.shape[1] <= _OWN_ENTRIES else rows.reshape(-1, 1)))
    if all(size == 1 and mean == 0 for unit in units for mean, size in unit):
        return everything
    return InUnits(*(tuple(tuple(u[i] for u in unit) for unit in units) for i in (0, 1)))


def _units(rows: np.ndarray) -> list[tuple[float, float]]:
    """Mean and size of every column; 0 and 1 where it is seen well as it is."""
    found = []
    least, most = _OWN_SIZE
    for mean, size in zip(rows.mean(axis=0), rows.std(axis=0), strict=True):
        varies = size > 1e-6 * abs(mean)
        near = abs(mean) <= most and (not varies or least <= size <= most)
        if near or not math.isfinite(mean + size):
            found.append((0.0, 1.0))
            continue
        unit = 2.0 ** round(math.log2(size)) if varies else abs(mean)
        found.append((float(round(mean / unit) * unit), unit))
    return found


def _some(leaf: Any, axes: int) -> np.ndarray:
    """States (paths, *grid, channels) of some paths at the middle of the times."""
    some = np.asarray(leaf[:_LOOKED_AT, leaf.shape[1] // 2])
    return some.reshape(*some.shape[: 1 + axes], -1)


def _periodic(field: np.ndarray, axes: int) -> bool:
    """Whether the step across the ends is like the steps between neighbours."""
    for axis in range(1, 1 + axes):
        if field.shape[axis] < 3:
            return False
        inner = np.mean(np.diff(field, axis=axis) ** 2)
        across = np.mean((np.take(field, 0, axis) - np.take(field, -1, axis)) ** 2)
        if across > 3 * inner:
            return False
    return True


def _alike(field: np.ndarray, axes: int) -> bool:
    """Whether the mean over paths differs between points by no more than chance."""
    mean, variance = field.mean(axis=0), field.var(axis=0)
    grid = tuple(range(axes))
    differs = ((mean - mean.mean(axis=grid)) ** 2).mean(axis=grid)
    chance = variance.mean(axis=grid) / len(field)
    return bool((differs <= 5 * chance).all())
