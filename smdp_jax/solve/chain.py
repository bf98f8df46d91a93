r"""The simulated chain: a step F of the physics between Gaussian kicks, with or without targets.

A drift is advanced by Heun's step between two half kicks, variance ``g^2 dt / 2`` each (Strang:
weak order 2, and the variance of what decays at rate kappa is right up to (kappa dt)^2 / 3). A flow
map is a chain by itself: its step, then ``g^2 dt``. Where the linear part is known, one kick after
the step has the variance ``q = g^2 dt phi_1(-2 Re kappa dt)`` that the noise has left by then, and
a drift is advanced by an exponential Heun step: exact for linear processes at every step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from smdp_jax.sde import SDE, Args, Scalar, State
from smdp_jax.solve.linear import phi_functions, rates_at, times, to_modes, to_state
from smdp_jax.solve.solvers import flow_map_of
from smdp_jax.solve.terms import GridNoise, Splitting


class Move(NamedTuple):
    """One Gaussian transition of a chain: ``x -> F(x) + kick`` from ``t0`` to ``t1``."""

    t0: Scalar
    t1: Scalar
    flow: Callable[[State], State]
    kick: State
    score: State
    """The kick over its variance."""


def chain_of(sde: SDE, solver: diffrax.AbstractSolver[Any] | None = None) -> tuple[SDE, bool]:
    """Flow map that a process is simulated by, and whether its noise comes in halves."""
    if sde.step is not None or solver is not None:
        return flow_map_of(sde, solver), sde.step is None and sde.linear is None
    if sde.linear is None:
        step = _Heun(sde)
        return SDE(step=step, diffusion=sde.diffusion, interval=sde.interval), True
    return SDE(step=_ExponentialHeun(sde), diffusion=sde.diffusion, interval=sde.interval), False


class _Heun(eqx.Module):
    """Heun's step, without diffrax's loop over stages: no gradient passes that in ``shard_map``."""

    sde: SDE = eqx.field(static=True)

    def __call__(self, t0: Scalar, t1: Scalar, x: State, args: Args) -> State:
        """Advance one state."""
        drift = self.sde.drift
        assert drift is not None

        def moved(share: float, x: State, *slopes: State) -> State:
            def leaf(x: Any, *k: Any) -> Any:
                return x + share * jnp.asarray(t1 - t0).astype(x.dtype) * sum(k[1:], k[0])

            return jax.tree.map(leaf, x, *slopes)

        first = drift(t0, x, args)
        return moved(0.5, x, first, drift(t1, moved(1.0, x, first), args))


class _ExponentialHeun(eqx.Module):
    """Step of a drift that is exact for its linear part (Cox & Matthews 2002, ETD2RK)."""

    sde: SDE = eqx.field(static=True)

    def __call__(self, t0: Scalar, t1: Scalar, x: State, args: Args) -> State:
        """Advance one state."""
        linear, drift = self.sde.linear, self.sde.drift
        assert drift is not None
        w = to_modes(linear.transform, x)
        rates = rates_at(linear, args, w, t0, t1)

        def scaled(k: Any, index: int) -> Any:
            dt = jnp.asarray(t1 - t0).astype(jnp.finfo(k.dtype).dtype)
            return times(dt, phi_functions(-k * dt.astype(k.dtype))[index])

        def rest(t: Scalar, x: State, w: State) -> State:
            p = to_modes(linear.transform, drift(t, x, args))
            return jax.tree.map(lambda p, k, w: p + times(k, w), p, rates, w)

        first = rest(t0, x, w)
        y = jax.tree.map(lambda k, w, n: w + times(scaled(k, 0), n - times(k, w)), rates, w, first)
        then = rest(t1, to_state(linear.transform, y), y)
        y = jax.tree.map(lambda k, y, a, b: y + times(scaled(k, 1), b - a), rates, y, first, then)
        return to_state(linear.transform, y)


class ChainSplitting(Splitting):
    """Advance the chain; ``batched`` states have a leading axis, and args one if ``args_axes``."""

    linear: Any = None
    halves: bool = eqx.field(static=True, default=False)
    batched: bool = eqx.field(static=True, default=False)
    args_axes: int | None = eqx.field(static=True, default=None)

    def moves(self, terms: Any, t0: Scalar, t1: Scalar, x: State, args: Args) -> list[Move]:
        """The transitions of one step."""
        flow, noise = terms.terms
        levy = diffrax.SpaceTimeLevyArea if self.halves else diffrax.BrownianIncrement
        control = GridNoise.like(x, noise.control.key, levy, noise.control.amplitude)

        def step(x: State) -> State:
            return flow.step(t0, t1, x, args)

        if not self.halves:
            g, drawn = noise.of_step(t0, t1, x), control.evaluate(t0, t1)
            return [Move(t0, t1, step, *self._coloured(g, t0, t1, drawn, args))]
        drawn = control.evaluate(t0, t1, use_levy=True)
        middle = t0 + 0.5 * (t1 - t0)

        def half(begin: Scalar, end: Scalar, at: Scalar, sign: float, flow: Callable) -> Move:
            # W and H are independent, of variance dt and dt / 12: two independent halves of W.
            part = jax.tree.map(lambda w, h: 0.5 * (w + sign * 12.0**0.5 * h), drawn.W, drawn.H)
            return Move(
                begin, end, flow, *self._coloured(noise.vf(at, x, args), begin, end, part, args)
            )

        return [half(t0, middle, t0, 1.0, lambda x: x), half(middle, t1, t1, -1.0, step)]

    def _coloured(
        self, g: State, t0: Scalar, t1: Scalar, w: State, args: Args
    ) -> tuple[State, State]:
        """A Brownian increment as the kick of one move, and the kick over its variance."""
        dt, linear = jnp.asarray(t1 - t0), self.linear
        white = jax.tree.map(lambda g, w: g * w, g, w)
        precision = jax.tree.map(lambda g, w: w / (g * dt.astype(w.dtype)), g, w)
        if linear is None:
            return white, precision

        def colour(white: State, precision: State, args: Args) -> tuple[State, State]:
            def scale(v: State, power: float) -> State:
                modes = to_modes(linear.transform, v)

                def leaf(k: Any, w: Any) -> Any:
                    k = jnp.real(k)
                    share = phi_functions(-2 * k * dt.astype(k.dtype))[0]
                    return times(share**power, w)

                rates = rates_at(linear, args, modes, t0, t1)
                return to_state(linear.transform, jax.tree.map(leaf, rates, modes))

            return scale(white, 0.5), scale(precision, -0.5)

        if self.batched:
            colour = jax.vmap(colour, in_axes=(0, 0, self.args_axes))
        return colour(white, precision, args)

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any
    ) -> tuple:
        """Advance from t0 to t1."""
        del solver_state, made_jump
        x = y0
        for move in self.moves(terms, t0, t1, x, args):
            x = jax.tree.map(jnp.add, move.flow(x), move.kick)
        return x, None, {"y0": y0, "y1": x}, None, diffrax.RESULTS.successful
