"""Inverse problems of a newcomer: processes that nothing in the library was tuned to.

Four that have a truth to compare with (a closed form, or weighted particles) or are known to be
hard, and others of their kind: with walls, in two dimensions, of low dimension.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray
from newcomer_case import Case
from newcomer_more import MORE

import smdp_jax as smdp


def _linear_posterior(rate: np.ndarray, prior: np.ndarray, g: float, end: float) -> Callable:
    """Posterior of ``dv = rate v dt + g dW`` per mode of rfft; prior is E|v|^2 of these modes."""
    n = 2 * (len(rate) - 1)
    modes, decay = np.arange(len(rate)), -np.real(rate)
    grown = np.where(decay > 0, -np.expm1(-2 * decay * end) / np.maximum(2 * decay, 1e-30), end)
    kept, noise = np.exp(rate * end), n * g**2 * grown
    gain = prior * kept.conj() / (prior * abs(kept) ** 2 + noise)
    left = prior - (gain * kept).real * prior
    weight = np.where((modes == 0) | (modes == n // 2), 1, 2)
    std = np.sqrt((weight * left).sum()) / n
    return lambda x: (np.fft.irfft(gain * np.fft.rfft(np.asarray(x, float)), n), std)


def _smooth(n: int, shape: np.ndarray) -> Callable[[PRNGKeyArray, int], Array]:
    """Gaussian fields on a ring, white noise times ``shape`` per mode."""
    factor = jnp.asarray(shape, jnp.complex64)[None]
    return lambda key, m: jnp.fft.irfft(jnp.fft.rfft(jax.random.normal(key, (m, n))) * factor, n)


def advection_diffusion() -> Case:
    """u_t = -u_x + 0.005 u_xx on a ring of 64 points."""
    n, g, end = 64, 0.3, 0.4
    k = 2 * np.pi * np.fft.rfftfreq(n, 1 / n)
    rate = -5e-3 * k**2 - 1j * k
    rate[-1] = rate[-1].real
    shape = 1 / (1 + (np.fft.rfftfreq(n, 1 / n) / 4) ** 2)
    exact = _linear_posterior(rate, n * shape**2, g, end)
    symbol = jnp.asarray(rate, jnp.complex64)

    def drift(t: Any, x: Any, args: Any) -> Any:
        return jnp.fft.irfft(symbol * jnp.fft.rfft(x), n)

    # Its explicit steps amplify waves that they do not resolve: eight in each of the stored ones.
    return Case(
        smdp.SDE(drift, diffusion=g),
        smdp.linear_grid(0.0, end, 40),
        _smooth(n, shape),
        exact=lambda x, args: exact(x),
        simulation={"substeps": 8},
        ends=200,
        steps=2000,
    )


def heat_by_viscosity() -> Case:
    """Heat equation on a ring of 32 points, of a viscosity that differs between paths."""
    n, g, end = 32, 0.1, 1.0
    k = 2 * np.pi * np.fft.rfftfreq(n, 1 / n)
    shape = 1.5 / (1 + (np.fft.rfftfreq(n, 1 / n) / 3) ** 2)
    squared = jnp.asarray(k**2, jnp.float32)

    def drift(t: Any, x: Any, args: Any) -> Any:
        modes = jnp.fft.rfft(x)
        damping = -args["nu"] * squared
        return jnp.fft.irfft(jax.lax.complex(damping * modes.real, damping * modes.imag), n)

    def exact(x: Any, args: Any) -> tuple[np.ndarray, Any]:
        return _linear_posterior(-float(args["nu"]) * k**2 + 0j, n * shape**2, g, end)(x)

    def viscosities(key: PRNGKeyArray, m: int) -> dict[str, Array]:
        logs = jax.random.uniform(key, (m,), minval=np.log(5e-4), maxval=np.log(5e-3))
        return {"nu": jnp.exp(logs)}

    return Case(
        smdp.SDE(drift, diffusion=g),
        smdp.linear_grid(0.0, end, 40),
        _smooth(n, shape),
        args=viscosities,
        exact=exact,
        ends=200,
        steps=2000,
    )


def lorenz() -> Case:
    """Lorenz's system of 1963 with noise, half a unit of time."""

    def drift(t: Any, x: Any, args: Any) -> Any:
        return jnp.stack(
            [10 * (x[1] - x[0]), x[0] * (28 - x[2]) - x[1], x[0] * x[1] - 8 / 3 * x[2]]
        )

    mean, std = jnp.array([[0.0, 0.0, 25.0]]), jnp.array([[8.0, 9.0, 8.0]])
    return Case(
        smdp.SDE(drift, diffusion=4.0),
        smdp.linear_grid(0.0, 0.5, 100),
        lambda key, m: mean + std * jax.random.normal(key, (m, 3)),
        simulation={"substeps": 2},
        particles=True,
        ends=1000,
        steps=6000,
    )


def gray_scott() -> Case:
    """Reaction and diffusion of two species on a ring of 64 points, a simulator of exponax."""
    import exponax as ex

    stepper = ex.stepper.reaction.GrayScott(1, 1.5, 64, dt=0.25)
    field_of = ex.ic.RandomTruncatedFourierSeries(1, cutoff=3, std_one=True)

    def step(t0: Any, t1: Any, x: Any, args: Any) -> Any:
        y = stepper(jnp.stack([x["u"], x["v"]]))
        return {"u": y[0], "v": y[1]}

    def one(key: PRNGKeyArray) -> dict[str, Array]:
        k_u, k_v = jax.random.split(key)
        u, v = (jax.nn.sigmoid(2 * field_of(64, key=k)[0]) for k in (k_u, k_v))
        return {"u": 1 - 0.6 * u, "v": 0.35 * v}

    return Case(
        smdp.SDE(step=step, diffusion={"u": 0.02, "v": 0.015}),
        smdp.linear_grid(0.0, 10.0, 40),
        lambda key, m: jax.vmap(one)(jax.random.split(key, m)),
        observables=lambda x: {
            "mean u": x["u"].mean(),
            "mean v": x["v"].mean(),
            "max v": x["v"].max(),
        },
        ends=200,
        steps=4000,
    )


def walls() -> Case:
    """Diffusion between two walls that absorb, 48 points: no Fourier mode is an eigenvector."""
    n, g, end = 48, 0.2, 0.5
    waves = np.arange(1, n + 1)
    sines = np.sqrt(2 / (n + 1)) * np.sin(np.pi * np.outer(waves, waves) / (n + 1))
    rate = 2e-3 * (np.pi * waves) ** 2
    shape = 1 / (1 + (waves / 6) ** 2)
    laplacian = jnp.asarray((sines.T * -rate) @ sines, jnp.float32)
    colour = jnp.asarray(sines * shape[:, None], jnp.float32)
    noise = g**2 * -np.expm1(-2 * rate * end) / (2 * rate)
    kept = np.exp(-rate * end)
    gain = shape**2 * kept / (shape**2 * kept**2 + noise)
    left = shape**2 * (1 - gain * kept)
    std = np.sqrt(sines.T**2 @ left)

    return Case(
        smdp.SDE(lambda t, x, args: laplacian @ x, diffusion=g),
        smdp.linear_grid(0.0, end, 30),
        lambda key, m: jax.random.normal(key, (m, n)) @ colour,
        exact=lambda x, args: (sines.T @ (gain * (sines @ np.asarray(x, float))), std),
        simulation={"substeps": 4},
        steps=2000,
    )


def bistable_plane() -> Case:
    """Allen-Cahn in two dimensions, 24 x 24 points, periodic: u_t = 0.002 Δu + u - u^3."""
    n, scale = 24, 24**2 * 2e-3

    def drift(t: Any, x: Any, args: Any) -> Any:
        around = sum(jnp.roll(x, s, axis) for axis in (0, 1) for s in (-1, 1))
        return scale * (around - 4 * x) + 4 * (x - x**3)

    k = np.hypot(np.fft.fftfreq(n, 1 / n)[:, None], np.fft.rfftfreq(n, 1 / n)[None])
    factor = jnp.asarray(2.5 / (1 + (k / 2) ** 2) ** 1.5, jnp.complex64)[None]

    def prior(key: PRNGKeyArray, m: int) -> Array:
        white = jax.random.normal(key, (m, n, n))
        return jnp.fft.irfft2(jnp.fft.rfft2(white) * factor, (n, n))

    return Case(
        smdp.SDE(drift, diffusion=0.2),
        smdp.linear_grid(0.0, 0.5, 20),
        prior,
        simulation={"substeps": 4},
        paths=1500,
        ends=80,
        steps=1200,
    )


def oscillator() -> Case:
    """Van der Pol's oscillator, times that grow apart: two numbers, an attracting cycle."""

    def drift(t: Any, x: Any, args: Any) -> Any:
        return jnp.stack([x[1], 2 * (1 - x[0] ** 2) * x[1] - x[0]])

    return Case(
        smdp.SDE(drift, diffusion=0.3),
        2.0 * jnp.linspace(0.0, 1.0, 41) ** 1.5,
        lambda key, m: 1.5 * jax.random.normal(key, (m, 2)),
        simulation={"substeps": 4},
        particles=True,
        ends=1500,
        steps=6000,
    )


CASES = {
    "advection_diffusion": advection_diffusion,
    "lorenz": lorenz,
    "gray_scott": gray_scott,
    "heat_by_viscosity": heat_by_viscosity,
    "walls": walls,
    "bistable_plane": bistable_plane,
    "oscillator": oscillator,
} | MORE
