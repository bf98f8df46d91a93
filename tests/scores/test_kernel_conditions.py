"""Backward kernels whose gains depend on conditions, and what lies beyond the training paths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import BSpline

import smdp_jax as smdp
from smdp_jax.solve.condition_splines import Hats

TWO_STEPS = jnp.linspace(0.0, 1.0, 3)


@pytest.mark.slow
def test_gains_depend_on_conditions():
    """Rates of decay that differ between paths: exact for each of them."""
    sde = smdp.SDE(lambda t, x, args: -args["rate"] * x, diffusion=0.5)
    rate = jax.random.uniform(jax.random.key(0), (8000,), minval=0.2, maxval=3.0)
    x0 = 2 * jax.random.normal(jax.random.key(1), (8000,))
    ts = jnp.linspace(0.0, 1.0, 5)
    paths = smdp.simulate(
        sde, x0, ts, key=jax.random.key(2), args={"rate": rate}, args_axes=0, substeps=4
    )
    kernel = smdp.estimate_kernel(sde, paths)
    asked = jnp.array([0.3, 1.0, 2.9])
    past = smdp.sample_posterior(
        sde,
        kernel,
        jnp.full(3, 0.5),
        ts,
        num_samples=20_000,
        key=jax.random.key(3),
        args={"rate": asked},
        args_axes=0,
        batch_axes=1,
    ).samples
    d = np.exp(-np.asarray(asked))
    noise = 0.25 * (1 - d**2) / (2 * np.asarray(asked))
    variance = 1 / (1 / 4 + d**2 / noise)
    mean = variance * d / noise * 0.5
    # Gains are interpolated between knots and found from some 1000 paths each.
    np.testing.assert_allclose((past.mean(axis=1) - mean) / np.sqrt(variance), 0, atol=0.1)
    np.testing.assert_allclose(past.std(axis=1), np.sqrt(variance), rtol=0.05)


@pytest.mark.parametrize("place", [0.0, 40.0, -3e3])
def test_starts_from_one_place_are_known_but_for_rounding(place):
    def step(t0, t1, x, args):
        return jax.tree.map(lambda v: args["rate"] * v, x)

    sde = smdp.SDE(step=step, diffusion=0.3)
    x0 = {"a": jax.random.normal(jax.random.key(0), (500, 2)), "b": jnp.full((500,), place)}
    args = {"rate": jax.random.uniform(jax.random.key(1), (500,), minval=0.7, maxval=0.9)}
    paths = smdp.simulate(sde, x0, TWO_STEPS, key=jax.random.key(2), args=args, args_axes=0)
    kernel = smdp.estimate_kernel(sde, paths)
    past = smdp.sample_posterior(
        sde,
        kernel,
        paths.at(0, -1),
        TWO_STEPS,
        num_samples=8,
        key=jax.random.key(3),
        args=paths.args_of(0),
    )
    np.testing.assert_allclose(past.samples["b"], place, rtol=1e-5, atol=1e-5)
    assert 0.02 < float(past.samples["a"].std()) < 2


def test_what_lies_beyond_the_training_paths_is_warned_of():
    def step(t0, t1, x, args):
        return jax.tree.map(lambda v: (1 - 0.2 * args["rates"][1]) * v, x)

    sde = smdp.SDE(step=step, diffusion=0.3)
    x0 = {"a": jax.random.normal(jax.random.key(0), (500, 2)), "b": jnp.full((500,), 40.0)}
    rates = jax.random.uniform(jax.random.key(1), (500, 2), minval=1.0, maxval=2.0)
    ends = {"args": {"rates": rates}, "args_axes": 0}
    paths = smdp.simulate(sde, x0, TWO_STEPS, key=jax.random.key(2), **ends)
    kernel = smdp.estimate_kernel(sde, paths)
    ask = {"num_samples": 8, "key": jax.random.key(3), "args_axes": 0, "batch_axes": 1}
    x_end = jax.tree.map(lambda v: v[:3, -1], paths.xs)

    def past(x_end, rates):
        args = {"rates": jnp.asarray(rates, jnp.float32)}
        return smdp.sample_posterior(sde, kernel, x_end, TWO_STEPS, args=args, **ask)

    within = [[1.5, 1.1], [1.5, 1.5], [7.0, 2.05]]  # the first rate does nothing, and is seen, too
    inside = [[1.5, 1.1], [1.5, 1.5], [1.5, 2.05]]
    assert (past(x_end, inside).info.left_range_at == -jnp.inf).all()
    with pytest.warns(UserWarning, match=r"args\['rates'\]\[0\]=7 lies outside .*\[1.00., 2\]"):
        past(x_end, within)
    off = x_end | {"a": x_end["a"].at[1].add(50.0)}
    with (
        pytest.warns(UserWarning, match="1 of 3 end states lie outside of the range"),
        pytest.warns(UserWarning, match="8 of 24 paths left the range"),
    ):
        info = past(off, inside).info
    np.testing.assert_array_equal(info.left_range_at[1], 0.5)
    assert (info.left_range_at[0] == -jnp.inf).all()


def test_hats_sum_to_one_and_see_scalars_alone():
    args = {
        "a": jnp.arange(40.0),
        "same": jnp.ones(40),
        "field": jnp.ones((40, 5)),
        "b": jnp.arange(40) % 3,
    }
    data = smdp.Trajectories(jnp.arange(2.0), jnp.zeros((40, 2, 1)), args, args_axes=0)
    hats = Hats.of(data.args, 40, 9, jnp.float32)
    assert len(hats.picks) == 2
    assert hats.count == 9
    features = jax.vmap(lambda i: hats(data.args_of(i), jnp.float32))(jnp.arange(40))
    assert features.shape == (40, 2, 9)
    np.testing.assert_allclose(features.sum(axis=2), 1, rtol=1e-6)
    assert (features >= 0).all()
    assert Hats.of(data.args, 40, 1, jnp.float32).count == 1


@pytest.mark.parametrize("count", [3, 4, 7])
def test_gains_are_quadratic_splines_of_conditions(count):
    knots = np.sort(np.random.default_rng(count).uniform(size=count)).astype("float32")
    hats = Hats((jnp.asarray(knots),), ((0, 0),), smooth=True)
    breaks = np.interp(np.linspace(0, count - 1, count - 1), np.arange(count), knots)
    at = np.linspace(knots[0], knots[-1], 30, dtype="float32")
    of_gains, of_covariances = np.moveaxis(
        np.asarray(jax.vmap(lambda v: hats(v, jnp.float32))(at)), 1, 0
    )
    padded = np.pad(breaks, 2, mode="edge")
    inside = np.clip(at.astype(float), breaks[0], breaks[-1])
    want = BSpline.design_matrix(inside, padded, 2).toarray()
    np.testing.assert_allclose(of_gains, want, atol=1e-6)
    np.testing.assert_allclose(of_covariances @ knots, at, atol=1e-6)


def test_chains_turn_as_conditions_say():
    """By up to half a radian a step, twenty times: what one step errs by, all of them do."""
    turn = jnp.array([[0.0, -1.0], [1.0, 0.0]])

    def step(t0, t1, x, args):
        angle = jnp.asarray(t1 - t0, x.dtype) * (args["a"] + args["b"])
        return jnp.cos(angle) * x + jnp.sin(angle) * (turn @ x)

    sde, ts = smdp.SDE(step=step, diffusion=0.05), jnp.linspace(0.0, 1.0, 21)
    k_start, k_noise, k_a, k_b = jax.random.split(jax.random.key(0), 4)
    x0 = jax.random.normal(k_start, (1500, 2))
    args = {
        k: jax.random.uniform(key, (1500,), minval=-5.0, maxval=5.0)
        for k, key in (("a", k_a), ("b", k_b))
    }
    paths = smdp.simulate(sde, x0, ts, key=k_noise, args=args, args_axes=0)
    kernel = smdp.estimate_kernel(sde, paths)

    @jax.jit
    @jax.vmap
    def back(x, args):
        return jax.lax.scan(
            lambda x, j: (kernel.mean(j, x, args), None), x, jnp.arange(19, -1, -1)
        )[0]

    missed = back(paths.xs[:, -1], args) - paths.xs[:, 0]
    # The noise alone leaves 0.05 per entry; hat functions of the conditions 0.36.
    assert float(jnp.sqrt((missed**2).mean())) < 0.06


@pytest.mark.parametrize("unlike", [0.0, 0.02])
def test_conditions_that_go_together(unlike):
    """Two that say the same leave knots without a path: (low, high) and (high, low)."""
    k_args, k_prior, k_noise = jax.random.split(jax.random.key(4), 3)
    a = jax.random.uniform(k_args, (600,), minval=0.2, maxval=2.0)
    args = {"a": a, "b": 2 * a + unlike * jnp.sin(40 * a)}
    decay = smdp.SDE(lambda t, x, args: -args["a"] * x, diffusion=0.3)
    ts, x0 = smdp.linear_grid(0.0, 1.0, 10), jax.random.normal(k_prior, (600, 1))
    data = smdp.simulate(decay, x0, ts, key=k_noise, args=args, args_axes=0, substeps=8)
    kernel = smdp.estimate_kernel(decay, data)
    assert kernel.tables.hats.count > 7  # of both
    own = {"a": jnp.array(1.0), "b": jnp.array(2.0)}
    past = smdp.sample_posterior(
        decay, kernel, jnp.array([0.5]), ts, num_samples=4000, key=k_noise, args=own
    ).samples
    shrunk, noise = np.exp(-1), 0.09 * (1 - np.exp(-2)) / 2
    variance = noise / (noise + shrunk**2)
    assert float(past.mean()) == pytest.approx(0.5 * shrunk / (noise + shrunk**2), abs=0.12)
    assert float(past.std()) == pytest.approx(variance**0.5, rel=0.12)
