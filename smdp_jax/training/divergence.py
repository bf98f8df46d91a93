"""Why an update left the finite numbers: the simulator, the conditions, the noise, or the loss."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smdp_jax.checks import finite_rows
from smdp_jax.sde import SDE
from smdp_jax.training.shares import Windows
from smdp_jax.training.updates import Fixed, Problem, TrainingState
from smdp_jax.trajectories import Trajectories


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
            piece = problem.objective.cut(source.data, sample, start, steps)
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
            return finite_rows(leaves) if leaves else jnp.ones(len(rows), bool)

        rows, starts, keys = problem.all_places(source, key, steps)
        found = jax.vmap(one)(rows, starts, keys)
        samples = jnp.asarray(problem.shares(source).rows.reshape(-1))[rows]
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
        lost = f"the loss is not finite, first in the window to {where}; {_REMEDY}"
        return _noise_too_small(sde, data) or lost
    return f"a parameter became NaN or infinite, by a gradient or by the optimiser; {_REMEDY}"


def _noise_too_small(sde: SDE, data: Trajectories) -> str | None:
    """Say so where a step's noise underflows when squared, or is lost in the states' rounding."""
    if sde.deterministic:
        return None
    g = jax.vmap(lambda t0, t1: sde.g_of_step(t0, t1, data.at(0, 0)))(data.ts[:-1], data.ts[1:])
    roots = np.sqrt(np.diff(np.asarray(data.ts, float)))
    for amplitude, x in zip(jax.tree.leaves(g), jax.tree.leaves(data.xs), strict=True):
        noise, size = np.asarray(amplitude, float) * roots, float(jnp.abs(x).mean())
        least = noise[noise > 0].min(initial=np.inf)
        kind = jnp.finfo(x.dtype)
        if least**2 < float(kind.tiny) or least < float(kind.eps) * size:
            return (
                f"the noise of a step, g sqrt(dt) = {least:.3g}, is too small for {x.dtype} states "
                f"of size {size:.3g}: scale the states, or compute in float64"
            )
    return None
