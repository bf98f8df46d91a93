"""Time grids: ends, widths, and what makes none."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp


def test_linear_grid():
    ts = smdp.linear_grid(1.0, 3.0, 4)
    np.testing.assert_array_equal(ts, [1.0, 1.5, 2.0, 2.5, 3.0])
    assert ts.dtype == jnp.float32


@pytest.mark.parametrize("offset", [0.01, 0.1, 10.0])
def test_log_grid(offset, x64):
    """Equal steps of log(t - start + offset); ends exact; widths grow by one factor."""
    ts = smdp.log_grid(2.0, 12.0, 40, offset=offset)
    assert ts.shape == (41,)
    assert ts.dtype == jnp.float64
    assert (ts[0], ts[-1]) == (2.0, 12.0)
    steps = np.diff(np.log(np.asarray(ts) - 2.0 + offset))
    np.testing.assert_allclose(steps, math.log(1 + 10.0 / offset) / 40, rtol=1e-8)


def test_log_grid_becomes_linear_for_large_offsets(x64):
    np.testing.assert_allclose(
        smdp.log_grid(0.0, 1.0, 10, offset=1e6), smdp.linear_grid(0.0, 1.0, 10), atol=1e-6
    )


@pytest.mark.parametrize("grid", [smdp.linear_grid, smdp.log_grid])
@pytest.mark.parametrize(
    ("start", "end", "steps", "message"),
    [
        (0.0, 1.0, 0, "steps must be at least 1, got 0"),
        (0.0, math.inf, 3, r"end must be in \(0.0, inf\), got inf"),
        (1.0, 1.0, 5, r"end must be in \(1.0, inf\), got 1.0"),
        (2.0, 1.0, 5, r"end must be in \(2.0, inf\), got 1.0"),
        (0.0, math.nan, 5, r"end must be in \(0.0, inf\), got nan"),
    ],
)
def test_grid_errors(grid, start, end, steps, message):
    with pytest.raises(ValueError, match=message):
        grid(start, end, steps)


@pytest.mark.parametrize("offset", [0.0, -1.0, math.nan])
def test_log_grid_offset_error(offset):
    with pytest.raises(ValueError, match=f"offset must be finite and positive, got {offset}"):
        smdp.log_grid(0.0, 1.0, 5, offset=offset)
