"""Spectra, references and linear parts that follow conditions: heat of many viscosities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import smdp_jax as smdp
from smdp_jax.models import SpectralPreconditioned, Spectrum

N, END, G = 16, 0.6, 0.2
K2 = (2 * np.pi * np.fft.rfftfreq(N, 1 / N)) ** 2
PRIOR = 2 / (1 + (np.arange(N // 2 + 1) / 3) ** 2) ** 2
ORTHO = (lambda x: jnp.fft.rfft(x, norm="ortho"), lambda w: jnp.fft.irfft(w, norm="ortho"))
TS = jnp.linspace(0.0, END, 7)
SLOW, FAST = 1e-3, 8e-3
KEY = jax.random.key(0)


def filtered(gain, x):
    return ORTHO[1](jnp.asarray(gain).astype(jnp.complex64) * ORTHO[0](x))


def variance(t, args):
    decay = args["nu"] * jnp.asarray(K2, "float32")
    grown = jnp.where(decay > 0, -jnp.expm1(-2 * decay * t) / jnp.maximum(2 * decay, 1e-9), t)
    return jnp.asarray(PRIOR, "float32") * jnp.exp(-2 * decay * t) + G**2 * grown


def score(t, x, args):
    return filtered(-1 / variance(t, args), x)


RATES = smdp.LinearPart(lambda args: args["nu"] * jnp.asarray(K2, "float32"), ORTHO)
SDE = smdp.SDE(lambda t, x, args: filtered(-args["nu"] * K2, x), diffusion=G)


@pytest.fixture(scope="module")
def data():
    k_nu, k_prior, k_noise = jax.random.split(KEY, 3)
    nu = jnp.exp(jax.random.uniform(k_nu, (4000,), minval=np.log(SLOW), maxval=np.log(FAST)))
    x0 = jax.vmap(lambda z: filtered(np.sqrt(PRIOR), z))(jax.random.normal(k_prior, (4000, N)))
    exact = smdp.SDE(SDE.drift, diffusion=G, linear=RATES)  # noise of any step is exact
    args = {"same": jnp.ones(4000), "nu": nu}
    return smdp.simulate(exact, x0, TS, key=k_noise, args=args, args_axes=0)


def conditions(nu):
    return {"same": jnp.ones(()), "nu": jnp.asarray(nu, "float32")}


@pytest.mark.parametrize("radial", [False, True])
def test_a_spectrum_follows_conditions(data, radial):
    """Of 4000 paths about 600 tell a knot: 6 % of a variance at one standard error, without bias.

    One table for all viscosities is off by up to 8 times.
    """
    spectrum = Spectrum.from_trajectories(data.ts, data.xs, args=data.args, radial=radial)
    alike = Spectrum.from_trajectories(data.ts, data.xs, radial=radial)
    for nu in np.geomspace(SLOW, FAST, 9):
        for t in (0.1, 0.35, END):
            truth = variance(t, conditions(nu))
            error = np.log(jax.jit(spectrum)(jnp.asarray(t), conditions(nu)) / truth)
            assert np.abs(error).max() < 0.3
            assert np.abs(error).mean() < 0.08
    assert np.abs(np.log(alike(jnp.asarray(END)) / variance(END, conditions(SLOW)))).max() > 1
    assert spectrum != alike
    assert alike == Spectrum.from_trajectories(
        data.ts, data.xs, args={"all": jnp.full(4000, 3.0)}, radial=radial
    )


class Zero(nn.Module):
    """A network that has learned nothing."""

    @nn.compact
    def __call__(self, t, x, args):
        return x * self.param("size", lambda key: jnp.zeros(()))


@pytest.mark.parametrize("gain", [False, True])
@pytest.mark.parametrize("table", ["closed form", "spectrum"])
def test_a_score_starts_at_the_gaussian_of_its_conditions(data, table, gain):
    of = variance
    if table == "spectrum":
        of = Spectrum.from_trajectories(data.ts, data.xs, args=data.args)
    model = SpectralPreconditioned(Zero(), of, spectral_gain=gain)
    x = jax.random.normal(KEY, (N,))
    variables = model.init(KEY, 0.1, x, conditions(SLOW))
    for nu in (SLOW, FAST):
        want = filtered(-1 / of(jnp.asarray(0.2), conditions(nu)), x)
        found = model.apply(variables, 0.2, x, conditions(nu))
        np.testing.assert_allclose(found, want, rtol=2e-4, atol=2e-4)
    if gain:  # which sees the conditions where a table says which there are
        seen = len(variables["params"]["SpectralGain_0"]["Dense_0"]["kernel"])
        plain = SpectralPreconditioned(Zero(), lambda t: variance(t, conditions(SLOW)), True)
        less = plain.init(KEY, 0.1, x, None)["params"]["SpectralGain_0"]["Dense_0"]["kernel"]
        assert seen - len(less) == (of.conditions.count if table == "spectrum" else 0)


def test_a_reference_and_its_linear_part_follow_conditions(data):
    """Moments at 4 % standard error; rates where the paths are well above noise."""
    reference = smdp.GaussianReference.of(data, ORTHO)
    linear = reference.linear_part(data)
    for nu in (1.5e-3, 3e-3, 6e-3):
        mean, spread = reference.moments(0.35, conditions(nu))
        truth = variance(0.35, conditions(nu))
        assert np.abs(np.log(spread / truth)).max() < 0.4
        assert (np.abs(mean) < 6 * np.sqrt(np.asarray(truth) / 500)).all()
        rates = np.real(linear.rates(conditions(nu)))
        np.testing.assert_allclose(rates[:6], nu * K2[:6], atol=0.06 * nu * K2[5])


@pytest.mark.parametrize("way", ["reference", "learned", "closed form"])
def test_few_steps_are_right_at_every_viscosity(data, way):
    """Exact scores, three steps, 3000 draws each; Euler's would be 20 times too wide.

    Tables at 4 % and the draws' own error leave 3 % of the spread.
    """
    nus, x = jnp.asarray([SLOW, 3e-3, FAST]), 0.5 * jax.random.normal(jax.random.key(5), (N,))
    args, used = {"same": jnp.ones(3), "nu": nus}, score
    if way == "reference":
        reference = smdp.GaussianReference.of(data, ORTHO)
        step = smdp.GaussianStep(linear=reference.linear_part(data), reference=reference)
    elif way == "learned":
        spectrum = Spectrum.from_trajectories(data.ts, data.xs, args=data.args)
        model = SpectralPreconditioned(Zero(), spectrum)
        used = smdp.LearnedScore(model, model.init(KEY, 0.1, x, conditions(SLOW)))
        step = smdp.GaussianStep()
    else:
        step = smdp.GaussianStep(reference=variance)
    past = smdp.sample_posterior(
        SDE,
        used,
        jnp.tile(x, (3, 1)),
        jnp.linspace(0.0, END, 4),
        num_samples=3000,
        key=KEY,
        solver=step,
        args=args,
        args_axes=0,
        batch_axes=1,
    ).samples
    weight = np.where(np.isin(np.arange(len(K2)), (0, N // 2)), 1, 2)
    for draws, nu in zip(past, nus, strict=True):
        kept, last = np.exp(-nu * K2 * END), np.asarray(variance(END, conditions(nu)))
        left = PRIOR * (1 - PRIOR * kept**2 / last)
        std = np.sqrt((weight * left).sum() / N)
        assert float(jnp.sqrt(draws.var(axis=0).mean())) == pytest.approx(std, rel=0.03)
        mean = filtered(PRIOR * kept / last, x)
        off = float(jnp.abs(draws.mean(axis=0) - mean).max())
        assert off < 0.1 * std + (0.08 * float(jnp.abs(mean).max()) if way == "learned" else 0)


def test_conditions_that_are_missing_or_do_not_fit(data):
    spectrum = Spectrum.from_trajectories(data.ts, data.xs, args=data.args)
    with pytest.raises(ValueError, match="args must be conditions like those of the paths"):
        spectrum(jnp.asarray(0.1))
    with pytest.raises(ValueError, match=r"variance must be 7 times by 7 knots by modes"):
        Spectrum(TS, np.ones((7, 9)), conditions=spectrum.conditions)
    with pytest.raises(ValueError, match="args mapped over axis 0 must have 4000 entries"):
        Spectrum.from_trajectories(data.ts, data.xs, args={"nu": jnp.ones(3)})
