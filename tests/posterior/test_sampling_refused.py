"""What backward solves refuse, and where their warnings point."""

import math
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax.solve.integrate import check_save
from tests.linear_decay import CONTROLLER, LINEAR, RATE, SHORT, linear_score, sample


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"noise_level": -1.0}, "noise_level must be finite and not negative, got -1.0"),
        ({"ts": SHORT[::-1]}, "backward solves also take the increasing grid"),
        ({"ts": SHORT[:1]}, "at least 2 times, got (1,)"),
        ({"args_axes": 1}, "args_axes must be one of [None, 0], got 1"),
        (
            {"args_axes": 0, "args": jnp.ones(2), "batch_axes": 1},
            "must share 1 leading axes (batch_axes)",
        ),
        ({"solver": smdp.Splitting()}, "Splitting() solves flow maps"),
        ({"controller": CONTROLLER, "denoise_last": True}, "need fixed steps"),
        ({"controller": CONTROLLER, "substeps": 2}, "need fixed steps"),
        ({"controller": CONTROLLER, "corrector": smdp.Langevin(0.1)}, "need fixed steps"),
        ({"substeps": 0}, "substeps must be at least 1, got 0"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"x_end": jnp.array([1])}, "int32"),
        ({"score": lambda t, x, args: x[0]}, "score"),
        ({"score": lambda t, x, args: {"x": x}}, "score"),
        ({"x_end": jnp.array([jnp.nan])}, "x_end must be finite, got x_end[0]=nan"),
        ({"x_end": None}, "x_end must be one state or a batch of them, got None"),
        ({"x_end": jnp.ones((0, 1)), "batch_axes": 1}, "at least 1 end state, got 0"),
        ({"batch_axes": -1}, "batch_axes must be at least 0, got -1"),
        ({"save": ()}, "save must be 'last', 'all', or indices of the 9 times"),
        ({"save": (0, 9)}, "between -9 and 8, got (0, 9)"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sample(**{"x_end": jnp.ones(1), "ts": SHORT, "sde": LINEAR, "args": RATE} | settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step_size": 0.0}, "Langevin.step_size must be positive and finite, got 0.0"),
        ({"step_size": math.nan}, "Langevin.step_size must be positive and finite, got nan"),
        ({"step_size": 0.1, "steps": 0}, "steps must be at least 1, got 0"),
        ({"step_size": 0.1, "steps": 1.5}, "steps must be an int of at least 1, got 1.5"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_langevin_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        smdp.Langevin(**settings)


@pytest.mark.parametrize("save", ["first", 3, (0.5,), np.array([0.0])])
def test_save_of_another_kind(save):
    assert check_save(np.array([0, -1]), 9) == (0, -1)
    with pytest.raises(ValueError, match="save must be 'last', 'all', or indices of the 9 times"):
        check_save(save, 9)


def test_end_state_of_the_probability_flow():
    with pytest.raises(ValueError, match=re.escape("x_end must be finite, got x_end[0]=inf")):
        smdp.probability_flow(LINEAR, linear_score, jnp.array([jnp.inf]), SHORT, args=RATE)


def test_inverse_that_returns_another_state():
    sde = smdp.SDE(
        step=lambda t0, t1, x, args: x, inverse=lambda t1, t0, x, args: x[None], diffusion=0.5
    )
    message = "SDE.inverse must return a state like float32[1], got float32[1, 1]"
    with pytest.raises(ValueError, match=re.escape(message)):
        sample(jnp.ones(1), SHORT, sde=sde, score=linear_score, args=RATE)


def test_a_warning_points_at_the_line_that_asked():
    """However deep it is found, and through a function of the caller's own."""
    sde = smdp.SDE(lambda t, x, args: -(x**3), diffusion=0.1)
    blows_up = lambda t, x, args: -1e6 * x

    def ask(**how):
        ts, key = jnp.linspace(0.0, 1.0, 9), jax.random.key(0)
        return smdp.sample_posterior(sde, blows_up, jnp.ones(2), ts, num_samples=3, key=key, **how)

    for how in ({}, {"chunk_size": 2}):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            ask(**how)
        assert any("amplifies" in str(warning.message) for warning in seen)
        assert {warning.filename for warning in seen} == {__file__}
