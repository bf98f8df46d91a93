"""Initial states on the attractor of a forced system: its flow, run for a while from a prior."""

import math

import jax
import jax.numpy as jnp

from smdp_jax.sde import SDE, Args, FlowMap, State
from smdp_jax.solve.integrate import advance

__all__ = ["spin_up"]


def spin_up(step: FlowMap, xs: State, *, time: float | int, calls: int, args: Args = None) -> State:
    """Advance a batch of states without noise and keep the last ones.

    Parameters
    ----------
    step : callable
        ``step(t0, t1, x, args)`` of one state; an autonomous flow.
    xs : pytree
        States, leaves (samples, *state).
    time : float
        How long, in the system's units.
    calls : int
        Equal steps to do it in, at least 1.
    args : pytree
        Conditions, the same for all samples.

    Returns
    -------
    pytree
        Like ``xs``.

    Raises
    ------
    ValueError
        If ``time`` is negative or not finite, or ``calls`` below 1.
    """
    if not 0 <= time < math.inf or calls < 1:
        raise ValueError(
            f"time must be finite and at least 0, calls at least 1, got {time} and {calls}"
        )
    flow, ts = SDE(step=step, diffusion=None), jnp.linspace(0.0, time, calls + 1)
    return jax.vmap(lambda x: advance(flow, x, ts, args=args, save="last")[0])(xs)
