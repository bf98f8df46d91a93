"""What a physical system offers: a prior, a process, a drift or a flow map, its longest step."""

import abc
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.checks import check_positive, check_within, warn
from smdp_jax.sde import SDE, Args, FlowMap, Scalar, State, negated
from smdp_jax.solve.integrate import advance


class System(abc.ABC):
    """A prior and a process."""

    noise: float | int

    @abc.abstractmethod
    def sde(self) -> SDE:
        """Return the forward process, with the drift or the flow map of the system."""

    @abc.abstractmethod
    def prior(self, key: PRNGKeyArray, n: int) -> Any:
        """Draw states at t = 0, leaves (n, *state), n at least 1."""


class DriftSystem(System):
    """A system given by its drift."""

    @abc.abstractmethod
    def drift(self, t: Scalar, x: Any, args: Args = None) -> Any:
        """Velocity ``dx/dt`` without noise, in units of the state / time."""

    def sde(self) -> SDE:
        """Return the process with its continuous drift."""
        return self.continuous_sde()

    def continuous_sde(self) -> SDE:
        """Return the process with its drift; where it is stiff, explicit steps are tiny."""
        return SDE(self.drift, diffusion=self.noise)


def balanced_signs(key: PRNGKeyArray, n: int) -> Float[Array, "n 1"]:
    """Draw ``n`` starting points +1 and -1, half of each, in random order.

    A fair coin per point would leave a chance imbalance of order ``sqrt(n)``, which a learned
    score picks up as a shifted separatrix. For odd ``n`` a coin decides the last one.

    Parameters
    ----------
    key, n
        Consumed; number of points, at least 1.

    Returns
    -------
    array, shape (n, 1)
        States, unit 1.
    """
    check_positive(n=n)
    k_odd, k_order = jax.random.split(key)
    half = jnp.ones((n // 2,))
    odd = jnp.where(jax.random.bernoulli(k_odd, shape=(n % 2,)), jnp.ones(()), -jnp.ones(()))
    return jax.random.permutation(k_order, jnp.concatenate([half, -half, odd]))[:, None]


class SignedSystem(DriftSystem):
    """A scalar process that starts at +1 or -1, with probability 1/2 each."""

    def prior(self, key: PRNGKeyArray, n: int) -> Float[Array, "n 1"]:
        """Draw starting points, half +1 and half -1; see ``balanced_signs``."""
        return balanced_signs(key, n)


class StepSystem(System):
    """A system given by the flow map of its noise-free equation."""

    @abc.abstractmethod
    def step(self, t0: Scalar, t1: Scalar, x: Any, args: Args = None) -> Any:
        """Solve the noise-free equation from ``t0`` to ``t1``; back, what decays is amplified."""

    def sde(self, inverse: FlowMap | None = None) -> SDE:
        """Return the process as a flow map; default ``inverse(t1, t0, x, args)``: ``negated``."""
        return SDE(step=self.step, diffusion=self.noise, inverse=inverse or negated(self.step))


class CourantWarning(UserWarning):
    """A time step breaks the Courant-Friedrichs-Lewy condition."""


class AdvectingSystem(StepSystem):
    """A system whose explicit inner steps, one or as many as chosen, must not outrun what flows."""

    inner_steps: int = 1

    @abc.abstractmethod
    def stable_step(self, x: Any) -> Float[Array, ""]:
        """Longest stable inner step, in units of t, for states (..., *state) as fast as these."""

    def check_step(self, dt: float | int, x: Any) -> None:
        """Warn (``CourantWarning``) if ``step`` over dt is too long for states as fast as these.

        Looks at values, so not under ``jit``; ``x`` may have leading axes.
        """
        name, step, stable = type(self).__name__, abs(float(dt)), float(self.stable_step(x))
        if not stable > 0:
            raise ValueError(f"the states of {name} must be finite, got NaN or infinity")
        if not step <= (longest := self.inner_steps * stable):
            said = f"{name}: a step of {step:.3g} breaks the CFL condition; at most {longest:.3g}"
            finer = "inner_steps" in vars(self) and math.isfinite(step)
            more = f", or inner_steps={math.ceil(step / stable)}" if finer else ""
            warn(f"{said} would do{more}", CourantWarning)


def spin_up(step: FlowMap, xs: State, *, time: float | int, calls: int, args: Args = None) -> State:
    """Advance a batch of states without noise and keep the last ones.

    Parameters
    ----------
    step : callable
        ``step(t0, t1, x, args)`` of one state; an autonomous flow.
    xs : pytree
        States, leaves (samples, *state).
    time, calls, args
        How long, in the system's units, >= 0; equal steps to do it in, at least 1; conditions, the
        same for all samples.

    Returns
    -------
    pytree
        Like ``xs``.

    Raises
    ------
    ValueError
        If ``time`` is negative or not finite, or ``calls`` below 1.
    """
    check_within("[0, inf)", time=time)
    check_positive(calls=calls)
    flow, ts = SDE(step=step, diffusion=None), jnp.linspace(0.0, time, calls + 1)
    return jax.vmap(lambda x: advance(flow, x, ts, args=args, save="last")[0])(xs)
