"""What ``refine_posterior`` says of data that it does not suit, and what it refuses."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from tests.refined_paths import CUBIC, DATA, ENDS, GAIN, GRID, KEY, SEEN, STARTS, refine

pytestmark = pytest.mark.usefixtures("untyped")  # what users see


def test_starts_that_are_not_gaussian_are_told():
    two = np.sign(STARTS - STARTS.mean(0))
    data = smdp.Trajectories(DATA.ts, jnp.stack([jnp.asarray(two, "float32"), DATA.xs[:, 1]], 1))
    with pytest.warns(UserWarning, match=r"are not: the mean size of a component is .* not 0.798"):
        refine(np.tile(SEEN, (4, 1)), data=data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refine(np.tile(SEEN, (4, 1)))


def test_noise_that_differs_between_paths_is_told():
    strength = np.where(np.arange(900) % 4 == 0, 3.0, 0.3)[:, None]
    ends = GAIN * STARTS + (ENDS - GAIN * STARTS) * strength
    data = smdp.Trajectories(DATA.ts, jnp.asarray(np.stack([STARTS, ends], 1), "float32"))
    with pytest.warns(UserWarning, match=r"same Gaussian on all paths, and it is not: its mean"):
        refine(np.tile(SEEN, (4, 1)), data=data)


def test_noise_that_is_not_gaussian_from_one_start_is_told():
    """Two wells between which noise decides; where it does not, nothing is said."""
    wells = smdp.SDE(lambda t, x, args: 4 * x - 4 * x**3, diffusion=0.4)
    starts = 0.02 * jax.random.normal(KEY, (600, 4))
    data = smdp.simulate(wells, starts, GRID, key=jax.random.key(5), substeps=2)
    how = {"sde": wells, "ts": GRID, "data": data, "noise_paths": 256}
    with pytest.warns(UserWarning, match=r"Gaussian from every start, and it is not: its mean"):
        refine(starts[:4], 0.9 * jnp.ones(4), **how)
    data = smdp.simulate(CUBIC, starts, GRID, key=jax.random.key(5), args=2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refine(starts[:4], data.at(0, -1), **how | {"sde": CUBIC, "data": data}, args=2.0)


def test_samples_that_still_miss_are_told():
    with pytest.warns(UserWarning, match=r"4 of 4 samples still miss the end state"):
        refine(np.tile(SEEN, (4, 1)), 50 * SEEN)


ONE = np.zeros((4, 3))


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"samples": np.zeros(3)}, "samples must have the shape"),
        ({"samples": np.zeros((4, 2))}, r"samples must have the shape .* got \[\(4, 2\)\]"),
        ({"batch_axes": 1}, "samples must have the shape"),
        ({"batch_axes": -1}, "batch_axes must be at least 0, got -1"),
        ({"step": 0.0}, r"step must be in \(0, 1\], got 0.0"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"directions": 2.5}, "directions must be an int of at least 1, got 2.5"),
        ({"x_end": np.array([0.0, np.nan, 0.0])}, r"x_end must be finite, got x_end\[1\]=nan"),
        ({"ts": jnp.array([0.0, 1.0])}, r"ts\[-1\] must be one of the data's ts, got 1"),
        ({"data": DATA[:2]}, "data must hold at least 3 paths, got 2"),
        ({"sde": smdp.SDE(lambda t, x, args: -x, diffusion=None)}, "positive, got None"),
        ({"sde": smdp.SDE(lambda t, x, args: x**9 * 1e30, diffusion=1.0)}, "must be finite from"),
        (
            {"data": smdp.Trajectories(DATA.ts, DATA.xs.at[:, 0].set(1.0))},
            "starts of data must differ, got all alike",
        ),
        ({"key": 3}, "key must be one PRNG key"),
        ({"args_axes": 1}, "args_axes must be one of"),
    ],
)
def test_refused(given, match):
    with pytest.raises(ValueError, match=match):
        refine(**{"samples": ONE, **given})


def test_data_of_another_kind_are_refused():
    with pytest.raises(TypeError, match="data must be Trajectories"):
        refine(ONE, data=STARTS)
    with pytest.raises(ValueError, match="x_end must be like the data's states"):
        refine(ONE, data=smdp.Trajectories(DATA.ts, DATA.xs[..., :2]))
