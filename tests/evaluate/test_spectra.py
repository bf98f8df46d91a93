"""Spectra against pure modes, Parseval's theorem and random fields of known slope."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax import evaluate


def gaussian_field(key: jax.Array, points: int, power: float) -> jax.Array:
    """Random field on a square grid with E|FFT u|^2 / N = |q|^-power and mean zero."""
    axis = np.fft.fftfreq(points, d=1 / points)
    wavenumber = np.hypot(axis[:, None], axis[None])
    wavenumber[0, 0] = np.inf
    filter_ = jnp.asarray(wavenumber ** (-power / 2), jnp.complex64)
    white = jax.random.normal(key, (points, points))
    return jnp.fft.ifft2(jnp.fft.fft2(white) * filter_).real


@pytest.mark.parametrize(
    ("wave_vector", "shell"), [((3, 0), 3), ((0, -5), 5), ((3, 4), 5), ((2, 2), 3), ((1, 1), 1)]
)
def test_pure_mode_lies_in_one_shell(wave_vector: tuple[int, int], shell: int) -> None:
    points, amplitude = 32, 0.7
    y, x = np.meshgrid(*[2 * np.pi * np.arange(points) / points] * 2, indexing="ij")
    field = amplitude * np.cos(wave_vector[0] * y + wave_vector[1] * x)
    power = evaluate.power_spectrum(field.astype(np.float32))
    np.testing.assert_allclose(
        power, np.where(np.arange(17) == shell, amplitude**2 / 2, 0), atol=1e-6
    )
    # Two entries of |FFT| = a N / 2, averaged over the shell's members.
    members = np.sum(evaluate.shell_indices((points, points)) == shell)
    amplitudes = evaluate.amplitude_spectrum(field.astype(np.float32))
    np.testing.assert_allclose(amplitudes[shell], amplitude * points**2 / members, rtol=1e-4)


@pytest.mark.parametrize("shape", [(128,), (32, 32), (24, 33), (8, 10, 12)])
def test_parseval(shape: tuple[int, ...]) -> None:
    field = jax.random.normal(jax.random.key(0), shape) + 0.5
    last = int(evaluate.shell_indices(shape).max())
    power = evaluate.power_spectrum(field, last)
    assert power.shape == (last + 1,)
    np.testing.assert_allclose(jnp.sum(power), jnp.mean(field**2), rtol=1e-5)
    np.testing.assert_allclose(power[0], jnp.mean(field) ** 2, rtol=1e-4)


@pytest.mark.parametrize("exponent", [4.0, 3.0])
def test_slope_of_a_gaussian_field(exponent: float) -> None:
    keys = jax.random.split(jax.random.key(1), 64)
    fields = jax.vmap(lambda key: gaussian_field(key, 64, exponent))(keys)
    power = jnp.mean(jax.vmap(evaluate.power_spectrum)(fields), axis=0)
    ks = np.arange(4, 25)
    # Power per mode, so that the number of modes in a shell drops out.
    modes = np.bincount(evaluate.shell_indices((64, 64)).ravel())[ks]
    slope = np.polyfit(np.log(ks), np.log(np.asarray(power)[ks] / modes), 1)[0]
    # Shell powers have relative errors sqrt(2 / (64 modes)) < 0.04 and the slope 0.007 at most;
    # 0.05 is 7 standard errors, less the curvature of |q|^-p within a shell.
    assert abs(slope + exponent) < 0.05


def test_spectral_error_of_scaled_fields() -> None:
    field = gaussian_field(jax.random.key(2), 32, 4.0)
    np.testing.assert_allclose(evaluate.spectral_error(field, 3 * field), np.log(3), rtol=1e-5)
    np.testing.assert_allclose(evaluate.spectral_error(3 * field, field), np.log(3), rtol=1e-5)
    moved = jnp.roll(field, (5, -3), axis=(0, 1)) + 2.0
    np.testing.assert_allclose(evaluate.spectral_error(field, moved), 0, atol=1e-4)


def test_spectral_error_floor_of_two_unrelated_fields() -> None:
    # In one dimension a shell holds one independent mode: |FFT|^2 is exponential, the difference of
    # two of its logarithms is logistic with mean modulus 2 log 2, and that of the amplitudes log 2.
    pairs = jax.random.normal(jax.random.key(3), (2, 1000, 64))
    errors = jax.vmap(evaluate.spectral_error)(pairs[0], pairs[1])
    # Standard error (pi^2 / 12 - log(2)^2)^(1/2) / sqrt(10 000 shells) = 0.006; 4 of them:
    # false-alarm rate 6e-5.
    assert abs(jnp.mean(errors) - np.log(2)) < 0.024


def test_published_error_takes_real_parts() -> None:
    field = gaussian_field(jax.random.key(5), 32, 4.0)
    np.testing.assert_allclose(evaluate.published_spectral_error(field, 3 * field), np.log(3), 1e-4)
    # cos(kx) moved by a quarter of its wave has no real part left; cos(k h) of it moved by h.
    wave = np.cos(2 * np.pi * np.arange(64) / 64).astype(np.float32)
    moved = np.cos(2 * np.pi * (np.arange(64) - 7) / 64).astype(np.float32)
    found = evaluate.published_spectral_error(moved, wave, 1)
    np.testing.assert_allclose(found, -np.log(np.cos(2 * np.pi * 7 / 64)), rtol=1e-4)
    np.testing.assert_allclose(evaluate.spectral_error(moved, wave, 1), 0, atol=1e-4)


@pytest.mark.parametrize(
    ("error", "floor"), [(evaluate.spectral_error, 0.17), (evaluate.published_spectral_error, 0.24)]
)
def test_floors_of_two_unrelated_fields_on_a_square(error, floor) -> None:
    """Shell k has about 2 pi k entries, every other one independent; both as the docstrings say."""
    keys = jax.random.split(jax.random.key(6), 400)
    fields = jax.vmap(lambda key: gaussian_field(key, 32, 4.0))(keys)
    errors = jax.vmap(error)(fields[:200], fields[200:])
    # One pair's error varies by 0.05, so the mean's standard error is 0.004; rounding adds 0.005.
    assert abs(jnp.mean(errors) - floor) < 0.02


@pytest.mark.parametrize("spectrum", [evaluate.power_spectrum, evaluate.amplitude_spectrum])
def test_spectra_under_jit_and_grad(spectrum) -> None:
    field = gaussian_field(jax.random.key(4), 16, 2.0)
    np.testing.assert_allclose(jax.jit(spectrum)(field), spectrum(field), rtol=1e-4, atol=1e-6)
    gradient = jax.grad(lambda u: jnp.sum(evaluate.power_spectrum(u, 11)))(field)
    np.testing.assert_allclose(gradient, 2 * field / field.size, rtol=1e-3, atol=1e-6)


def test_bad_inputs() -> None:
    field = jnp.ones((8, 8))
    with pytest.raises(ValueError, match=r"kmax must be in \[0, 6\], got 7"):
        evaluate.power_spectrum(field, 7)
    with pytest.raises(ValueError, match="got 0"):
        evaluate.spectral_error(field, field, kmax=0)
    with pytest.raises(ValueError, match=r"y must have .*, the shape of x"):
        evaluate.spectral_error(field, field[:4])
    wave = jnp.cos(jnp.arange(8.0))[:, None] * field
    for error in (evaluate.spectral_error, evaluate.published_spectral_error):
        with pytest.raises(ValueError, match="y must vary, got 1 everywhere"):
            error(wave, field, 3)
        with pytest.raises(ValueError, match="x must be finite, got 1 lost of 64"):
            error(wave.at[2, 3].set(jnp.nan), wave, 3)
    with pytest.raises(ValueError, match="along an axis or more, got 0"):
        evaluate.amplitude_spectrum(jnp.ones(()))
