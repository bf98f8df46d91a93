"""Backward kernels without a network: what is exact, by construction or in closed form."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import BSpline
from scipy.stats import multivariate_normal

import smdp_jax as smdp
from smdp_jax.scores.conditions import Hats

N, G, END = 16, 0.3, 0.4
WAVES = 2 * np.pi * np.fft.rfftfreq(N, 1 / N)
RATES = -5e-3 * WAVES**2 - 1j * WAVES
RATES[-1] = RATES[-1].real
SHAPE = 1 / (1 + (np.fft.rfftfreq(N, 1 / N) / 4) ** 2)


def filtered(field, factor):
    return jnp.fft.irfft(jnp.asarray(factor, jnp.complex64)[None] * jnp.fft.rfft(field), N)


def transported(t0, t1, x, args):
    """Advection and diffusion on a ring, exactly."""
    span = jnp.asarray(t1 - t0, jnp.complex64)
    return jnp.fft.irfft(jnp.exp(jnp.asarray(RATES, jnp.complex64) * span) * jnp.fft.rfft(x), N)


RING = smdp.SDE(step=transported, diffusion=G)
TWO_STEPS = jnp.linspace(0.0, 1.0, 3)


def ring_paths(key, paths, times):
    k_prior, k_noise = jax.random.split(key)
    x0 = filtered(jax.random.normal(k_prior, (paths, N)), SHAPE)
    return smdp.simulate(RING, x0, jnp.linspace(0.0, END, times), key=k_noise)


def ring_posterior(x_end, steps):
    """Exact for noise that is added after each of the steps; E|w|^2 = N per mode."""
    d = -RATES.real * END / steps
    kept = np.exp(-2 * d * np.arange(steps)[:, None]).sum(axis=0)
    a, prior = np.exp(RATES * END), N * SHAPE**2
    noise = N * G**2 * END / steps * kept
    gain = prior * a.conj() / (prior * abs(a) ** 2 + noise)
    left = prior - (gain * a).real * prior
    weight = np.where((np.arange(len(d)) == 0) | (np.arange(len(d)) == N // 2), 1, 2)
    return np.fft.irfft(gain * np.fft.rfft(x_end), N), np.sqrt((weight * left).sum()) / N


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 8])
def test_linear_gaussian_posterior_is_exact_in_few_steps(steps):
    paths = ring_paths(jax.random.key(1), 4000, steps + 1)
    kernel = smdp.estimate_kernel(RING, paths, transform="periodic")
    ends = ring_paths(jax.random.key(2), 24, steps + 1).xs[:, -1]
    past = smdp.sample_posterior(
        RING, kernel, ends, paths.ts, num_samples=400, key=jax.random.key(3), batch_axes=1
    )
    exact = [ring_posterior(np.asarray(x, float), steps) for x in ends]
    mean, std = np.array([m for m, _ in exact]), exact[0][1]
    got = np.asarray(past.samples)
    # Two errors of the mean: 1 / 400 of the draws, and about 1 / 4000 of each step's gains. The
    # std has 24 x 16 x 400 entries, some of them correlated. Bounds at six standard errors.
    assert np.sqrt(((got.mean(axis=1) - mean) ** 2).mean()) < 0.08 * std
    assert np.sqrt(got.var(axis=1, ddof=1).mean()) / std == pytest.approx(1, abs=0.02)
    assert past.info.finite.all()
    assert (past.info.evaluations == steps).all()


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
    hats = Hats.of(data, most=9)
    assert len(hats.picks) == 2
    assert hats.count == 9
    features = jax.vmap(lambda i: hats(data.args_of(i), jnp.float32))(jnp.arange(40))
    assert features.shape == (40, 2, 9)
    np.testing.assert_allclose(features.sum(axis=2), 1, rtol=1e-6)
    assert (features >= 0).all()
    assert Hats.of(data, most=1).count == 1


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


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(), (1,)])
def test_tiny_states(shape):
    sde = smdp.SDE(lambda t, x, args: -x, diffusion=0.5)
    x0 = jax.random.normal(jax.random.key(0), (500, *shape))
    paths = smdp.simulate(sde, x0, jnp.linspace(0.0, 1.0, 4), key=jax.random.key(1))
    kernel = smdp.estimate_kernel(sde, paths)
    past = smdp.sample_posterior(
        sde, kernel, paths.at(0, -1), paths.ts, num_samples=3, key=jax.random.key(2), save=[0, 2]
    )
    assert past.samples.shape == (3, 2, *shape)


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
def test_part_of_the_grid_and_the_same_noise_in_chunks():
    paths = ring_paths(jax.random.key(1), 64, 9)
    kernel = smdp.estimate_kernel(RING, paths)
    ends = paths.xs[:5, 6]

    def sampled(**options):
        return smdp.sample_posterior(
            RING,
            kernel,
            ends,
            paths.ts[2:7],
            num_samples=4,
            key=jax.random.key(3),
            batch_axes=1,
            **options,
        ).samples

    whole = sampled()
    np.testing.assert_allclose(sampled(chunk_size=3), whole, rtol=1e-5, atol=1e-6)
    every = sampled(save="all")
    assert every.shape == (5, 4, 5, N)
    np.testing.assert_allclose(every[:, :, 0], whole, rtol=1e-6)
    np.testing.assert_allclose(every[:, :, -1], jnp.repeat(ends[:, None], 4, axis=1), rtol=1e-6)
    exact = sampled(denoise_last=True)
    assert np.var(np.asarray(exact)) < np.var(np.asarray(whole))
    noisier = sampled(input_noise=3.0)
    assert np.var(np.asarray(noisier), axis=1).mean() > np.var(np.asarray(whole), axis=1).mean()


@pytest.mark.slow
def test_base_of_inverse_physics():
    paths = ring_paths(jax.random.key(1), 200, 5)
    ends = paths.xs[:3, -1]
    sample = lambda kernel: (
        smdp.sample_posterior(
            RING, kernel, ends, paths.ts, num_samples=8, key=jax.random.key(3), batch_axes=1
        ).samples
    )
    kernels = [
        smdp.estimate_kernel(RING, paths, transform="periodic", base=base)
        for base in ("state", "inverse")
    ]
    # What is linear in the state is linear in its inverse step: the same kernel.
    np.testing.assert_allclose(*map(sample, kernels), atol=2e-3)


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


class Arrays(nn.Module):
    """A user's own network: it takes an array for the state, and sees nothing else."""

    @nn.compact
    def __call__(self, t, x, args):
        return nn.Dense(x.size)(jnp.tanh(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:sample_posterior. 1 of 1 end states lie outside")
@pytest.mark.filterwarnings("ignore:.* paths left the range of the training paths")
@pytest.mark.parametrize("model", [Arrays(), smdp.models.MLP((8,))])
def test_no_network_can_drive_a_path_away(model):
    """A remainder never exceeds what the paths missed, however large the parameters."""
    paths = ring_paths(jax.random.key(1), 40, 9)
    fit = smdp.fit(RING, model, paths, steps=1, batch_size=2, key=jax.random.key(0), progress=False)
    wild = jax.tree.map(lambda v: 1e4 * (1 + v), fit.kernel.variables)
    kernel = dataclasses.replace(fit.kernel, variables=wild)
    past = smdp.sample_posterior(
        RING, kernel, 30 * paths.at(0, -1), paths.ts, num_samples=20, key=jax.random.key(3)
    )
    assert past.info.finite.all()
    largest = np.abs(np.asarray(past.samples)).max()
    assert largest < 100 * np.abs(np.asarray(paths.xs)).max()


REFUSED = {
    "other steps": ({"ts": jnp.linspace(0.0, END, 3)}, "has its own steps"),
    "solver": ({"substeps": 2}, "substeps, corrector and noise_level need a score"),
    "noise level": ({"noise_level": 0.5}, "noise_level need a score"),
    "input noise": ({"input_noise": -1.0}, "input_noise must be at least 0 and finite, got -1"),
    "other state": ({"x_end": jnp.zeros(8)}, "x_end must be like the states"),
    "other noise": ({"sde": smdp.SDE(step=transported, diffusion=0.2)}, "another process"),
    "other physics": (
        {"sde": smdp.SDE(step=lambda t0, t1, x, args: 0.5 * x, diffusion=G)},
        "its physics differs",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    changes, message = REFUSED[case]
    paths = ring_paths(jax.random.key(1), 20, 5)
    kernel = smdp.estimate_kernel(RING, paths, transform="periodic")
    given = {
        "sde": RING,
        "score": kernel,
        "x_end": paths.at(0, -1),
        "ts": paths.ts,
        "num_samples": 2,
    }
    with pytest.raises(ValueError, match=message):
        smdp.sample_posterior(**(given | changes), key=jax.random.key(0))


def test_is_no_score(untyped):
    paths = ring_paths(jax.random.key(1), 20, 5)
    kernel = smdp.estimate_kernel(RING, paths, transform="periodic")
    with pytest.raises(ValueError, match="needs a score, got a LearnedKernel"):
        smdp.probability_flow(RING, kernel, paths.at(0, -1), paths.ts)


def test_bad_estimates():
    paths = ring_paths(jax.random.key(1), 20, 5)
    with pytest.raises(ValueError, match="from at least 8 paths, got 7"):
        smdp.estimate_kernel(RING, paths[:7])
    with pytest.raises(ValueError, match=r"transform must be 'auto', one of .* got 'wavelets'"):
        smdp.estimate_kernel(RING, paths, transform="wavelets")
    with pytest.raises(ValueError, match="must be unitary"):
        smdp.estimate_kernel(RING, paths, transform=(lambda f: 2 * f, lambda f: f / 2))


@pytest.mark.slow
@pytest.mark.parametrize(("walls", "want"), [(False, "Periodic"), (True, "Cosine")])
def test_transform_is_chosen_by_likelihood(walls, want):
    waves = np.pi * np.arange(16) / 16

    def step(t0, t1, x, args):
        if not walls:
            return transported(t0, t1, x, args)
        return jax.scipy.fft.idct(
            jnp.asarray(np.exp(-0.3 * waves**2), x.dtype) * jax.scipy.fft.dct(x, norm="ortho"),
            norm="ortho",
        )

    sde = smdp.SDE(step=step, diffusion=G)
    x0 = jax.random.normal(jax.random.key(0), (300, 16))
    paths = smdp.simulate(sde, x0, jnp.linspace(0.0, END, 5), key=jax.random.key(1))
    assert type(smdp.estimate_kernel(sde, paths).tables.transform).__name__ == want


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
