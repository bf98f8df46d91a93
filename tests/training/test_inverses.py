"""Ways back along a flow map: what they miss and amplify, and which one training takes."""

import warnings
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import smdp_jax as smdp
from smdp_jax.solve.inverses import growth_of_inverse, miss_of_inverse
from smdp_jax.training.inverses import with_best_inverse

KEY = jax.random.key(4)
TS = jnp.linspace(0.0, 1.2, 5)
G = 0.05


class Nothing(nn.Module):
    """A network of which only the preconditioner's Gaussian is left."""

    @nn.compact
    def __call__(self, t, x, args):
        return x * self.param("size", lambda key: jnp.array(0.0))


def turned(speed):
    """The plane turned about its origin: walked back exactly by turning back."""

    def step(t0, t1, x, args):
        angle = speed * jnp.asarray(t1 - t0, x.dtype)
        c, s = jnp.cos(angle), jnp.sin(angle)
        return jnp.stack([c * x[0] - s * x[1], s * x[0] + c * x[1]])

    return smdp.SDE(step=step, diffusion=G)


def damped(rate):
    """Two numbers that fall to nothing."""

    def step(t0, t1, x, args):
        return x * jnp.exp(-rate * jnp.asarray(t1 - t0, x.dtype))

    return smdp.SDE(step=step, diffusion=G)


def paths(sde):
    return smdp.simulate(sde, 2 + jax.random.normal(KEY, (6, 2)), TS, key=KEY)


@pytest.mark.parametrize("angle", [0.4, 1.7])
def test_miss_and_growth_of_a_negated_turn(angle):
    """2 R - R^2 - 1 = -(R - 1)^2, and 2 - R has the singular value |2 - e^(i angle)|."""
    sde, x, dt = turned(angle / 0.3), jnp.array([1.0, -2.0]), 0.3
    missed = (2 * np.sin(angle / 2)) ** 2 * np.sqrt(5) / (G * np.sqrt(2 * dt))
    np.testing.assert_allclose(miss_of_inverse(sde, x, 0.0, dt, None), missed, rtol=1e-3)
    grown = np.sqrt(5 - 4 * np.cos(angle))
    np.testing.assert_allclose(growth_of_inverse(sde, x, 0.0, dt, None), grown, rtol=1e-4)
    back = replace(sde, inverse=smdp.integrated_backward(sde.step))
    np.testing.assert_allclose(growth_of_inverse(back, x, 0.0, dt, None), 1, rtol=1e-4)


def test_growth_of_a_step_without_derivatives_is_not_known():
    def step(t0, t1, x, args):
        return jax.pure_callback(lambda x: x, x, x)

    sde = smdp.SDE(step=step, diffusion=G)
    assert np.isnan(growth_of_inverse(sde, jnp.ones(2), 0.0, 0.3, None))


def test_the_better_way_back_is_taken_where_none_is_named():
    sde = turned(4.0)
    taken = with_best_inverse(sde, paths(sde))
    assert taken.inverse == smdp.integrated_backward(sde.step)
    slow = turned(0.1)
    assert with_best_inverse(slow, paths(slow)) == slow


def test_a_way_back_that_amplifies_is_not_taken():
    """A damped mode grows by e^(rate dt) = 90 where it is walked back, and is lost if negated."""
    sde = damped(15.0)
    with pytest.warns(UserWarning, match=r"misses by .* amplifies 1.99.*backward.* 90"):
        assert with_best_inverse(sde, paths(sde)) == sde


def test_a_bad_way_back_that_is_named_is_kept_and_warned_of():
    sde = turned(4.0)
    bad = replace(sde, inverse=lambda t1, t0, x, args: -x)
    with pytest.warns(UserWarning, match=r"SDE.inverse .*misses by .*smdp.negated"):
        assert with_best_inverse(bad, paths(sde)) == bad


def test_a_correction_is_walked_as_it_was_trained(no_step_miss, tmp_path):
    """A process that names no way back takes the correction's, also from a file."""
    sde = turned(4.0)
    data, windows = paths(sde), smdp.MultiStep(windows=(1,))
    found = smdp.fit(sde, Nothing(), data, windows, optax.sgd(0.0), steps=1, batch_size=4, key=KEY)
    smdp.save(found.correction, tmp_path / "term")
    correction = smdp.load_score(tmp_path / "term", Nothing())
    assert correction.inverse == "integrated_backward"
    named = replace(sde, inverse=smdp.integrated_backward(sde.step))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn = [
            smdp.sample_posterior(s, correction, data.at(0, -1), TS, num_samples=3, key=KEY)
            for s in (sde, named)
        ]
        misses = [smdp.step_miss(s, correction, data, key=KEY) for s in (sde, named)]
    np.testing.assert_array_equal(drawn[0].samples, drawn[1].samples)
    np.testing.assert_array_equal(*misses)
