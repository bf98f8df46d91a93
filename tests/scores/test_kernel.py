"""Backward kernels without a network: what is exact, by construction or in closed form."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax.scores.own_steps import check_same_process, move_of, noise_of

pytestmark = pytest.mark.usefixtures("compiles_quickly")

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
    "solver": ({"substeps": 2}, "substeps, corrector or noise_level needs a score"),
    "noise level": ({"noise_level": 0.5}, "noise_level needs a score"),
    "input noise": ({"input_noise": -1.0}, "input_noise must be finite and not negative, got -1"),
    "other state": ({"x_end": jnp.zeros(8)}, "x_end must be like the states"),
    "other noise": (
        {"sde": smdp.SDE(step=transported, diffusion=0.2)},
        "the process that the",
    ),
    "other physics": (
        {"sde": smdp.SDE(step=lambda t0, t1, x, args: 0.5 * x, diffusion=G)},
        "a physics that differs",
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
    with pytest.raises(ValueError, match=r"needs a score, .* got a LearnedKernel"):
        smdp.probability_flow(RING, kernel, paths.at(0, -1), paths.ts)


def test_another_process_is_told_where_one_number_of_many_is_not_finite():
    """Of 8192, which is more than one core takes the maximum of."""
    ts, x = jnp.linspace(0.0, 1.0, 4), jnp.ones(8192)
    own = smdp.SDE(step=lambda t0, t1, x, args: 2 * x, diffusion=G)
    other = smdp.SDE(step=lambda t0, t1, x, args: (2 * x).at[7].set(jnp.nan), diffusion=G)
    known = (ts, noise_of(own, ts, x), (x, None, move_of(own, ts, x, None)))
    check_same_process(*known, own)
    with pytest.raises(ValueError, match="physics that differs by nan where its own is up to 1"):
        check_same_process(*known, other)


def test_lost_paths_of_a_kernel_get_a_remedy_for_kernels():
    paths = ring_paths(jax.random.key(1), 40, 5)
    kernel = smdp.estimate_kernel(RING, paths)
    first, *rest = kernel.tables.groups
    broken = dataclasses.replace(first, gain=first.gain.at[2].set(jnp.nan))
    tables = dataclasses.replace(kernel.tables, groups=(broken, *rest))
    with pytest.warns(UserWarning, match=r"2 of 2 paths were lost.*or with input_noise \(Backward"):
        smdp.sample_posterior(
            RING,
            dataclasses.replace(kernel, tables=tables),
            paths.at(0, -1),
            paths.ts,
            num_samples=2,
            key=jax.random.key(0),
        )


def test_bad_estimates():
    paths = ring_paths(jax.random.key(1), 20, 5)
    with pytest.raises(ValueError, match="at least 8 paths, got 7"):
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


def test_second_call_of_a_kernel_compiles_nothing():
    """Nor does it look at the simulator again to tell whether it is the same one."""
    traces = []

    def drift(t, x, args):
        traces.append(1)
        return -x

    sde, ts = smdp.SDE(drift, diffusion=0.3), smdp.linear_grid(0.0, 1.0, 5)
    x0 = jax.random.normal(jax.random.key(0), (200, 2))
    data = smdp.simulate(sde, x0, ts, key=jax.random.key(1))
    kernel, counts = smdp.estimate_kernel(sde, data), []
    for i in range(3):
        traces.clear()
        x_end, key = data.at(i, -1), jax.random.key(i)
        smdp.sample_posterior(sde, kernel, x_end, ts, num_samples=2, key=key)
        counts.append(len(traces))
    assert counts[0] > 0
    assert counts[1:] == [0, 0]


@pytest.mark.parametrize("verb", ["sample_posterior", "certify"])
def test_inside_of_a_compiled_function(verb):
    """The same samples, whatever of the call is traced; ``ts`` and the kernel are closed over."""
    paths = ring_paths(jax.random.key(1), 60, 5)
    kernel, key = smdp.estimate_kernel(RING, paths), jax.random.key(3)
    x_end = paths.xs[0, -1]

    def ask(key, x, sde=RING):
        if verb == "sample_posterior":
            return smdp.sample_posterior(sde, kernel, x, paths.ts, num_samples=3, key=key).samples
        prior = lambda x, args: -0.5 * jnp.sum(x**2)
        return smdp.certify(sde, kernel, x, paths.ts, prior, num_paths=3, key=key).samples

    want = ask(key, x_end)
    found = {
        "key": jax.jit(lambda key: ask(key, x_end))(key),
        "state": jax.jit(lambda x: ask(key, x))(x_end),
        "nothing": jax.jit(lambda: ask(key, x_end))(),
        "one by one": jax.lax.map(lambda x: ask(key, x), x_end[None])[0],
    }
    for what, samples in found.items():
        np.testing.assert_allclose(samples, want, rtol=1e-4, atol=1e-5, err_msg=what)

    def faster(rate):
        moved = lambda t0, t1, x, args: transported(t0, t0 + rate * (t1 - t0), x, args)
        return ask(key, x_end, smdp.SDE(step=moved, diffusion=G))

    # A process of traced parameters can't be looked at; another one is refused here too.
    np.testing.assert_allclose(jax.jit(faster)(1.0), want, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="the process that the kernel was learned for, got a phys"):
        jax.jit(lambda: faster(2.0))()
