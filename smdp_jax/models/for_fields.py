"""A network for whatever state the paths have, so that nothing need be chosen."""

import math
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from smdp_jax.models.dilated_resnet import DilatedResNet
from smdp_jax.models.mlp import MLP
from smdp_jax.trajectories import Trajectories, TrajectoryStream, as_stream, filled, grid_axes

_FEW_ENTRIES = 16
_FEW_PATHS = 300
# A field that is not alike everywhere is best seen as a whole where paths are many for its numbers.
_WHOLE_ENTRIES, _MANY_PATHS = 64, 2000
_LOOKED_AT = 256


def for_fields(data: Trajectories | TrajectoryStream | Iterable[Trajectories]) -> nn.Module:
    """Choose a network from the shape of the states, their periodicity and the number of paths.

    Fields get a ``DilatedResNet`` of as many channels as their grid and the number of paths bear.
    It is periodic where neighbours across the ends of the grid differ no more than others do, and
    sees coordinates where it is not, or where the mean of the paths differs between points. States
    of up to 16 numbers, and those without a grid, get an ``MLP``, which sees all of them at once;
    so do fields of up to 64 that are not periodic and alike everywhere, from 2000 paths on.

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
    if not jax.tree.leaves(data.xs) or data.num_samples == 0:
        raise ValueError(f"for_fields needs paths, got {data.xs}")
    number, data = getattr(source, "num_samples", data.num_samples), filled(data)
    x = data.at(0, 0)
    axes = grid_axes(x)
    entries = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(x))
    if axes == 0 or entries <= _FEW_ENTRIES:
        return MLP((64, 64, 64), time_features="log_fourier")
    if axes > 3:
        raise ValueError(f"for_fields knows grids of up to 3 axes, got {axes}: choose a network")
    cells = max(math.prod(leaf.shape[:axes]) for leaf in jax.tree.leaves(x))
    fields = [_some(leaf, axes) for leaf in jax.tree.leaves(data.xs)]
    periodic = all(_periodic(field, axes) for field in fields)
    alike = periodic and all(_alike(field, axes) for field in fields)
    if not alike and entries <= _WHOLE_ENTRIES and number >= _MANY_PATHS:
        return MLP((192, 192, 192), time_features="log_fourier")
    channels = 32 if cells <= 1024 else 24 if cells <= 4096 else 16
    if number < _FEW_PATHS:
        channels = max(channels // 2, 8)
    return DilatedResNet(
        dims=axes,
        channels=channels,
        blocks=2,
        padding="periodic" if periodic else "reflect",
        coordinates=not alike,
    )


def _first(data: Any) -> Trajectories:
    """The paths, or the first block of a stream."""
    source = as_stream(data)
    return next(iter(source.blocks(jax.random.key(0)))) if hasattr(source, "blocks") else source


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
