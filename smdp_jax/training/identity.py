"""What tells one training run from another, so that only the same one is resumed."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray

from smdp_jax.files import digest_of
from smdp_jax.sde import SDE
from smdp_jax.training.updates import Problem
from smdp_jax.trajectories import Trajectories

__all__ = ["identity_of"]


def identity_of(
    problem: Problem,
    params: Any,
    data: Trajectories,
    steps: int,
    key: PRNGKeyArray,
    initial: Any = None,
) -> dict[str, Any]:
    """Describe a training run by values that survive a restart of the process."""

    def describe(part: Any) -> str:
        # Functions print their address, which is another one after a restart.
        return re.sub(r" at 0x[0-9a-f]+", "", repr(part))

    return {
        "model": describe(problem.model),
        "precondition": problem.preconditioner is not None,
        "objective": describe(problem.objective),
        "optimizer": _optimizer_fingerprint(problem.optimizer, params),
        "process": f"moves {_first_move(problem.sde, data):.3g}",
        "steps": steps,
        "batch_size": problem.batch_size,
        "ema": problem.ema,
        "samples": data.num_samples,
        "times": data.num_times,
        "data": digest_of(jax.tree.leaves(data)),
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "initial": None if initial is None else digest_of(jax.tree.leaves(initial)),
    }


def _optimizer_fingerprint(optimizer: optax.GradientTransformation, params: Any) -> str:
    """Norm of the update from gradients of 1, and kinds of state: closures show nothing else."""

    def first_update(params: Any) -> jax.Array:
        ones = jax.tree.map(jnp.ones_like, params)
        return optax.tree.norm(optimizer.update(ones, optimizer.init(params), params)[0])

    with jax.numpy_dtype_promotion("standard"):
        size = float(jax.jit(first_update)(params))
        state = jax.eval_shape(optimizer.init, params)
    parts = jax.tree.leaves(state, is_leaf=lambda part: hasattr(part, "_fields"))
    return f"first update {size:.3g}, {', '.join(type(part).__name__ for part in parts)}"


def _first_move(sde: SDE, data: Trajectories) -> float:
    """Norm of drift, or of a step, and noise amplitude at the end of the first path."""

    def move(t0: jax.Array, t1: jax.Array, x: Any, args: Any) -> jax.Array:
        moved = sde.step(t0, t1, x, args) if sde.step else sde.drift(t1, x, args)  # pyright: ignore[reportOptionalCall]
        return optax.tree.norm((moved, sde.g(t1, x)))

    # Leaves of a state may differ in dtype.
    with jax.numpy_dtype_promotion("standard"):
        return float(jax.jit(move)(data.ts[-2], data.ts[-1], data.at(0, -1), data.args_of(0)))
