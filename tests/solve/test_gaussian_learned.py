"""Gaussian-exact backward steps whose Gaussian comes with the score that was learned."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import smdp_jax as smdp

KEY = jax.random.key(0)


class Zero(nn.Module):
    """A network that has learned nothing: the score is that of its Spectrum."""

    @nn.compact
    def __call__(self, t, x, args):
        return x * self.param("size", lambda key: jnp.zeros(()))


@pytest.mark.parametrize(("kind", "name"), [("drift", "learned"), ("flow map", "function")])
def test_a_table_of_fourier_modes_needs_no_linear_part(kind, name):
    """Odd grid, no ``linear=``: exact in three steps, Euler's being 6 times too long.

    4500 entries, of which 9 effective ones a draw: bounds are 5 standard errors.
    """
    n, end = 15, 0.3
    k = 2 * np.pi * np.fft.rfftfreq(n, 1 / n)
    rate = (0.06 * k**2 + 0.4j * k).astype(np.complex64)
    table = lambda t: (
        1 / (1 + jnp.arange(8.0)) * jnp.exp(-2 * rate.real * t)
        + 0.09
        * (jnp.where(rate.real > 0, -jnp.expm1(-2 * rate.real * t) / (2 * rate.real + 1e-9), t))
    )
    wave = lambda factor, x: jnp.fft.irfft(factor.astype(jnp.complex64) * jnp.fft.rfft(x), n)
    sde = smdp.SDE(lambda t, x, args: wave(-rate, x), diffusion=0.3)
    if kind == "flow map":
        decay = lambda dt: jnp.exp(-rate * dt.astype(jnp.complex64))
        sde = smdp.SDE(step=lambda a, b, x, args: wave(decay(b - a), x), diffusion=0.3)
    score, step = lambda t, x, args: wave(-1 / table(t), x), smdp.GaussianStep(reference=table)
    if name == "learned":
        times = np.linspace(0, end, 4)
        spectrum = smdp.models.Spectrum(times, np.stack([table(t) for t in times]))
        model = smdp.models.SpectralPreconditioned(Zero(), spectrum)
        score = smdp.LearnedScore(model, model.init(KEY, 0.1, jnp.ones(n), None))
        step = smdp.GaussianStep()
    x = jnp.cos(2 * np.pi * np.arange(n) / n)
    past = smdp.sample_posterior(
        sde, score, x, jnp.linspace(0, end, 4), num_samples=300, key=KEY, solver=step
    ).samples
    decay, first, last = np.exp(-rate * end), np.asarray(table(0.0)), np.asarray(table(end))
    gain = first * decay.conj() / last
    left = first * (1 - first * np.abs(decay) ** 2 / last)
    std = np.sqrt((left * np.where(np.arange(8) > 0, 2, 1)).sum() / n)
    assert float(jnp.abs(past.mean(axis=0) - wave(gain, x)).max()) < 5 * std / 300**0.5
    assert float(jnp.sqrt(past.var(axis=0).mean())) == pytest.approx(std, rel=0.07)


@pytest.mark.slow
def test_a_plain_learned_score_brings_the_moments_of_its_data():
    """The reference is the Gaussian of the data; whatever the score is, the solve is of that score.

    4000 draws each: 5 standard errors of a difference, and the error of steps of 1/48.
    """
    sde = smdp.SDE(lambda t, x, args: -x, diffusion=0.5)
    ts = smdp.linear_grid(0.0, 1.0, 48)
    k_prior, k_noise, k_one, k_other = jax.random.split(jax.random.key(3), 4)
    paths = smdp.simulate(sde, jax.random.normal(k_prior, (2000, 1)), ts, key=k_noise)
    scales = smdp.Preconditioner.of(sde, paths)
    mean, variance = scales.moments(ts[24])
    np.testing.assert_allclose(mean, paths.xs[:, 24].mean(), atol=1e-4)
    np.testing.assert_allclose(variance, paths.xs[:, 24].var(), rtol=1e-4)

    model = smdp.models.MLP((4,))
    variables = model.init(jax.random.key(0), ts[1], paths.at(0, 0), None)
    score = smdp.LearnedScore(model, variables, scales)
    ask = {"num_samples": 4000, "batch_axes": 0}
    one = smdp.sample_posterior(
        sde, score, jnp.array([0.4]), ts, key=k_one, solver=smdp.GaussianStep(), **ask
    )
    other = smdp.sample_posterior(
        sde, score, jnp.array([0.4]), ts, key=k_other, solver=diffrax.Euler(), substeps=8, **ask
    )
    spread = float(other.samples.std())
    assert abs(float(one.samples.mean() - other.samples.mean())) < 0.11 * spread
    assert abs(float(one.samples.std()) / spread - 1) < 0.08
