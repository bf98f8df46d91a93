r"""The linear part of a process, diagonal in a transform: ``F dx/dt = -rates F x + ...``."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from smdp_jax.checks import check_that, concrete
from smdp_jax.sde import Args, Scalar, State
from smdp_jax.solve.terms import white_noise

Transform = tuple[Callable[[Any], Any], Callable[[Any], Any]]


class LinearPart(eqx.Module):
    """What of the physics is linear and diagonal: ``dx/dt = -rates x + n(t, x)`` per mode.

    Parameters
    ----------
    rates : pytree or callable
        Decay rates in 1 / time, real part at least 0; complex where modes also turn (advection
        with speed c has ``1j * c * k``). Scalars, or arrays like the transformed leaves; one number
        serves all leaves. ``rates(args)`` where they depend on conditions.
    transform : tuple of callables, optional
        ``(forward, backward)`` of a unitary transform of one state in which the linear part is
        diagonal, such as ``rfft`` and ``irfft`` with ``norm="ortho"``. None: the entries.

    Raises
    ------
    ValueError
        If a rate grows or is not finite.
    """

    rates: Any
    transform: Transform | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        for leaf in [] if callable(self.rates) else filter(concrete, jax.tree.leaves(self.rates)):
            values: Any = np.asarray(leaf)
            worst = values.real.min() if values.size else 0.0
            decays = np.isfinite(values).all() and worst >= 0
            said = f"LinearPart.rates must be finite decay rates (real parts >= 0), got {worst}"
            check_that(decays, f"{said}: what grows belongs to the rest of the drift")


def rates_at(linear: Any, args: Args, modes: State, t0: Scalar, t1: Scalar) -> State:
    """Rates over a step like the modes, in their precision; ``Linearised`` ones are looked up."""
    if not isinstance(linear, LinearPart):
        linear = linear.during(t0, t1, args, modes)
    rates = linear.rates(args) if callable(linear.rates) else linear.rates
    if jax.tree.structure(rates) == jax.tree.structure(0.0):
        rates = jax.tree.map(lambda _: rates, modes)

    def like(rate: Any, mode: Any) -> Array:
        rate = jnp.asarray(rate)
        turns = jnp.iscomplexobj(rate)
        complexes = not turns or jnp.issubdtype(mode.dtype, jnp.complexfloating)
        check_that(complexes, "complex LinearPart.rates must come with a complex transform")
        said = f"LinearPart.rates must be scalars or of shape {mode.shape}"
        check_that(rate.shape in ((), mode.shape), said, rate.shape)
        return rate.astype(mode.dtype if turns else jnp.finfo(mode.dtype).dtype)

    return jax.tree.map(like, rates, modes)


def to_modes(transform: Transform | None, x: State) -> State:
    """Transform one state."""
    return x if transform is None else transform[0](x)


def to_state(transform: Transform | None, modes: State) -> State:
    """Transform back."""
    return modes if transform is None else transform[1](modes)


def multiplicity(transform: Transform | None, x: State) -> State:
    """How many entries of a state each mode stands for, shape of the modes: 2 with its conjugate.

    With w = F x, the energy of x in mode k is ``<x, B(e_k F x)> = m_k |w_k|^2``.
    """
    forward, backward = transform or ((lambda x: x),) * 2
    modes = forward(x)

    def energy(share: State) -> Scalar:
        filtered = backward(jax.tree.map(times, share, modes))
        return sum(
            jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (x, filtered)), strict=True)
        )

    ones = jax.tree.map(lambda w: jnp.ones(w.shape, jnp.finfo(w.dtype).dtype), modes)
    return jax.tree.map(lambda e, w: e / jnp.abs(w) ** 2, jax.grad(energy)(ones), modes)


def cosines(size: int) -> np.ndarray:
    """The orthogonal cosine transform (DCT-II), as a matrix."""
    k = np.arange(size)
    rows = np.sqrt(2 / size) * np.cos(np.pi * np.outer(k, k + 0.5) / size)
    rows[0] /= np.sqrt(2)
    return rows


def check_transform(transform: Transform | None, x: State) -> None:
    """Try a transform on one random state: backward undoes forward, and lengths are kept."""
    if transform is None:
        return
    want = "transform must be unitary (such as rfft and irfft with norm='ortho'), got"
    with jax.ensure_compile_time_eval():
        keys = jax.random.split(jax.random.key(0), 3)
        x, y = (white_noise(k, x) for k in keys[:2])
        modes = transform[0](x)
        kept = jax.tree.structure(modes) == jax.tree.structure(x)
        check_that(kept, "transform must keep the state's tree", modes)
        share = jax.tree.map(
            lambda w: jax.random.uniform(keys[2], w.shape, jnp.finfo(w.dtype).dtype), modes
        )

        def filtered(x: State) -> State:
            return transform[1](jax.tree.map(times, share, transform[0](x)))

        def dot(a: State, b: State) -> float:
            pairs = zip(*map(jax.tree.leaves, (a, b)), strict=True)
            return float(sum(np.vdot(np.asarray(a), np.asarray(b)).real for a, b in pairs))

        size, tolerance = dot(x, x), 1e-3
        back = jax.tree.map(jnp.subtract, transform[1](modes), x)
        undone = dot(back, back) <= tolerance**2 * size
        check_that(undone, f"{want} a backward that does not undo forward")
        orthogonal = abs(dot(filtered(x), y) - dot(x, filtered(y))) <= tolerance * size
        check_that(orthogonal, f"{want} modes that are not orthogonal")
        counts = np.concatenate([np.ravel(m) for m in jax.tree.leaves(multiplicity(transform, x))])
    near = np.minimum(abs(counts - 1), abs(counts - 2)).max()
    entries = sum(v.size for v in jax.tree.leaves(x))
    good = near <= 0.05 and abs(counts.sum() - entries) <= tolerance * entries
    ratio = entries / counts.sum()
    check_that(good, f"{want} one that multiplies squared lengths by {ratio:.3g}")


def times(factor: Array, modes: Array) -> Array:
    """Multiply; a real factor by parts, since strict promotion refuses real times complex."""
    real = not jnp.iscomplexobj(factor) or jnp.iscomplexobj(modes)
    check_that(real, "a complex factor must come with complex modes")
    if jnp.iscomplexobj(modes) and not jnp.iscomplexobj(factor):
        return jax.lax.complex(factor * modes.real, factor * modes.imag)
    return factor * modes


def phi_functions(z: Any) -> tuple[Array, Array, Array]:
    """Evaluate phi_1, phi_2 and phi_3, to rounding for every real (or decaying complex) argument.

    phi_1(z) = (e^z - 1) / z, phi_{k+1}(z) = (phi_k(z) - 1 / k!) / z.
    """
    small = jnp.abs(z) <= 1
    near, far = jnp.where(small, z, 0), jnp.where(small, 1, z)
    series = jnp.full_like(z, 1 / math.factorial(20))
    for j in range(19, 2, -1):  # 1/3! + z/4! + ... + z^17/20!: below 1e-19 is lost for |z| <= 1
        series = series * near + 1 / math.factorial(j)
    up_1 = jnp.expm1(far) / far
    up_2 = (up_1 - 1) / far
    up_3 = (up_2 - 1 / 2) / far
    down_2 = series * near + 1 / 2
    down_1 = down_2 * near + 1
    either = partial(jnp.where, small)
    return either(down_1, up_1), either(down_2, up_2), either(series, up_3)
