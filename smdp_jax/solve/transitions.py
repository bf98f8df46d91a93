r"""One step as two Gaussian laws: the simulator's forward, the sampler's backward.

Forward ``x_1 | x_0 ~ N(F(x_0), Q)``, backward ``x_0 | x_1 ~ N(mu(x_1), Sigma)``; covariances
depend on the times alone. Densities, weights and shifted proposals need nothing else of a solver.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import diffrax
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from smdp_jax.sde import SDE, Args, Scalar, ScoreFn, State
from smdp_jax.solve.terms import Splitting


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Spread:
    """A covariance, diagonal in a unitary transform of the state.

    ``variance`` has a number per leaf, or per coordinate: as many as the state has entries.
    ``transform.apply(factors, x)`` multiplies the coordinates of a state; None is the identity.
    """

    variance: State
    transform: Any = None

    def power(self, exponent: float, x: State) -> State:
        """Apply a power of the covariance: 1/2 colours white noise, -1 solves."""
        root = exponent == 0.5
        factors = jax.tree.map(lambda v: jnp.sqrt(v) if root else v**exponent, self.variance)
        if self.transform is not None:
            return self.transform.apply(factors, x)
        return jax.tree.map(
            lambda f, x: jnp.broadcast_to(f, x.shape).astype(x.dtype) * x, factors, x
        )

    def log_density(self, offset: State) -> Array:
        """``log N(offset; 0, covariance)`` in nats."""
        white = ravel_pytree(self.power(-0.5, offset))[0]
        leaves = jax.tree.leaves(self.variance)
        sizes = [v.size for v in leaves]
        if self.transform is None:
            sizes = [x.size for x in jax.tree.leaves(offset)]
        logs = [n * jnp.mean(jnp.log(v)) for n, v in zip(sizes, leaves, strict=True)]
        return -0.5 * (jnp.sum(white**2) + sum(logs) + white.size * math.log(2 * math.pi))


@runtime_checkable
class Transitions(Protocol):
    """Both laws of one step, of one unbatched state."""

    def forward(self, t0: Scalar, t1: Scalar, x: State, args: Args) -> tuple[State, Spread]:
        """Mean and covariance of the state at ``t1 > t0``."""
        ...

    def backward(
        self, score: ScoreFn, t1: Scalar, t0: Scalar, x: State, args: Args
    ) -> tuple[State, Spread]:
        """Mean and covariance of the state at ``t0 < t1``."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EulerTransitions:
    """Euler steps of a drift, or splitting steps of a flow map, with the noise ``g^2 dt``."""

    sde: SDE = field(metadata={"static": True})

    def forward(self, t0: Scalar, t1: Scalar, x: State, args: Args) -> tuple[State, Spread]:
        """Step, then noise."""
        if self.sde.step is not None:
            mean = self.sde.step(t0, t1, x, args)
        else:
            mean = jax.tree.map(lambda x, p: x + _as(t1 - t0, x) * p, x, self._drift(t0, x, args))
        return mean, self._spread(t0, t1 - t0, x)

    def backward(
        self, score: ScoreFn, t1: Scalar, t0: Scalar, x: State, args: Args
    ) -> tuple[State, Spread]:
        """``x - dt P + dt g^2 s``, the step of ``sample_posterior`` at noise level 1."""
        dt = t1 - t0
        if self.sde.inverse is not None:
            mean = self.sde.inverse(t1, t0, x, args)
        else:
            mean = jax.tree.map(lambda x, p: x - _as(dt, x) * p, x, self._drift(t1, x, args))
        spread = self._spread(t1, dt, x)
        lift = spread.power(1.0, score(t1, x, args))
        return jax.tree.map(jnp.add, mean, lift), spread

    def _drift(self, t: Scalar, x: State, args: Args) -> State:
        assert self.sde.drift is not None
        return self.sde.drift(t, x, args)

    def _spread(self, t: Scalar, dt: Scalar, x: State) -> Spread:
        return Spread(jax.tree.map(lambda g: g * g * _as(dt, g), self.sde.g(t, x)))


def _as(value: Scalar, like: Array) -> Array:
    return jnp.asarray(value).astype(like.dtype)


def transitions_of(sde: SDE, solver: Any) -> Transitions:
    """Gaussian laws of the steps of a solver."""
    if solver is None or isinstance(solver, diffrax.Euler | Splitting):
        return EulerTransitions(sde)
    if not isinstance(solver, Transitions):
        raise ValueError(
            "solver must have Gaussian steps, such as Euler(), Splitting() or GaussianStep(), got "
            f"{type(solver).__name__}: weights need the density of a step"
        )
    return solver
