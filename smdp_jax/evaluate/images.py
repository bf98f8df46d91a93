"""Likeness of fields as pictures: structural similarity, and LPIPS on weights of your own.

    SSIM = mean of (2 m_x m_y + C1) (2 s_xy + C2) / ((m_x^2 + m_y^2 + C1) (s_x^2 + s_y^2 + C2))

with means m and covariances s under a Gaussian window (Wang et al. 2004, eq. 13);

    LPIPS = sum over layers of mean over pixels of sum_c w_c (f_x - f_y)_c^2

f the features of an AlexNet, each pixel's of length 1 (Zhang et al. 2018, eq. 1).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from smdp_jax.checks import check_holds, check_within, concrete
from smdp_jax.evaluate.arrays import (
    AnyArray,
    Grid,
    as_float,
    check_entries,
    check_none_lost,
    check_same_shape,
    check_varying,
)

_SIGMA, _RADIUS = 1.5, 5


def ssim(
    x: Grid, y: Grid, *, data_range: float | Float[Array, ""] | None = None
) -> Float[Array, ""]:
    """Structural similarity of two fields (Wang et al. 2004), 1 if they are the same.

    Gaussian window of 11 points and width 1.5 along every axis, K1 = 0.01, K2 = 0.03; windows that
    reach over the edge do not count.

    Parameters
    ----------
    x, y : array
        Fields (*grid) of the same units, at least 11 points along each axis; ``y`` is the true one.
    data_range : float, optional
        Largest less smallest value that a field can have, in its units, > 0; by default what ``y``
        spans.

    Returns
    -------
    Float[Array, ""]
        In [-1, 1].

    Raises
    ------
    ValueError
        If shapes or range do not fit; outside jit also if a field is not finite, or ``y`` is
        constant and no range is given.
    """
    check_same_shape(y=y, x=x)
    check_holds("each axis of x", min(x.shape, default=0), 2 * _RADIUS + 1, "points")
    if data_range is None:
        check_varying(y=y)
        data_range = jnp.max(y) - jnp.min(y)
    elif concrete(data_range):
        check_within("(0, inf)", data_range=data_range)
    check_none_lost(x=x, y=y)
    x, y = as_float("x", x), as_float("y", y)
    c1, c2 = ((k * jnp.asarray(data_range, y.dtype)) ** 2 for k in (0.01, 0.03))
    # Moments about the fields' own means, so that a large offset does not cost digits.
    of_x, of_y = jnp.mean(x), jnp.mean(y)
    u, v = x - of_x, y - of_y
    mean_u, mean_v = _smooth(u), _smooth(v)
    var_u, var_v = _smooth(u * u) - mean_u**2, _smooth(v * v) - mean_v**2
    both = _smooth(u * v) - mean_u * mean_v
    mean_x, mean_y = mean_u + of_x, mean_v + of_y
    light = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return jnp.mean(light * (2 * both + c2) / (var_u + var_v + c2))


def _smooth(field: Array) -> Array:
    """Means under the Gaussian window, where it lies inside."""
    taps = np.exp(-(np.arange(-_RADIUS, _RADIUS + 1) ** 2) / (2 * _SIGMA**2))
    window = jnp.asarray(taps / taps.sum(), field.dtype)
    along = lambda row: jnp.convolve(row, window, mode="valid")
    for axis in range(field.ndim):
        field = jnp.apply_along_axis(along, axis, field)
    return field


# AlexNet's convolutions: name of the weights, stride, padding, and whether to pool before.
_LAYERS = (
    ("features.0", 4, 2, False),
    ("features.3", 1, 2, True),
    ("features.6", 1, 1, True),
    ("features.8", 1, 1, False),
    ("features.10", 1, 1, False),
)
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


def lpips_weights(path: str | Path) -> dict[str, Array]:
    """Read the weights that `lpips` needs; none come with this package.

    Parameters
    ----------
    path : path
        A ``.npz`` file with the arrays of torchvision's AlexNet (``features.0.weight``,
        ``features.0.bias``, and of 3, 6, 8, 10) and of LPIPS 0.1 (``lin0.model.1.weight`` to
        ``lin4.model.1.weight``), under these names and in torch's layout.

    Returns
    -------
    dict of str to array
        The arrays.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If arrays are missing.
    """
    if not Path(path).is_file():
        said = f"no LPIPS weights at {path}: lpips_weights says which to save by numpy.savez"
        raise FileNotFoundError(f"{said}; without them LPIPS is not measured")
    names = [f"{layer}.{part}" for layer, *_ in _LAYERS for part in ("weight", "bias")]
    names += [f"lin{i}.model.1.weight" for i in range(len(_LAYERS))]
    with np.load(path) as stored:
        if missing := sorted(set(names) - set(stored)):
            raise ValueError(f"{path} must hold {', '.join(missing)}, got {sorted(stored)}")
        return {name: jnp.asarray(stored[name], jnp.float32) for name in names}


def lpips(
    x: Real[AnyArray, "height width 3"],
    y: Real[AnyArray, "height width 3"],
    weights: Mapping[str, Any],
) -> Float[Array, ""]:
    """Learned perceptual distance of two pictures (Zhang et al. 2018, version 0.1, AlexNet).

    Parameters
    ----------
    x, y : array (height, width, 3)
        Red, green, blue, each in [-1, 1]: a field through a colour map. At least 32 pixels a side.
    weights : dict of str to array
        From `lpips_weights`.

    Returns
    -------
    Float[Array, ""]
        0 for equal pictures; larger is less alike.

    Raises
    ------
    ValueError
        If the shapes do not fit; outside jit also if a value is not finite or beyond [-1, 1].
    """
    check_same_shape(y=y, x=x)
    check_holds("each side of x", min(x.shape[:2]), 32, "pixels")
    check_entries("[-1, 1]", x=x, y=y)
    pair = jnp.stack([as_float("x", x), as_float("y", y)]).astype(jnp.float32)
    shift, scale = (jnp.asarray(v).reshape(1, 1, 1, 3) for v in (_SHIFT, _SCALE))
    h = jnp.moveaxis((pair - shift) / scale, -1, 1)
    total = jnp.zeros(())
    for i, (name, stride, padding, pool) in enumerate(_LAYERS):
        if pool:
            h = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 1, 3, 3), (1, 1, 2, 2), "VALID")
        kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        pads = [(padding, padding)] * 2
        h = jax.lax.conv_general_dilated(h, kernel, (stride, stride), pads)
        h = jax.nn.relu(h + bias.reshape(1, -1, 1, 1))
        unit = h / (jnp.sqrt(jnp.sum(h**2, axis=1, keepdims=True)) + 1e-10)
        apart = jnp.square(unit[0] - unit[1])
        total += jnp.mean(jnp.sum(weights[f"lin{i}.model.1.weight"].reshape(-1, 1, 1) * apart, 0))
    return total
