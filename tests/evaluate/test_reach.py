"""How far back paths get, on paths whose answer is plain."""

import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax.evaluate import reached_times

TS = jnp.array([0.0, 0.5, 0.7, 1.0])
LIMITS = jnp.array([1.0, 2.0, 2.0, 2.0])


def path(*sizes):
    return jnp.stack([jnp.array([0.1, -size]) for size in sizes])


def test_time_of_the_last_state_before_the_first_excursion_backward():
    paths = jnp.stack(
        [
            path(1.0, 2.0, 2.0, 2.0),  # never outside
            path(1.5, 0.0, 0.0, 0.0),  # outside at the very start
            path(0.0, 0.0, 3.0, 0.0),  # came back, but had left
            path(jnp.nan, jnp.nan, 0.0, 0.0),
            path(0.0, 0.0, 0.0, 9.0),  # what is observed is not judged
            path(0.0, jnp.inf, jnp.inf, 0.0),
        ]
    )
    expected = [0.0, 0.5, 1.0, 0.7, 0.0, 1.0]
    np.testing.assert_allclose(reached_times(TS, paths, LIMITS), expected)
    np.testing.assert_allclose(
        reached_times(TS, paths.reshape(2, 3, 4, 2), LIMITS), np.reshape(expected, (2, 3))
    )


def test_errors():
    with pytest.raises(ValueError, match="one entry per time of ts"):
        reached_times(TS, path(1.0, 1.0), LIMITS)


def test_many_paths_of_nan_are_outside():
    """More numbers than one core takes the maximum of, in one program; some NaN, or all."""
    paths = np.zeros((300, len(TS), 128), np.float32)
    paths[::3, 0] = np.nan
    paths[1::3, 0, 7] = np.nan
    expected = np.where(np.arange(300) % 3 == 2, TS[0], TS[1])
    np.testing.assert_allclose(reached_times(TS, paths, LIMITS), expected)
