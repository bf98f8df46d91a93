"""What noisy sensors tell of a Gaussian field, at several times: one dense Gaussian."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np


def covariance_between(system: Any, s: float, t: float) -> np.ndarray:
    """Covariance of the fields of a ``GaussianModes`` at two times, (entries, entries)."""
    with jax.enable_x64(True):
        early, late = min(s, t), max(s, t)
        modes = np.asarray(system.marginal_variance(early), np.float64)
        modes = modes * np.exp(-np.asarray(system.decay_rates(), np.float64) * (late - early))
    kernel = np.fft.ifft2(modes).real
    i, j = np.divmod(np.arange(system.size**2), system.size)
    return kernel[(i[:, None] - i) % system.size, (j[:, None] - j) % system.size]


def sensor_posterior(
    system: Any,
    matrices: Sequence[Any],
    times: Sequence[float],
    values: Sequence[Any],
    variance: float,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean and covariance of the first field, and log evidence, given noisy sensors.

    ``matrices`` (sensors, entries) look at the field at ``times``, with noise of one variance.
    """
    looks = [np.asarray(a, np.float64) for a in matrices]
    seen = np.concatenate([np.asarray(v, np.float64).ravel() for v in values])
    pairs = list(zip(looks, times, strict=True))
    blocks = [[a @ covariance_between(system, s, t) @ b.T for b, t in pairs] for a, s in pairs]
    total = np.block(blocks) + variance * np.eye(len(seen))
    cross = np.concatenate([covariance_between(system, 0.0, t) @ a.T for a, t in pairs], axis=1)
    mean = cross @ np.linalg.solve(total, seen)
    covariance = covariance_between(system, 0.0, 0.0) - cross @ np.linalg.solve(total, cross.T)
    logdet = np.linalg.slogdet(2 * np.pi * total)[1]
    return mean, covariance, float(-0.5 * (seen @ np.linalg.solve(total, seen) + logdet))
