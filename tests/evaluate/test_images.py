"""Structural similarity and LPIPS against scipy's filters and correlations, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, signal

from smdp_jax import evaluate

RNG = np.random.default_rng(0)


def reference_ssim(x, y, span):
    """Wang et al. (2004), eq. 13, by scipy's Gaussian filter in double precision."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    smooth = lambda field: ndimage.gaussian_filter(field, 1.5, truncate=3.5)
    mx, my = smooth(x), smooth(y)
    vx, vy, both = smooth(x * x) - mx**2, smooth(y * y) - my**2, smooth(x * y) - mx * my
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    whole = (2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return whole[tuple(slice(5, -5) for _ in x.shape)].mean()


@pytest.mark.parametrize(("shape", "offset"), [((32, 40), 0.0), ((17, 11), 100.0), ((64,), -3.0)])
def test_ssim_is_that_of_scipys_filters(shape, offset):
    y = offset + ndimage.gaussian_filter(RNG.standard_normal(shape), 1.0).astype(np.float32)
    x = y + 0.2 * RNG.standard_normal(shape).astype(np.float32)
    for span in (None, 2.5):
        found = evaluate.ssim(x, y, data_range=span)
        np.testing.assert_allclose(found, reference_ssim(x, y, span or np.ptp(y)), rtol=1e-3)
    np.testing.assert_allclose(evaluate.ssim(y, y), 1, rtol=1e-5)


def test_ssim_of_constant_fields_in_closed_form():
    x, y, c1 = jnp.full((12, 12), 0.5), jnp.full((12, 12), 0.8), 0.01**2
    found = jax.jit(evaluate.ssim)(x, y, data_range=1.0)
    np.testing.assert_allclose(found, (0.8 + c1) / (0.25 + 0.64 + c1), rtol=1e-5)
    assert evaluate.ssim(-y + 0.0 * x, y, data_range=1.0) < 0
    with pytest.raises(ValueError, match=r"y must vary, got 0.8 everywhere"):
        evaluate.ssim(x, y)


def test_ssim_bad_inputs():
    ones = jnp.ones((12, 12))
    with pytest.raises(ValueError, match=r"x must have .*, the shape of y"):
        evaluate.ssim(ones, ones[:11])
    with pytest.raises(ValueError, match="at least 11 points"):
        evaluate.ssim(ones[:10], ones[:10])
    with pytest.raises(ValueError, match="data_range must be finite and positive, got 0"):
        evaluate.ssim(ones, ones, data_range=0.0)
    with pytest.raises(ValueError, match="x must be finite"):
        evaluate.ssim(ones.at[3, 4].set(jnp.nan), ones, data_range=1.0)


def random_weights(channels=(4, 3, 5, 4, 2)):
    sizes, before, found = (11, 5, 3, 3, 3), 3, {}
    for i, (name, size, here) in enumerate(zip((0, 3, 6, 8, 10), sizes, channels, strict=True)):
        found[f"features.{name}.weight"] = RNG.standard_normal((here, before, size, size)) / size
        found[f"features.{name}.bias"] = RNG.standard_normal(here)
        found[f"lin{i}.model.1.weight"] = RNG.uniform(size=(1, here, 1, 1))
        before = here
    return {name: value.astype(np.float32) for name, value in found.items()}


def reference_lpips(x, y, weights):
    """Zhang et al. (2018), by scipy's correlations, one picture at a time."""

    def features(picture):
        h = (picture - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
        h = np.moveaxis(h, -1, 0)
        plan = ((0, 4, 2, False), (3, 1, 2, True), (6, 1, 1, True), (8, 1, 1, False))
        for name, stride, pad, pool in (*plan, (10, 1, 1, False)):
            if pool:
                views = np.lib.stride_tricks.sliding_window_view(h, (3, 3), (1, 2))
                h = views.max(axis=(-1, -2))[:, ::2, ::2]
            kernel, bias = (weights[f"features.{name}.{part}"] for part in ("weight", "bias"))
            padded = np.pad(h, ((0, 0), (pad, pad), (pad, pad)))
            h = np.stack([signal.correlate(padded, k, "valid")[0] for k in kernel])
            h = np.maximum(h[:, ::stride, ::stride] + bias[:, None, None], 0)
            yield h / (np.sqrt((h**2).sum(axis=0)) + 1e-10)

    total = 0.0
    for i, (a, b) in enumerate(zip(features(x), features(y), strict=True)):
        scale = weights[f"lin{i}.model.1.weight"].reshape(-1, 1, 1)
        total += (scale * (a - b) ** 2).sum(axis=0).mean()
    return total


@pytest.mark.slow
def test_lpips_is_that_of_scipys_correlations(tmp_path):
    weights = random_weights()
    np.savez(tmp_path / "alex.npz", **weights)
    read = evaluate.lpips_weights(tmp_path / "alex.npz")
    x, y = RNG.uniform(-1, 1, (2, 64, 70, 3)).astype(np.float32)
    found = jax.jit(evaluate.lpips)(x, y, read)
    np.testing.assert_allclose(found, reference_lpips(x, y, weights), rtol=1e-3)
    np.testing.assert_allclose(evaluate.lpips(x, x, read), 0, atol=1e-6)


def test_lpips_without_weights_says_what_is_needed(tmp_path):
    with pytest.raises(FileNotFoundError, match="without them LPIPS is not measured"):
        evaluate.lpips_weights(tmp_path / "none.npz")
    weights = random_weights()
    del weights["lin3.model.1.weight"]
    np.savez(tmp_path / "part.npz", **weights)
    with pytest.raises(ValueError, match=r"part.npz must hold lin3.model.1.weight, got"):
        evaluate.lpips_weights(tmp_path / "part.npz")
    picture = np.zeros((40, 40, 3))
    with pytest.raises(ValueError, match="at least 32 pixels"):
        evaluate.lpips(picture[:20], picture[:20], weights)
    with pytest.raises(ValueError, match=r"y must be in \[-1, 1\], got"):
        evaluate.lpips(picture, picture + 1.5, weights)
