"""The linear part of a process, and the Gaussian of a score, looked up in their derivatives."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from smdp_jax.compiled import once, parts_of
from smdp_jax.sde import SDE, Args, Scalar, ScoreFn, State
from smdp_jax.solve.linear import LinearPart, Transform, times, to_modes, to_state
from smdp_jax.solve.terms import white_noise

_TINY = 1e-30


@dataclass(frozen=True)
class Waves:
    """Fourier modes of every leaf, unitary."""

    shapes: tuple[tuple[int, ...], ...]

    def forward(self, x: State) -> State:
        """Transform a state."""
        return jax.tree.map(lambda v: jnp.fft.rfftn(v, norm="ortho"), x)

    def backward(self, modes: State) -> State:
        """Transform back."""
        leaves, tree = jax.tree.flatten(modes)
        pairs = zip(leaves, self.shapes, strict=True)
        return tree.unflatten([jnp.fft.irfftn(w, s=s, norm="ortho") for w, s in pairs])


def waves_of(x: State) -> Transform | None:
    """Fourier transform of a state of fields; None for states that are none."""
    leaves = jax.tree.leaves(x)
    fields = [v.ndim in (1, 2, 3) and v.size > 3 and v.dtype.itemsize >= 4 for v in leaves]
    if not all(fields):
        return None
    return _waves(tuple(v.shape for v in leaves))


@lru_cache(128)
def _waves(shapes: tuple[tuple[int, ...], ...]) -> Transform:
    # The same pair every time: methods are equal only if they are of one object, not of equal ones.
    waves = Waves(shapes)
    return waves.forward, waves.backward


def mean_field(x: State) -> State:
    """The constant field of the same mean: what moves nowhere, and looks the same everywhere."""
    return jax.tree.map(lambda v: jnp.full_like(v, jnp.mean(v)), x)


def symbol_of(
    function: Callable[[State], State],
    x: State,
    transform: Transform | None,
    sizes: State | None = None,
) -> State:
    """Factors by which the derivative at x multiplies the modes, if it is diagonal.

    Those of an impulse, in which all waves are alike (without a transform, of ones); or of modes of
    given sizes, which leave small factors more digits.
    """

    def impulse(v: Array) -> Array:
        if transform is None:
            return jnp.ones_like(v)
        return jnp.zeros_like(v).ravel().at[0].set(v.size**0.5).reshape(v.shape)

    probe = jax.tree.map(impulse, x)
    if sizes is not None:
        modes = to_modes(transform, probe)
        probe = to_state(transform, jax.tree.map(times, sizes, modes))
    symbol = to_modes(transform, jax.jvp(function, (x,), (probe,))[1])
    if sizes is None:
        return symbol
    return jax.tree.map(lambda s, size: times(1 / size, s), symbol, sizes)


@dataclass(frozen=True)
class Linearised:
    """A ``LinearPart`` that is looked up: the derivative of the physics of a process at rest."""

    sde: SDE
    transform: Transform | None = None

    def _parts(self) -> tuple:
        return (parts_of(self.sde), self.transform)

    def during(self, t0: Scalar, t1: Scalar, args: Args, modes: State) -> LinearPart:
        """The linear part over one step, of a flow map so that it is exact over it."""
        sde, dt = self.sde, jnp.asarray(t1 - t0)
        rest = to_state(self.transform, jax.tree.map(lambda w: jnp.zeros(w.shape, w.dtype), modes))

        def rate(symbol: Array) -> Array:
            if sde.drift is not None:
                decay, turn = -jnp.real(symbol), -jnp.imag(symbol)
            else:
                width = dt.astype(jnp.finfo(symbol.dtype).dtype)
                decay = -jnp.log(jnp.maximum(jnp.abs(symbol), _TINY)) / width
                turn = -jnp.angle(symbol) / width
            decay = jnp.maximum(decay, 0)  # what grows is left to the rest
            return jax.lax.complex(decay, turn) if jnp.iscomplexobj(symbol) else decay

        symbol = symbol_of(lambda x: physics_of(sde, t0, t1, x, args), rest, self.transform)
        return LinearPart(jax.tree.map(rate, symbol), self.transform)


def physics_of(sde: SDE, t0: Scalar, t1: Scalar, x: State, args: Args) -> State:
    """The drift in the middle of a step, or the step."""
    if sde.drift is not None:
        return sde.drift(t0 + 0.5 * (t1 - t0), x, args)
    assert sde.step is not None
    return sde.step(t0, t1, x, args)


class Curvature(eqx.Module):
    """The Gaussian that a score is the gradient of, near x: ``s = -(x - m) / C``, C diagonal there.

    Never asked before ``first``: the score may be singular there, or not have been learned.
    """

    x: State
    first: Any
    transform: Transform | None = eqx.field(static=True, default=None)

    def moments(self, score: ScoreFn, t: Scalar, args: Args) -> tuple[State, State]:
        """Mean and variance per mode."""
        t = jnp.maximum(t, jnp.asarray(self.first, jnp.result_type(t)))
        at_t = lambda x: score(t, x, args)

        def variance(symbol: Array) -> Array:
            sharpness = -jnp.real(symbol)
            return 1 / jnp.maximum(sharpness, 1e-6 * jnp.max(sharpness))

        spread = jax.tree.map(variance, symbol_of(at_t, self.x, self.transform))
        # Once more with what is alike in all modes: rounding took digits of the wide ones.
        again = symbol_of(at_t, self.x, self.transform, spread)
        spread = jax.tree.map(variance, again)
        at, slope = (to_modes(self.transform, v) for v in (self.x, score(t, self.x, args)))
        return jax.tree.map(lambda x, c, s: x + times(c, s), at, spread, slope), spread


class Misfit(NamedTuple):
    """How far physics and score are from what ``Linearised`` and ``Curvature`` make of them."""

    physics: Any
    """Difference from the linear part, over the size of what it does, at some steps."""
    score: Any
    """The same of the score, at all times."""
    sharpness: Any
    """Least of what should be 1 / C, over the largest of it, at all times."""


@once
def misfit_of(
    sde: SDE, score: ScoreFn | None, x: State, mean: State, ts: Array, args: Args, transform: Any
) -> Misfit:
    """Look at physics between rest and x, and at the score between ``mean`` and x, roughened."""

    def rough(v: Array, white: Array) -> Array:
        return v + (jnp.sqrt(jnp.mean(jnp.square(v))) + jnp.asarray(1e-3, v.dtype)) * white

    x = jax.tree.map(rough, x, white_noise(jax.random.key(7), x))

    def miss(function: Callable[[State], State], at: State) -> tuple[Any, State]:
        symbol = symbol_of(function, at, transform)
        moved, off = (
            jax.tree.map(jnp.subtract, a, b) for a, b in ((function(x), function(at)), (x, at))
        )
        modes = jax.tree.map(times, symbol, to_modes(transform, off))
        wrong = jax.tree.map(jnp.subtract, moved, to_state(transform, modes))
        return _size(wrong) / jnp.maximum(_size(moved), _TINY), symbol

    def physics(i: Array) -> Any:
        rest = jax.tree.map(jnp.zeros_like, x)
        return miss(lambda v: physics_of(sde, ts[i], ts[i + 1], v, args), rest)[0]

    def curvature(t: Array) -> tuple[Any, Any]:
        of_score: Any = score
        wrong, symbol = miss(lambda v: of_score(t, v, args), mean)
        sharpness = jnp.concatenate([-jnp.real(s).ravel() for s in jax.tree.leaves(symbol)])
        return wrong, jnp.min(sharpness) / jnp.max(jnp.abs(sharpness))

    steps = jax.lax.map(physics, jnp.array([0, ts.shape[0] // 2 - 1, ts.shape[0] - 2]))
    if score is None:
        return Misfit(steps, None, None)
    return Misfit(steps, *jax.lax.map(curvature, ts))


def _size(tree: State) -> Any:
    return jnp.sqrt(sum(jnp.sum(jnp.square(v)) for v in jax.tree.leaves(tree)))
