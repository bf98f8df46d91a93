"""The Gaussian of a backward step: covariances, densities, and in which basis it is estimated."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

import smdp_jax as smdp

TWO_STEPS = jnp.linspace(0.0, 1.0, 3)


@pytest.mark.slow
def test_chain_from_data_has_the_covariance_of_the_data():
    """Whatever the simulator: here a nonlinear one, walked in very uneven steps."""

    def step(t0, t1, x, args):
        dt = jnp.asarray(t1 - t0, x.dtype)
        return x + dt * jnp.stack([x[1] - x[0] ** 3, -x[0] * jnp.cos(3 * x[1])])

    sde = smdp.SDE(step=step, diffusion=0.5)
    ts = jnp.array([0.0, 0.02, 0.1, 0.5, 0.7])
    x0 = jax.random.normal(jax.random.key(1), (20_000, 2)) + jnp.array([[0.5, 0.0]])
    paths = smdp.simulate(sde, x0, ts, key=jax.random.key(2))
    kernel = smdp.estimate_kernel(sde, paths)
    back = smdp.sample_posterior(
        sde,
        kernel,
        paths.xs[:, -1],
        ts,
        num_samples=1,
        key=jax.random.key(3),
        batch_axes=1,
        save="all",
    ).samples[:, 0]
    for j in range(len(ts)):
        want, got = np.cov(paths.xs[:, j].T), np.cov(back[:, j].T)
        # Standard errors of 20 000 draws are 1 % of a variance; wrong by chance once in 1e6.
        np.testing.assert_allclose(got, want, atol=0.05 * want.diagonal().max())
        np.testing.assert_allclose(back[:, j].mean(axis=0), paths.xs[:, j].mean(axis=0), atol=0.04)


@pytest.mark.slow
@pytest.mark.parametrize("transform", ["periodic", "cosine", "points", "joint"])
def test_log_density_is_that_of_the_mean_and_covariance(transform, x64):
    def step(t0, t1, x, args):
        return {"u": 0.9 * x["u"] + 0.1 * x["v"], "v": jnp.tanh(x["v"])}

    sde = smdp.SDE(step=step, diffusion={"u": 0.2, "v": 0.3})
    x0 = {k: jax.random.normal(jax.random.key(i), (200, 6)) for i, k in enumerate("uv")}
    paths = smdp.simulate(sde, x0, jnp.linspace(0.0, 1.0, 3), key=jax.random.key(5))
    kernel = smdp.estimate_kernel(sde, paths, transform=transform)
    earlier, later = paths.at(7, 1), paths.at(7, 2)
    flat = lambda x: np.concatenate([x["u"], x["v"]])
    covariance = kernel.covariance(1, later)
    want = multivariate_normal.logpdf(flat(earlier), flat(kernel.mean(1, later)), covariance)
    assert kernel.log_density(1, earlier, later) == pytest.approx(want, rel=1e-6)
    keys = jax.random.split(jax.random.key(6), 4000)
    drawn = jax.vmap(lambda k: kernel.sample(k, 1, later))(keys)
    got = np.cov(np.concatenate([drawn["u"], drawn["v"]], axis=1).T)
    # 144 entries within six standard errors, 1 / sqrt(4000) of a variance each.
    np.testing.assert_allclose(got, covariance, atol=6 * 1.5 * covariance.max() / np.sqrt(4000))


class Says(nn.Module):
    """N, h and two directions that the state tells."""

    takes_trees = True

    @nn.compact
    def __call__(self, t, x, args):
        scaled = x[0]
        place = jnp.arange(scaled.size, dtype=scaled.dtype).reshape(scaled.shape)
        mean, h, bump = 0.3 * scaled, 0.2 * jnp.sin(scaled), 2 * jnp.exp(-((place - 1) ** 2))
        return mean, h, bump * scaled, jnp.cos(place)


@pytest.mark.slow
@pytest.mark.parametrize("transform", ["periodic", "joint"])
def test_log_density_with_directions_is_that_of_the_covariance(transform, x64):
    sde = smdp.SDE(step=lambda t0, t1, x, args: 0.9 * x, diffusion=0.2)
    x0 = jax.random.normal(jax.random.key(0), (100, 6))
    paths = smdp.simulate(sde, x0, jnp.linspace(0.0, 1.0, 3), key=jax.random.key(5))
    kernel = smdp.estimate_kernel(sde, paths, transform=transform)
    tables = dataclasses.replace(kernel.tables, spread=True, directions=2)
    kernel = dataclasses.replace(kernel, model=Says(), variables={}, tables=tables)
    earlier, later = paths.at(7, 1), paths.at(7, 2)
    covariance = kernel.covariance(1, later)
    want = multivariate_normal.logpdf(earlier, kernel.mean(1, later), covariance)
    assert kernel.log_density(1, earlier, later) == pytest.approx(want, rel=1e-6)
    drawn = jax.vmap(lambda k: kernel.sample(k, 1, later))(
        jax.random.split(jax.random.key(6), 4000)
    )
    size = np.sqrt(np.outer(*[np.diag(covariance)] * 2))
    # 36 entries within six standard errors.
    np.testing.assert_allclose(np.cov(drawn.T) / size, covariance / size, atol=9 / np.sqrt(4000))
    assert np.abs(covariance / size - np.eye(6)).max() > 0.3


def test_numbers_beside_a_field_do_not_make_one_block_of_it():
    """Fewer paths than points: all entries at once would be fitted without error."""

    def step(t0, t1, x, args):
        return {"field": 0.9 * x["field"], "level": 0.5 * x["level"]}

    white = jax.random.normal(jax.random.key(0), (40, 33))
    sde = smdp.SDE(step=step, diffusion={"field": 0.5, "level": 1.0})
    x0 = {"field": white[:, 1:], "level": 3 + white[:, 0]}
    paths = smdp.simulate(sde, x0, TWO_STEPS, key=jax.random.key(1))
    kernel = smdp.estimate_kernel(sde, paths)
    sizes = [group.gain.shape[-1] for group in kernel.tables.groups]
    assert sizes == [1, 1]
    # Of a normal start of size 1 seen through noise 0.5 sqrt(1/2) and decay 0.9: 20 % of chance.
    got = np.sqrt(np.diag(kernel.covariance(0, paths.at(0, 1))))
    want = np.sqrt([1 / (1 + 0.81 / 0.125), 1 / (1 + 0.25 / 0.5)])
    np.testing.assert_allclose(got[:32].mean() / want[0], 1, atol=0.2)
    np.testing.assert_allclose(got[32] / want[1], 1, atol=0.35)


@pytest.mark.slow
def test_units_of_the_leaves_do_not_matter():
    mix = jnp.array([[0.9, 0.2, 0.0], [-0.3, 0.8, 0.1], [0.05, 0.0, 0.95]])

    def kernel_in(units):
        unit = jnp.array([units["a"], units["a"], units["b"]])

        def step(t0, t1, x, args):
            y = unit * (mix @ (jnp.append(x["a"], x["b"]) / unit))
            return {"a": y[:2], "b": y[2]}

        sde = smdp.SDE(step=step, diffusion={k: 0.1 * u for k, u in units.items()})
        x0 = jax.random.normal(jax.random.key(0), (200, 3)) * unit[None]
        paths = smdp.simulate(
            sde, {"a": x0[:, :2], "b": x0[:, 2]}, TWO_STEPS, key=jax.random.key(1)
        )
        kernel = smdp.estimate_kernel(sde, paths)
        return np.asarray(kernel.covariance(0, paths.at(3, 1))), np.asarray(unit)

    want, _ = kernel_in({"a": 1.0, "b": 1.0})
    got, unit = kernel_in({"a": 1e5, "b": 1e-4})
    np.testing.assert_allclose(got / unit / unit[:, None], want, rtol=1e-2, atol=1e-4)


@pytest.mark.slow
def test_far_from_gaussian_the_noise_of_an_entry_is_its_own():
    """Steps up or down, somewhere; by a kernel alone the likelihood decides."""
    place = jax.random.uniform(jax.random.key(0), (1000, 1), minval=2, maxval=14)
    side = jnp.where(jnp.arange(1000) % 2 == 0, 1.0, -1.0)[:, None]
    x0 = jax.nn.sigmoid(side * (jnp.arange(16.0)[None] - place))
    sde = smdp.SDE(lambda t, x, args: jnp.zeros_like(x), diffusion=0.05)
    paths = smdp.simulate(sde, x0, jnp.linspace(0.0, 1.0, 5), key=jax.random.key(1))
    objective = smdp.BackwardKernel()
    tables = objective.scales(sde, paths, precondition=True)
    assert type(tables.transform).__name__ == "Points"
    assert type(smdp.estimate_kernel(sde, paths).tables.transform).__name__ != "Points"
    gauss = smdp.Trajectories(paths.ts, jax.random.normal(jax.random.key(2), paths.xs.shape))
    smooth = smdp.Trajectories(gauss.ts, jnp.cumsum(gauss.xs, axis=2))
    tables = objective.scales(sde, smooth, precondition=True)
    assert type(tables.transform).__name__ != "Points"
