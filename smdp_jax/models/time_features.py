"""What a network sees of time: t as it is, its logarithm, or Fourier features of either.

A score changes fastest near t = 0, where it grows like 1/sqrt(t) or faster, so the logarithm is
the natural clock. Defaults: `MLP` sees "log" (the network of Holzschuh et al. 2023), convolution
networks "log_fourier", which resolves late times too.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from smdp_jax.checks import check_positive, check_within
from smdp_jax.models.layout import as_time

TimeFeatures = str | Callable[[Float[Array, ""]], Float[Array, " n"]]
"""A name ("raw", "log", "log_fourier") or a function from a scalar t to a vector."""


def raw(t: Float[Array, ""]) -> Float[Array, " 1"]:
    """Time as it is."""
    return t[None]


def log(t: Float[Array, ""]) -> Float[Array, " 1"]:
    """log(t + 1e-5); times below 0 count as 0, so that rounding gives no NaN."""
    return jnp.log(jnp.maximum(t, 0) + 1e-5)[None]


@dataclass(frozen=True)
class Fourier:
    """cos and sin of 2π u / period, for `count` periods in geometric progression.

    Parameters
    ----------
    count : int
        Number of periods; there are 2 · count features.
    min_period, max_period : float
        Shortest and longest period, positive, in the units of u. Good values: the longest one above
        the range of u, so that no two times look alike; the shortest one a few times the finest
        difference that matters.
    of : callable
        u as a function of t: `raw` or `log`.

    Raises
    ------
    ValueError
        If `count` is not positive or the periods are not positive and ordered.
    """

    count: int
    min_period: float
    max_period: float
    of: Callable[[Float[Array, ""]], Float[Array, " 1"]] = raw

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_positive(count=self.count)
        check_within("(0, inf)", min_period=self.min_period)
        check_within(f"[{self.min_period}, inf)", max_period=self.max_period)

    def __call__(self, t: Float[Array, ""]) -> Float[Array, " n"]:
        """Features of a scalar time, shape (2 · count,)."""
        periods = np.geomspace(self.max_period, self.min_period, self.count)
        phase = self.of(t) * jnp.asarray(2 * np.pi / periods, t.dtype)
        return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)])


# log(t + 1e-5) spans 11.5 up to t = 1 and 16 up to t = 100: one period of 40 tells them all apart.
_NAMED = {"raw": raw, "log": log, "log_fourier": Fourier(4, 3.0, 40.0, of=log)}


def time_vector(features: TimeFeatures, t: ArrayLike, dtype: DTypeLike) -> Float[Array, " n"]:
    """Features of the time t, as a vector of the given dtype."""
    function = _NAMED.get(features) if isinstance(features, str) else features
    if function is None:
        want = f"one of {sorted(_NAMED)}, a Fourier(...) or a function of t"
        raise ValueError(f"time_features must be {want}, got {features!r}")
    vector = jnp.asarray(function(as_time(t, dtype)), dtype)
    if vector.ndim != 1:
        raise ValueError(f"time features must be a vector, got shape {vector.shape}")
    return vector
