"""What ``fit`` takes where nothing is named."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from smdp_jax.objectives import BackwardKernel, Objective
from smdp_jax.trajectories import Trajectories


def or_defaults(
    objective: Any, optimizer: Any, batch_size: Any, data: Any, model: Any, steps: Any
) -> tuple[Objective, optax.GradientTransformation, int]:
    """Fill in what is None; a backward kernel is stable on simulators that nobody tuned to."""
    objective = BackwardKernel() if objective is None else objective
    optimizer = _optimizer(objective, steps) if optimizer is None else optimizer
    size = _batch(objective, data, model) if batch_size is None else batch_size
    return objective, optimizer, size


def _optimizer(objective: Any, steps: Any) -> optax.GradientTransformation:
    """Muon (Jordan 2024) for kernels, four times as fast there; else Adam on one flat array.

    Rates fall to 0 as a cosine.
    """

    def rate(first: float) -> Any:
        falls = isinstance(steps, int) and steps > 0
        return optax.cosine_decay_schedule(first, steps) if falls else first

    if isinstance(objective, BackwardKernel):
        return optax.contrib.muon(rate(1e-2), muon_weight_dimension_numbers=_matrices)
    return optax.flatten(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate(2e-3))))


def _matrices(params: Any) -> Any:
    """Which parameters are matrices: the last axis is what they return; the others go to Adam."""

    def axes(x: Any) -> Any:
        if x.ndim < 2 or jnp.iscomplexobj(x):
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), (x.ndim - 1,))

    return jax.tree.map(axes, params)


def _batch(objective: Any, data: Any, model: Any) -> int:
    """Windows per update: fewer of them where each holds many entries, and each costs more."""
    if not (isinstance(objective, BackwardKernel) and isinstance(data, Trajectories)):
        return 256
    entries = sum(leaf.size for leaf in jax.tree.leaves(data.at(0, 0)))
    return min(max(getattr(model, "batch_entries", 4096) // entries, 16), 512)


def in_dtype(model: Any, dtype: Any) -> Any:
    """A copy of a network, or of one that wraps it, that transforms fields in this dtype."""
    names = {f.name for f in dataclasses.fields(model)} if isinstance(model, nn.Module) else ()
    if "dtype" in names:
        return model.clone(dtype=dtype)
    for name in names:
        if name != "parent" and isinstance(inner := getattr(model, name), nn.Module):
            return model.clone(**{name: in_dtype(inner, dtype)})
    got = type(model).__name__
    raise TypeError(f"dtype must be given for a network on fields, such as UNet(), got {got}")
