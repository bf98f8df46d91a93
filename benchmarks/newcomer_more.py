"""More problems of a newcomer, written most of them before anything was tried on them.

Small states of very unlike leaves, oscillating, non-normal, of two wells, chaotic; fields that are
stiff and chaotic, that a front runs through, and that conditions carry about. ``drug`` and
``pendulum`` are here since they failed at first (conditions in small units, little noise).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray
from newcomer_case import Case
from scipy.linalg import expm

import smdp_jax as smdp


def _matrix_posterior(
    rate: np.ndarray, noise: np.ndarray, mean: np.ndarray, std: np.ndarray, end: float
) -> Callable:
    """Posterior of ``dx = rate x dt + noise dW`` for independent normal starts (Van Loan 1978)."""
    size = len(rate)
    both = expm(np.block([[-rate, np.diag(noise**2)], [np.zeros_like(rate), rate.T]]) * end)
    flow = both[size:, size:].T
    grown = flow @ both[:size, size:]
    prior = np.diag(std**2)
    gain = prior @ flow.T @ np.linalg.inv(flow @ prior @ flow.T + grown)
    left = np.sqrt(np.diag(prior - gain @ flow @ prior))
    return lambda x, args: (mean + gain @ (x - flow @ mean), left)


def spring() -> Case:
    """An oscillator with little friction: place and speed, nine half swings of information lost."""
    rate = np.array([[0.0, 1.0], [-25.0, -0.5]])
    noise, std = np.array([0.05, 1.0]), np.array([1.0, 5.0])

    def drift(t: Any, x: Any, args: Any) -> Any:
        return {"place": x["speed"], "speed": -25 * x["place"] - 0.5 * x["speed"]}

    def prior(key: PRNGKeyArray, m: int) -> dict[str, Array]:
        white = jax.random.normal(key, (2, m))
        return {"place": white[0], "speed": 5 * white[1]}

    return Case(
        smdp.SDE(drift, diffusion={"place": 0.05, "speed": 1.0}),
        smdp.linear_grid(0.0, 1.5, 60),
        prior,
        exact=_matrix_posterior(rate, noise, np.zeros(2), std, 1.5),
        simulation={"substeps": 8},
        ends=1500,
        steps=3000,
    )


def shear() -> Case:
    """Six numbers of two sizes, turning, damped and coupled one way: far from normal."""
    fast, slow = np.zeros((3, 3)), np.zeros((3, 3))
    fast[0, 1], fast[1, 0], slow[1, 2], slow[2, 1] = -6.0, 6.0, 3.0, -3.0
    rate = np.block([[fast - np.eye(3), np.full((3, 3), 0.04)], [np.zeros((3, 3)), slow]])
    rate -= 0.3 * np.eye(6)
    noise, mean = np.array([0.5] * 3 + [30.0] * 3), np.array([1.0, 0, 0, 0, 200.0, 0])
    std = np.array([1.0] * 3 + [100.0] * 3)
    matrix = jnp.asarray(rate, jnp.float32)

    def drift(t: Any, x: Any, args: Any) -> Any:
        slope = matrix @ jnp.concatenate([x["fast"], x["slow"]])
        return {"fast": slope[:3], "slow": slope[3:]}

    def prior(key: PRNGKeyArray, m: int) -> dict[str, Array]:
        x = jnp.asarray(mean, jnp.float32)[None] + jax.random.normal(key, (m, 6)) * jnp.asarray(
            std[None], jnp.float32
        )
        return {"fast": x[:, :3], "slow": x[:, 3:]}

    return Case(
        smdp.SDE(drift, diffusion={"fast": 0.5, "slow": 30.0}),
        smdp.linear_grid(0.0, 1.0, 50),
        prior,
        exact=_matrix_posterior(rate, noise, mean, std, 1.0),
        simulation={"substeps": 4},
        ends=1000,
        steps=3000,
    )


def two_wells() -> Case:
    """One number between two wells, from a start near the ridge: a posterior of two lumps."""
    return Case(
        smdp.SDE(lambda t, x, args: 4 * (x - x**3), diffusion=0.7),
        smdp.linear_grid(0.0, 1.0, 50),
        lambda key, m: jax.random.normal(key, (m,)),
        simulation={"substeps": 4},
        particles=True,
        ends=2000,
        steps=4000,
    )


def predators() -> Case:
    """Prey and predators (Lotka, Volterra), hundreds of each, growth that differs between paths."""

    def drift(t: Any, x: Any, args: Any) -> Any:
        met = x["prey"] * x["hunters"] / 100
        return {"prey": args["growth"] * x["prey"] - met, "hunters": 0.5 * met - x["hunters"]}

    def prior(key: PRNGKeyArray, m: int) -> dict[str, Array]:
        white = jax.random.normal(key, (2, m))
        return {"prey": 200 * jnp.exp(0.5 * white[0]), "hunters": 80 * jnp.exp(0.5 * white[1])}

    return Case(
        smdp.SDE(drift, diffusion={"prey": 15.0, "hunters": 5.0}),
        smdp.linear_grid(0.0, 2.0, 50),
        prior,
        args=lambda key, m: {"growth": jax.random.uniform(key, (m,), minval=0.5, maxval=1.5)},
        simulation={"substeps": 4},
        ends=1500,
        steps=4000,
    )


def weather() -> Case:
    """Lorenz's ring of 1996, 12 numbers."""

    def drift(t: Any, x: Any, args: Any) -> Any:
        return (jnp.roll(x, -1) - jnp.roll(x, 2)) * jnp.roll(x, 1) - x + 8

    return Case(
        smdp.SDE(drift, diffusion=1.0),
        smdp.linear_grid(0.0, 0.4, 40),
        lambda key, m: 2.5 + 3.5 * jax.random.normal(key, (m, 12)),
        simulation={"substeps": 4},
        ends=600,
        steps=5000,
    )


def kuramoto() -> Case:
    """Kuramoto and Sivashinsky's flames on a ring of 64 points, a simulator of exponax."""
    import exponax as ex

    stepper = ex.stepper.KuramotoSivashinskyConservative(1, 22.0, 64, dt=0.1)
    start = ex.ic.RandomTruncatedFourierSeries(1, cutoff=4, offset_range=(0, 0))

    return Case(
        smdp.SDE(step=lambda t0, t1, x, args: stepper(x[None])[0], diffusion=0.15),
        smdp.linear_grid(0.0, 4.0, 40),
        lambda key, m: jax.vmap(lambda k: 2 * start(64, key=k)[0])(jax.random.split(key, m)),
        observables=lambda x: {"energy": (x**2).mean(), "max": x.max(), "first": x[0]},
        ends=200,
        steps=4000,
    )


def front() -> Case:
    """Fisher's fronts of a population between walls that reflect, 40 points."""

    def drift(t: Any, x: Any, args: Any) -> Any:
        y = jnp.pad(x, 1, mode="edge")
        return 40**2 * 4e-4 * (y[2:] - 2 * x + y[:-2]) + 4 * x * (1 - x)

    def prior(key: PRNGKeyArray, m: int) -> Array:
        k_place, k_width, k_side = jax.random.split(key, 3)
        place = jax.random.uniform(k_place, (m, 1), minval=0.2, maxval=0.8)
        width = jax.random.uniform(k_width, (m, 1), minval=0.03, maxval=0.1)
        side = jnp.where(jax.random.bernoulli(k_side, shape=(m, 1)), 1.0, -1.0)
        at = (jnp.arange(40) + 0.5) / 40
        return jax.nn.sigmoid(side * (at[None] - place) / width)

    return Case(
        smdp.SDE(drift, diffusion=0.08),
        smdp.linear_grid(0.0, 0.6, 30),
        prior,
        observables=lambda x: {"mass": x.mean(), "middle": x[20], "slope": x[-5] - x[4]},
        simulation={"substeps": 4},
        steps=3000,
    )


def wind() -> Case:
    """A dye on a square ring of 16 x 16 points, carried by a wind that differs between paths."""
    n, g, end, viscosity = 16, 0.2, 0.4, 4e-3
    k = 2 * np.pi * np.fft.fftfreq(n, 1 / n)[:, None], 2 * np.pi * np.fft.rfftfreq(n, 1 / n)[None]
    inner = [np.where(abs(w) == np.pi * n, 0.0, w) for w in k]
    decay = viscosity * (k[0] ** 2 + k[1] ** 2)
    shape = 2 / (1 + (np.hypot(*k) / (2 * np.pi * 2)) ** 2)
    weight = np.broadcast_to(np.where((k[1] == 0) | (k[1] == np.pi * n), 1.0, 2.0), decay.shape)

    def step(t0: Any, t1: Any, x: Any, args: Any) -> Any:
        dt = jnp.asarray(t1 - t0, x.dtype)
        parts = (jnp.asarray(w, x.dtype) * args["wind"][i] for i, w in enumerate(inner))
        turn = jnp.exp(-jax.lax.complex(jnp.asarray(decay, x.dtype), sum(parts)) * dt)
        return jnp.fft.irfft2(turn * jnp.fft.rfft2(x), (n, n))

    def exact(x: Any, args: Any) -> tuple[np.ndarray, Any]:
        carried = sum(w * float(args["wind"][i]) for i, w in enumerate(inner))
        prior, dt = n * n * shape**2, end / 20
        kept = np.exp(-(decay + 1j * carried) * end)
        # The flow map's noise comes after each of its twenty steps.
        grown = n * n * g**2 * dt * sum(np.exp(-2 * decay * dt * i) for i in range(20))
        gain = prior * kept.conj() / (prior * abs(kept) ** 2 + grown)
        left = prior - (gain * kept).real * prior
        mean = np.fft.irfft2(gain * np.fft.rfft2(np.asarray(x, float).reshape(n, n)), (n, n))
        return mean.ravel(), np.sqrt((weight * left).sum()) / n**2

    def prior(key: PRNGKeyArray, m: int) -> Array:
        white = jnp.fft.rfft2(jax.random.normal(key, (m, n, n)))
        return jnp.fft.irfft2(jnp.asarray(shape, jnp.complex64)[None] * white, (n, n))

    return Case(
        smdp.SDE(step=step, diffusion=g),
        smdp.linear_grid(0.0, end, 20),
        prior,
        args=lambda key, m: {"wind": jax.random.uniform(key, (m, 2), minval=-1.0, maxval=1.0)},
        exact=exact,
        paths=2000,
        ends=100,
        steps=1500,
    )


def drug() -> Case:
    """One number between two wells whose distance differs between paths, told in mol: 1e-4."""

    def drift(t: Any, x: Any, args: Any) -> Any:
        return 3 * (1e4 * args["dose"]) ** 2 * x - 3 * x**3

    return Case(
        smdp.SDE(drift, diffusion=0.6),
        smdp.linear_grid(0.0, 1.0, 40),
        lambda key, m: jax.random.normal(key, (m,)),
        args=lambda key, m: {"dose": jax.random.uniform(key, (m,), minval=3e-5, maxval=1.7e-4)},
        simulation={"substeps": 4},
        ends=2000,
        steps=3000,
    )


def nerve() -> Case:
    """A nerve that fires (FitzHugh, Nagumo): a fast number and a slow one."""

    def drift(t: Any, x: Any, args: Any) -> Any:
        fast = 10 * (x["fast"] - x["fast"] ** 3 / 3 - x["slow"] + 0.5)
        return {"fast": fast, "slow": 0.8 * (x["fast"] + 0.7 - 0.8 * x["slow"])}

    def prior(key: PRNGKeyArray, m: int) -> dict[str, Array]:
        white = jax.random.normal(key, (2, m))
        return {"fast": 1.5 * white[0], "slow": 0.7 * white[1]}

    return Case(
        smdp.SDE(drift, diffusion={"fast": 0.5, "slow": 0.1}),
        smdp.linear_grid(0.0, 0.6, 40),
        prior,
        simulation={"substeps": 4},
        particles=True,
        ends=1500,
        steps=4000,
    )


def pendulum() -> Case:
    """A pendulum that may go over the top, with noise a hundred times less than the starts."""

    def drift(t: Any, x: dict[str, Array], args: Any) -> dict[str, Array]:
        fall = -4 * jnp.sin(x["angle"]) - 0.3 * x["speed"]
        return {"angle": x["speed"], "speed": fall}

    def prior(key: PRNGKeyArray, m: int) -> dict[str, Array]:
        white = jax.random.normal(key, (2, m))
        return {"angle": white[0], "speed": 2 * white[1]}

    return Case(
        smdp.SDE(drift, diffusion={"angle": 0.01, "speed": 0.02}),
        smdp.linear_grid(0.0, 2.0, 50),
        prior,
        simulation={"substeps": 4},
        ends=1000,
        steps=3000,
    )


MORE = {
    "spring": spring,
    "shear": shear,
    "two_wells": two_wells,
    "predators": predators,
    "weather": weather,
    "kuramoto": kuramoto,
    "front": front,
    "wind": wind,
    "drug": drug,
    "nerve": nerve,
    "pendulum": pendulum,
}
