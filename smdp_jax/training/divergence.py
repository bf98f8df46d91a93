"""Why an update left the finite numbers: the simulator, the conditions, the noise, or the loss."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smdp_jax.training.updates import Fixed, Problem, TrainingState, Windows
from smdp_jax.trajectories import window

__all__ = ["TrainingDiverged", "reason_of"]


class TrainingDiverged(FloatingPointError):
    """An update left the finite numbers; the message says by what."""


_REMEDY = (
    "try a smaller learning rate, optax.clip_by_global_norm, shorter windows, or smaller steps"
)


def reason_of(
    problem: Problem, state: TrainingState, fixed: Fixed, source: Windows, steps: int
) -> str:
    """Look again at the batch that the next update takes, piece by piece."""
    sde, data = problem.sde, source.data
    key = jax.random.fold_in(source.key, state.step)
    learned = problem.learned(state.params, fixed)

    @jax.jit
    def look(source: Windows) -> dict[str, Any]:
        def one(sample: Any, start: Any, key: Any) -> dict[str, Any]:
            piece = window(source.data, sample, start, steps)
            args, last = piece.args, piece.ts.shape[0] - 1
            x = jax.tree.map(lambda x: x[last], piece.xs)
            found: dict[str, Any] = {"args": args}
            if last > 0:
                t0, t1 = piece.ts[last - 1], piece.ts[last]
                if sde.drift is not None:
                    found["drift"] = sde.drift(t1, x, args)
                elif sde.step is not None and sde.inverse is not None:
                    early = jax.tree.map(lambda x: x[last - 1], piece.xs)
                    found["step"] = sde.step(t0, t1, early, args)
                    found["inverse"] = sde.inverse(t1, t0, x, args)
            found["loss"] = problem.objective.loss(learned, sde, piece, source.constants, key)
            return found

        def finite(name: str, tree: Any) -> Any:
            leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
            good = [jnp.isfinite(x).reshape(x.shape[0], -1).all(axis=1) for x in leaves]
            return jnp.stack(good).all(axis=0) if good else jnp.ones(problem.batch_size, bool)

        samples, starts, keys = problem.places(source.data, key, steps)
        found = jax.vmap(one)(samples, starts, keys)
        return {"samples": samples, "starts": starts} | {n: finite(n, v) for n, v in found.items()}

    seen = jax.device_get(look(source))
    times = np.asarray(data.ts)[seen["starts"] + steps]

    def bad(name: str) -> str | None:
        wrong = np.flatnonzero(~seen.get(name, np.ones(1, bool)))
        return f"sample {seen['samples'][wrong[0]]}, t={times[wrong[0]]:g}" if wrong.size else None

    if where := bad("args"):
        return f"the conditions (args) are not finite, first in {where}"
    for name in ("drift", "step", "inverse"):
        if where := bad(name):
            return (
                f"SDE.{name} is not finite on the training paths, first in {where}: mend the "
                "simulator there, or leave these paths out; the learning rate is not to blame"
            )
    if where := bad("loss"):
        return f"the loss is not finite, first in the window to {where}; {_REMEDY}"
    return f"a parameter became NaN or infinite, by a gradient or by the optimiser; {_REMEDY}"
