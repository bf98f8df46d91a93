"""What diffrax is given: noise on a fixed grid, terms for noise and flow maps, `Splitting`."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from smdp_jax.sde import SDE, State


def white_noise(key: PRNGKeyArray, x: State) -> State:
    """Draw standard normal entries like those of a state."""
    leaves, tree = jax.tree.flatten(x)
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, drawn)


class GridNoise(diffrax.AbstractBrownianPath):
    """Brownian increment of one step: the key belongs to the step, not to the path.

    A Brownian tree costs an order of magnitude more, and on a fixed grid has the same law. The Lévy
    areas H ~ N(0, dt/12), K ~ N(0, dt/720) do not depend on W (Foster, dos Reis, Strange 2023).
    """

    shape: Any = eqx.field(static=True)
    key: PRNGKeyArray
    amplitude: Any
    levy_area: type = eqx.field(static=True)
    t0: Any = eqx.field(static=True, default=-math.inf)
    t1: Any = eqx.field(static=True, default=math.inf)

    @classmethod
    def like(cls, x: Any, key: PRNGKeyArray, levy_area: type, amplitude: Any = None) -> "GridNoise":
        """Build the noise of one step."""
        shape = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), x)
        return cls(shape, key, amplitude, levy_area)

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True, use_levy: bool = False) -> Any:
        """Draw the increment over [t0, t1], with its Lévy areas if ``use_levy``."""
        del left
        names = _LEVY_DIVISORS[self.levy_area] if use_levy else {"W": 1.0}
        leaves, tree = jax.tree.flatten(self.shape)
        count = len(leaves) * len(names)
        # Hashing dominates the cost for scalar states: no split where one draw is all.
        keys = [self.key] if count == 1 else list(jax.random.split(self.key, count))
        dt = jnp.asarray(t1 - t0)

        def draw(divisor: float) -> Any:
            def leaf(like: jax.ShapeDtypeStruct) -> jax.Array:
                scale = jnp.sqrt(dt / divisor).astype(like.dtype)
                if self.amplitude is not None:
                    scale = scale * self.amplitude.astype(like.dtype)
                return scale * jax.random.normal(keys.pop(), like.shape, like.dtype)

            return jax.tree.unflatten(tree, [leaf(like) for like in leaves])

        drawn = {name: draw(divisor) for name, divisor in names.items()}
        if not use_levy:
            return drawn["W"]
        return self.levy_area(
            dt=jax.tree.map(lambda like: dt.astype(like.dtype), self.shape), **drawn
        )


# Variance of each part of the increment: dt / divisor.
_LEVY_DIVISORS = {
    diffrax.BrownianIncrement: {"W": 1.0},
    diffrax.SpaceTimeLevyArea: {"W": 1.0, "H": 12.0},
    diffrax.SpaceTimeTimeLevyArea: {"W": 1.0, "H": 12.0, "K": 720.0},
}


def levy_area_of(solver: diffrax.AbstractSolver) -> type:
    """Name the least increment that a solver asks for."""
    least = getattr(solver, "minimal_levy_area", diffrax.AbstractBrownianIncrement)
    return next(area for area in _LEVY_DIVISORS if issubclass(area, least))


class AdditiveNoise(diffrax.AbstractTerm):
    """The term ``g(t) dW`` with one scalar g per leaf of the state."""

    amplitude: Callable = eqx.field(static=True)
    of_step: Callable = eqx.field(static=True)
    control: diffrax.AbstractPath

    def vf(self, t: Any, y: Any, args: Any) -> Any:
        """Evaluate g, one scalar per leaf."""
        return self.amplitude(t, y)

    def contr(self, t0: Any, t1: Any, **kwargs: Any) -> Any:
        """Draw the Brownian increment."""
        return self.control.evaluate(t0, t1, **kwargs)

    def prod(self, vf: Any, control: Any) -> Any:
        """Multiply leaf by leaf."""
        return jax.tree.map(lambda g, w: g * w, vf, control)


class DriftTerm(diffrax.ODETerm):
    """The drift of a state that may be less precise than the times."""

    def prod(self, vf: Any, control: Any) -> Any:
        """Multiply by the step, in the dtype of the drift."""
        return jax.tree.map(lambda v: jnp.asarray(control, v.dtype) * v, vf)


class FlowMapTerm(diffrax.AbstractTerm):
    """The physics of a discrete simulator, which has no vector field to offer, only a step."""

    step: Callable = eqx.field(static=True)

    def vf(self, t: Any, y: Any, args: Any) -> Any:
        """Refuse: only ``Splitting`` advances a flow map."""
        raise ValueError("a flow map has no vector field: solve it by Splitting()")

    def contr(self, t0: Any, t1: Any, **kwargs: Any) -> Any:
        """Return the interval itself."""
        return (t0, t1)

    def prod(self, vf: Any, control: Any) -> Any:
        """Refuse: only ``Splitting`` advances a flow map."""
        return self.vf(None, None, None)


class Splitting(diffrax.AbstractItoSolver):
    """Lie splitting for flow maps: the simulator's step, then the noise ``g sqrt(dt) z``.

    On a reversed process the simulator's step already holds the score's correction (see
    ``reverse_sde``). Weak order 1: noise is not damped within a step, so what decays at the rate
    kappa rests with ``2 kappa dt / (1 - exp(-2 kappa dt))`` times the variance of the continuous
    process. A probability flow feels that where ``kappa dt`` is not small.
    """

    advances_flow_maps: ClassVar[bool] = True
    term_structure: ClassVar[Any] = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Any] = diffrax.LocalLinearInterpolation

    def order(self, terms: Any) -> int:
        """Order of the splitting."""
        return 1

    def strong_order(self, terms: Any) -> float:
        """Strong order for additive noise."""
        return 1

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> None:
        """Return the solver state: none."""
        return

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any
    ) -> tuple:
        """Advance from t0 to t1."""
        del solver_state, made_jump
        flow, *noises = terms.terms if isinstance(terms, diffrax.MultiTerm) else (terms,)
        y1 = flow.step(t0, t1, y0, args)
        for noise in noises:
            kick = noise.prod(noise.of_step(t0, t1, y0), noise.contr(t0, t1))
            y1 = jax.tree.map(jnp.add, y1, kick)
        return y1, None, {"y0": y0, "y1": y1}, None, diffrax.RESULTS.successful

    def func(self, terms: Any, t0: Any, y0: Any, args: Any) -> Any:
        """Refuse: a flow map has no vector field."""
        return terms.vf(t0, y0, args)


def terms_of(sde: SDE, noise: diffrax.AbstractPath | None) -> diffrax.AbstractTerm:
    """Build the diffrax terms of a process."""
    if sde.drift is not None:
        physics = DriftTerm(sde.drift)
    else:
        assert sde.step is not None
        physics = FlowMapTerm(sde.step)
    if sde.deterministic or noise is None:
        return physics
    return diffrax.MultiTerm(physics, AdditiveNoise(sde.g, sde.g_of_step, noise))
