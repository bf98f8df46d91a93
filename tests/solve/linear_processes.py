"""Linear processes with their posteriors in closed form: Fourier modes, and dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg


def wavenumbers(shape, length=1.0):
    """Angular wavenumbers of rfftn, one array per axis."""
    axes = [np.fft.fftfreq(n, length / n) for n in shape[:-1]]
    axes.append(np.fft.rfftfreq(shape[-1], length / shape[-1]))
    return [2 * np.pi * k for k in np.meshgrid(*axes, indexing="ij")]


class Waves:
    """``dv = rate v dt + g dW`` per Fourier mode, from a smooth Gaussian."""

    def __init__(self, shape, rate, g, end, steps, smooth=3.0):
        nyquist = np.zeros(rate.shape, bool)
        for axis, n in enumerate(shape):
            if n % 2 == 0:
                index = [slice(None)] * len(shape)
                index[axis] = n // 2
                nyquist[tuple(index)] = True
        self.rate = np.where(nyquist, rate.real, rate)
        self.shape, self.g, self.end = shape, g, end
        self.ts = jnp.linspace(0.0, end, steps + 1)
        k2 = sum(k**2 for k in wavenumbers(shape))
        self.prior = 1 / (1 + k2 / (2 * np.pi * smooth) ** 2) ** 2

    def modes(self, x):
        return jnp.fft.rfftn(x, norm="ortho")

    def field(self, w):
        return jnp.fft.irfftn(w, s=self.shape, norm="ortho")

    def drift(self, t, x, args):
        return self.field(jnp.asarray(self.rate, jnp.complex64) * self.modes(x))

    def step(self, t0, t1, x, args):
        rate = jnp.asarray(self.rate, jnp.complex64)
        return self.field(jnp.exp(rate * (t1 - t0).astype(jnp.complex64)) * self.modes(x))

    def noise(self, t, xp=jnp):
        d = xp.asarray(-self.rate.real, xp.float32)
        grown = -xp.expm1(-2 * d * t) / xp.where(d > 0, 2 * d, 1)
        return self.g**2 * xp.where(d > 0, grown, t)

    def variance(self, t, xp=jnp):
        d = xp.asarray(-self.rate.real, xp.float32)
        return xp.asarray(self.prior, xp.float32) * xp.exp(-2 * d * t) + self.noise(t, xp)

    def score(self, t, x, args):
        w, c = self.modes(x), self.variance(t)
        return -self.field(jax.lax.complex(w.real / c, w.imag / c))

    def start(self, key, n):
        white = jax.random.normal(key, (n, *self.shape))
        root = jnp.asarray(np.sqrt(self.prior), jnp.complex64)
        return jax.vmap(lambda x: self.field(root * self.modes(x)))(white)

    def exact(self, x):
        a = np.exp(self.rate * self.end)
        gain = self.prior * a.conj() / (self.prior * abs(a) ** 2 + self.noise(self.end, np))
        left = self.prior - (gain * a).real * self.prior
        n = self.shape[-1]
        column = np.arange(n // 2 + 1)
        weight = np.where((column == 0) | (2 * column == n), 1, 2)
        std = np.sqrt((left * weight).sum() / np.prod(self.shape))
        modes = np.fft.rfftn(np.asarray(x, float), norm="ortho")
        axes = tuple(range(len(self.shape)))
        return np.fft.irfftn(gain * modes, s=self.shape, axes=axes, norm="ortho"), std


def advection(n, speed, viscosity, g, end, steps):
    (k,) = wavenumbers((n,))
    return Waves((n,), -viscosity * k**2 - 1j * speed * k, g, end, steps)


def dispersive():
    """Waves of the linear Korteweg-de Vries equation, hardly damped."""
    (k,) = wavenumbers((48,))
    return Waves((48,), -0.3 - 1e-4 * k**2 + 2e-5j * k**3, 0.4, 0.5, 20)


def plane():
    kx, ky = wavenumbers((12, 16))
    return Waves((12, 16), -0.01 * (kx**2 + ky**2) - 1j * (0.8 * kx - 0.5 * ky), 0.25, 0.5, 12)


class Matrix:
    """``dx = A x dt + g dW`` from N(0, I)."""

    def __init__(self, a, g, end, steps):
        self.a, self.g, self.end = a, g, end
        self.ts = jnp.linspace(0.0, end, steps + 1)
        values, vectors = np.linalg.eig(a)
        self.values, vectors = values.astype(complex), vectors.astype(complex)
        self.vectors, self.back = vectors, np.linalg.inv(vectors)
        self.noise = self.back @ self.back.conj().T * g**2
        self.prior = self.back @ self.back.conj().T

    def covariance(self, t, xp=jnp):
        pairs = xp.asarray(self.values[:, None] + self.values.conj()[None])
        grown = xp.expm1(pairs * t) / pairs
        inner = xp.asarray(self.prior) * xp.exp(pairs * t) + xp.asarray(self.noise) * grown
        vectors = xp.asarray(self.vectors)
        return (vectors @ inner @ vectors.conj().T).real

    def step(self, t0, t1, x, args):
        return jax.scipy.linalg.expm(jnp.asarray(self.a, jnp.float32) * (t1 - t0)) @ x

    def drift(self, t, x, args):
        return jnp.asarray(self.a, jnp.float32) @ x

    def score(self, t, x, args):
        covariance = self.covariance(t.astype(jnp.complex64)).astype(jnp.float32)
        return -jnp.linalg.solve(covariance, x)

    def exact(self, x):
        e = scipy.linalg.expm(self.a * self.end)
        gain = e.T @ np.linalg.inv(self.covariance(self.end, np))
        left = np.eye(len(self.a)) - gain @ e
        return gain @ np.asarray(x, float), np.sqrt(np.diag(left))

    def start(self, key, n):
        return jax.random.normal(key, (n, len(self.a)))


def oscillators(steps=20):
    """A ring of six masses on springs, in positions and speeds."""
    ring = 2 * np.eye(6) - np.roll(np.eye(6), 1, 0) - np.roll(np.eye(6), -1, 0)
    k = 7.0 * ring + 0.5 * np.eye(6)
    a = np.block([[np.zeros((6, 6)), np.eye(6)], [-k, -0.1 * np.eye(6)]])
    return Matrix(a, 0.2, 2.0, steps)


CASES = {
    "advection": lambda: advection(48, -2.0, 2e-3, 0.2, 0.4, 25),
    "stiff diffusion": lambda: advection(64, 0.3, 0.2, 0.3, 0.4, 30),
    "dispersive": dispersive,
    "plane": plane,
    "oscillators": oscillators,
    "oscillators in short steps": lambda: oscillators(80),
    "stiff scalar": lambda: Matrix(np.array([[-40.0]]), 2.0, 0.5, 8),
}
