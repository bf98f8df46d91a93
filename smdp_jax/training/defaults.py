"""What ``fit`` takes where nothing is named."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import optax

from smdp_jax.objectives import BackwardKernel, Objective
from smdp_jax.trajectories import Trajectories


def objective_of() -> Objective:
    """A backward kernel: stable on simulators that nobody tuned to."""
    return BackwardKernel()


def optimizer_of(steps: Any) -> optax.GradientTransformation:
    """Adam with a falling rate, and bounded gradients; on one flat array, for fewer operations."""
    rate = (
        optax.cosine_decay_schedule(2e-3, steps) if isinstance(steps, int) and steps > 0 else 2e-3
    )
    return optax.flatten(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)))


def batch_of(objective: Any, data: Any) -> int:
    """Windows per update: fewer of them where each holds many entries."""
    if not (isinstance(objective, BackwardKernel) and isinstance(data, Trajectories)):
        return 256
    entries = sum(leaf.size for leaf in jax.tree.leaves(data.at(0, 0)))
    return min(max(4096 // entries, 16), 512)


def in_dtype(model: Any, dtype: Any) -> Any:
    """A copy of a network, or of one that wraps it, that transforms fields in this dtype."""
    names = {f.name for f in dataclasses.fields(model)} if isinstance(model, nn.Module) else ()
    if "dtype" in names:
        return model.clone(dtype=dtype)
    for name in names:
        if name != "parent" and isinstance(inner := getattr(model, name), nn.Module):
            return model.clone(**{name: in_dtype(inner, dtype)})
    raise TypeError(
        f"dtype must be given for a network on fields, such as UNet(), got {type(model).__name__}"
    )
