"""What a ``GaussianStep`` takes for linear in a field, and whether Gaussians follow from it."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import eval_context
from jaxtyping import Array

from smdp_jax.compiled import once
from smdp_jax.sde import SDE, Args, ScoreFn, State
from smdp_jax.solve.backward import BackwardSolve
from smdp_jax.solve.gaussian import GaussianStep, bind
from smdp_jax.solve.gaussian_solver import is_mode
from smdp_jax.solve.linearise import Linearised, misfit_of, waves_of
from smdp_jax.solve.looked import Ends, told
from smdp_jax.solve.process import known

LINEAR = 1e-3
"""Share of the physics that may differ from its linear part."""


def with_linear_part(
    asked: BackwardSolve, step: GaussianStep, score: Any, ends: Ends
) -> BackwardSolve:
    """A step that was named without a linear part: with that of fields whose physics is linear."""
    (x, own), ts = ends.at(0), jnp.asarray(asked.ts)
    transform = waves_of(x)
    if step.linear is not None or asked.sde.linear is not None or transform is None:
        return asked
    found = replace(step, linear=Linearised(asked.sde, transform))

    def linear() -> bool:
        with eval_context():
            try:
                solver = bind(found, asked.sde, score, x)
                if getattr(solver.reference, "transform", None) is not None:
                    return False
                jax.eval_shape(lambda t: solver.moments(t, x, own), ts[0])
                misfit: Any = misfit_of(asked.sde, None, x, x, ts, own, transform).physics
            except Exception:  # a reference of other modes, or physics without derivatives
                return False
            return bool(np.asarray(misfit).max() < LINEAR)

    identity = ("linear part", *map(told, (asked.sde, step, asked.ts, score, (x, own))))
    return replace(asked, solver=found) if known.get(identity, linear) else asked


@once
def drift_of_variances(
    step: GaussianStep, sde: SDE, score: ScoreFn, x: State, ts: Array, args: Args
) -> Array:
    """Least and largest variance by a step's physics over that of the score, (steps, 2)."""
    solver = bind(step, sde, score, x)

    def at(i: Array) -> Array:
        modes = solver.coefficients(ts[i], ts[i + 1], x, args)
        variances = jax.tree.leaves(solver.variances(ts[i + 1], x, args))
        later = [mode.later for mode in jax.tree.leaves(modes, is_leaf=is_mode)]
        ratios = [a / b for a, b in zip(later, variances, strict=True)]
        return jnp.stack([f(jnp.stack([f(r) for r in ratios])) for f in (jnp.min, jnp.max)])

    return jax.lax.map(at, jnp.arange(ts.shape[0] - 1))
