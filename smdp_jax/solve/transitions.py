r"""One step as two Gaussian laws: the simulator's forward, the sampler's backward.

Forward ``x_1 | x_0 ~ N(F(x_0), Q)``, backward ``x_0 | x_1 ~ N(mu(x_1), Sigma)``; covariances
depend on the times alone. Densities, weights and shifted proposals need nothing else of a solver.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.checks import check_that
from smdp_jax.sde import SDE, Args, Scalar, ScoreFn, State
from smdp_jax.solve.chain import chain_of
from smdp_jax.solve.covariance import Modes, Spread, counts_of
from smdp_jax.solve.gaussian import GaussianStep, bind, check_gaussian
from smdp_jax.solve.gaussian_solver import is_mode
from smdp_jax.solve.linear import LinearPart, phi_functions, rates_at, to_modes
from smdp_jax.solve.terms import Splitting


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


@runtime_checkable
class StepKernel(Protocol):
    """A backward law of its own, by the index of the earlier time: needs no score."""

    def sample(self, key: PRNGKeyArray, step: Any, x: State, args: Args = None) -> State:
        """Draw the state at ``ts[step]``, given the one at ``ts[step + 1]``."""
        ...

    def log_density(self, step: Any, earlier: State, later: State, args: Args = None) -> Scalar:
        """Log density of ``earlier``, in nats."""
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


class GaussianTransitions(eqx.Module):
    """``GaussianStep`` back, and forward the chain that is exact for its linear part.

    ``counts``: entries that each mode stands for. The corrector looks at the predictor's mean.
    """

    step: GaussianStep
    linear: Any
    counts: State
    first: Array
    sde: SDE = eqx.field(static=True)

    @classmethod
    def of(
        cls, step: GaussianStep, sde: SDE, score: Any, ts: Array, x: State
    ) -> "GaussianTransitions":
        """Settle what the step takes from process and score."""
        if isinstance(score, StepKernel):
            linear = step.linear if step.linear is not None else sde.linear or LinearPart(0.0)
        else:
            solver = bind(step, sde, score, x)
            linear = solver.linear
            step = GaussianStep(step.order, linear, solver.reference)
        counts = jax.jit(lambda x: counts_of(linear.transform, x))(x)
        return cls(step, linear, counts, jnp.asarray(ts)[0], sde)

    def forward(self, t0: Scalar, t1: Scalar, x: State, args: Args) -> tuple[State, Spread]:
        """Step, then the noise that has come in since, less what has decayed of it."""
        chain = dataclasses.replace(self.sde, linear=self.linear)
        flow, modes = chain_of(chain)[0].step, to_modes(self.linear.transform, x)
        assert flow is not None

        def variance(g: Array, rate: Array, count: Array) -> Array:
            dt = jnp.asarray(t1 - t0).astype(g.dtype)
            q = g * g * dt * phi_functions(-2 * jnp.real(rate) * dt)[0]
            return jnp.broadcast_to(q.astype(g.dtype), count.shape)

        rates = rates_at(self.linear, args, modes, t0, t1)
        g = self.sde.g_of_step(t0, t1, x)
        return flow(t0, t1, x, args), self._spread(jax.tree.map(variance, g, rates, self.counts))

    def backward(
        self, score: ScoreFn, t1: Scalar, t0: Scalar, x: State, args: Args
    ) -> tuple[State, Spread]:
        """Bayes' rule for what is Gaussian, the rest stepped explicitly."""
        solver = bind(self.step, self.sde, score, x, first=self.first)
        mean = solver.advance(t0, t1, x, args, jax.tree.map(jnp.zeros_like, x))
        full = lambda c, n: jnp.broadcast_to(c.variance, n.shape)
        modes = solver.coefficients(t0, t1, x, args)
        return mean, self._spread(jax.tree.map(full, modes, self.counts, is_leaf=is_mode))

    def _spread(self, variance: State) -> Spread:
        return Spread(variance, Modes(self.linear.transform), self.counts)


def _as(value: Scalar, like: Array) -> Array:
    return jnp.asarray(value).astype(like.dtype)


def transitions_of(
    solver: Any, sde: SDE, score: Any, ts: Array, x: State, args: Args
) -> Transitions:
    """Gaussian laws of the steps of a solver, for states like ``x``."""
    if solver is None or isinstance(solver, diffrax.Euler | Splitting):
        return EulerTransitions(sde)
    if isinstance(solver, GaussianStep):
        if not isinstance(score, StepKernel):
            check_gaussian(solver, sde, score, ts, x, args)
        return GaussianTransitions.of(solver, sde, score, ts, x)
    said = "solver must have Gaussian steps, such as Euler(), Splitting() or GaussianStep(), got"
    check_that(isinstance(solver, Transitions), f"{said} {type(solver).__name__}")
    return solver
