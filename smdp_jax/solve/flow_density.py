"""One state and its log density, carried along the probability flow."""

import math
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from smdp_jax.checks import check_that, concrete, finite_rows
from smdp_jax.sde import SDE, Args, ScoreFn, State
from smdp_jax.solve.integrate import integrate
from smdp_jax.solve.reversal import probability_flow_sde

LogDensity = Callable[[Any, Any], Any]
"""``prior(x, args)`` returns the log density at ``ts[0]`` of one state, in nats."""


class FlowDensity(eqx.Module):
    """One state and its log density, carried back along the probability flow."""

    sde: SDE = eqx.field(static=True)
    ts: Array
    prior: LogDensity = eqx.field(static=True)
    solver: diffrax.AbstractSolver[Any] | None
    substeps: int = eqx.field(static=True)
    probes: int | None = eqx.field(static=True)
    chunk: int | None = eqx.field(static=True)

    def __call__(
        self, score: ScoreFn, x: State, key: Any, args: Args
    ) -> tuple[Array, Array, State]:
        flow = probability_flow_sde(self.sde, score)
        flat, unravel = ravel_pytree(x)
        walk = self._by_step if flow.drift is None else self._by_drift
        start, growth = walk(flow, flat, unravel, key, args)
        values = jnp.asarray(self.prior(unravel(start), args)).astype(growth.dtype) + growth
        spread = jnp.std(values, ddof=1) if growth.size > 1 else jnp.zeros((), growth.dtype)
        error = spread / math.sqrt(growth.size)
        return values.mean(), error, unravel(start)

    def _by_drift(
        self, flow: SDE, flat: Array, unravel: Callable, key: Any, args: Args
    ) -> tuple[Array, Array]:
        """Carry ``-div f`` along, exactly or by one quadratic form per fixed probe."""
        velocity = flow.drift
        assert velocity is not None
        dims = flat.shape[0]
        if self.probes is None:
            rows, count = jnp.eye(dims, dtype=flat.dtype), 1
        else:
            rows, count = jax.random.rademacher(key, (self.probes, dims), flat.dtype), self.probes

        def augmented(tau: Any, state: Any, args: Args) -> Any:
            flat_velocity = lambda y: ravel_pytree(velocity(tau, unravel(y), args))[0]
            back, push = jax.linearize(flat_velocity, state[0])
            forms = jax.lax.map(lambda v: v @ push(v), rows, batch_size=self.chunk or dims)
            return back, forms if self.probes is not None else forms.sum()[None]

        process = SDE(augmented, diffusion=None, interval=flow.interval)
        how = {"solver": self.solver or diffrax.Heun(), "substeps": self.substeps, "save": "last"}
        begin = (flat, jnp.zeros(count, flat.dtype))
        return integrate(process, begin, -self.ts[::-1], args=args, **how)[0]

    def _by_step(
        self, flow: SDE, flat: Array, unravel: Callable, key: Any, args: Args
    ) -> tuple[Array, Array]:
        """Change of variables of the discrete flow itself: ``log |det|`` of every step."""
        del key
        step = flow.step
        assert step is not None

        def walk(y: Array, times: tuple) -> tuple[Array, Array]:
            before, after = times

            def one(y: Array) -> tuple[Array, Array]:
                z = ravel_pytree(step(before, after, unravel(y), args))[0]
                return z, z

            jacobian, z = jax.jacfwd(one, has_aux=True)(y)
            return z, jnp.linalg.slogdet(jacobian)[1]

        taus = -self.ts[::-1]
        start, logs = jax.lax.scan(walk, flat, (taus[:-1], taus[1:]))
        return start, logs.sum()[None]


def check_density(values: Any, starts: State) -> None:
    """Refuse a prior that gives no density where the paths start."""
    if not concrete(values, starts):
        return
    arrived = values[finite_rows(starts)]
    bad = arrived[jnp.isnan(arrived) | jnp.isposinf(arrived)]
    good = not bad.size and (not arrived.size or not jnp.isneginf(arrived).all())
    said = f"prior must be a log density at ts[0], got {bad[0] if bad.size else -jnp.inf}"
    remedy = "(point masses have none): start ts later, where noise has given them one"
    check_that(good, f"{said} at states that were reached {remedy}")
