"""Flow maps whose noise depends on time: forward and back it is the same chain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp

KEY = jax.random.key(9)
TS = jnp.array([0.2, 0.5, 0.7, 1.1, 1.2])
RATE, START = 0.4, 0.8  # decay of the mean, variance of the prior


def growing(t):
    return 0.2 * jnp.exp(1.3 * t)


def chain(noise_at):
    """x -> exp(-rate dt) x + g sqrt(dt) z, walked back exactly; its variances at TS."""

    def step(t0, t1, x, args):
        return x * jnp.exp(-RATE * (t1 - t0))

    sde = smdp.SDE(
        step=step, inverse=smdp.integrated_backward(step), diffusion=growing, noise_at=noise_at
    )
    variance = [START]
    for t0, t1 in zip(np.asarray(TS)[:-1], np.asarray(TS)[1:], strict=True):
        g = float(growing(t0 if noise_at == "start" else t1))
        variance.append(variance[-1] * np.exp(-2 * RATE * (t1 - t0)) + g**2 * (t1 - t0))
    return sde, jnp.array(variance)


def scored(variance):
    return lambda t, x, args: -x / jnp.interp(t, TS, variance)


@pytest.mark.parametrize("noise_at", ["start", "end"])
def test_backward_moments_are_those_of_the_recursion(noise_at):
    """40 000 paths: mean and variance, four numbers at 4.5 standard errors: below 3e-5."""
    sde, variance = chain(noise_at)
    past = smdp.sample_posterior(
        sde, scored(variance), jnp.array([1.7]), TS, num_samples=40_000, key=KEY
    )
    mean, spread = 1.7, 0.0
    for i in range(4, 0, -1):
        t0, t1 = float(TS[i - 1]), float(TS[i])
        q = float(growing(t0 if noise_at == "start" else t1)) ** 2 * (t1 - t0)
        gain = np.exp(RATE * (t1 - t0)) - q / float(variance[i])
        mean, spread = gain * mean, gain**2 * spread + q
    x = np.asarray(past.samples, np.float64)
    assert abs(x.mean() - mean) < 4.5 * np.sqrt(spread / 40_000)
    assert abs(x.var() / spread - 1) < 4.5 * np.sqrt(2 / 40_000)


@pytest.mark.slow
@pytest.mark.parametrize("noise_at", ["start", "end"])
def test_simulated_variance_and_miss_of_the_exact_step(noise_at):
    """20 000 paths, variances at 4.5 standard errors.

    The miss of the best step, here the conditional mean, is the conditional variance of the past
    over g^2 dt: V_{i-1} / V_i for x -> x + noise.
    """
    sde, variance = chain(noise_at)
    x0 = jnp.sqrt(START) * jax.random.normal(jax.random.key(1), (20_000, 1))
    data = smdp.simulate(sde, x0, TS, key=KEY)
    np.testing.assert_allclose(
        np.asarray(data.xs).var(axis=(0, 2)), variance, rtol=4.5 * np.sqrt(2 / 20_000)
    )
    still = smdp.SDE(step=lambda a, b, x, c: x, diffusion=growing, noise_at=noise_at)
    data = smdp.simulate(still, x0, TS, key=KEY)
    g = growing(TS[:-1] if noise_at == "start" else TS[1:])
    variance = START + jnp.concatenate([jnp.zeros(1), jnp.cumsum(g**2 * jnp.diff(TS))])
    miss = smdp.step_miss(still, scored(variance), data, key=KEY, samples=20_000)
    np.testing.assert_allclose(miss, variance[:-1] / variance[1:], rtol=4.5 * np.sqrt(4 / 20_000))
    loss = smdp.OneStep().loss(
        scored(variance), still, smdp.Trajectories(TS[2:4], data.xs[0, 2:4]), None, KEY
    )
    x, q = data.xs[0], g[2] ** 2 * (TS[3] - TS[2])
    expected = (x[3] * (1 - q / variance[3]) - x[2]) ** 2 / q
    np.testing.assert_allclose(loss, expected[0], rtol=1e-5)


def test_score_targets_of_a_chain_with_noise_that_grows():
    """E[x T] = -1 for any score; 40 000 paths, bounds at 4.5 standard errors of the mean."""
    sde, _ = chain("start")
    x0 = jnp.sqrt(START) * jax.random.normal(jax.random.key(2), (40_000, 1))
    data = smdp.simulate(sde, x0, TS, key=KEY, score_targets=smdp.PowerRamp(2.0))
    products = np.asarray(data.xs * data.score_targets)[:, 1:, 0]
    error = products.std(axis=0) / np.sqrt(40_000)
    assert (np.abs(products.mean(axis=0) + 1) < 4.5 * error).all()


# A flow map of one fixed length ----------------------------------------------------------------


def fixed(t0, t1, x, args):
    return jax.jit(lambda t0, t1, x: 0.9 * x)(t0, t1, x)


def timed(t0, t1, x, args):
    return x * 0.9 ** ((t1 - t0) / 0.1)


EVEN, UNEVEN = smdp.linear_grid(0.0, 0.8, 8), smdp.log_grid(0.0, 0.8, 8)


def verbs(step):
    sde, x = smdp.SDE(step=step, diffusion=0.1), jnp.ones(3)
    score = scored(jnp.ones(5))
    settings = {"batch_axes": 0}
    return [
        lambda ts, **s: smdp.simulate(sde, jnp.ones((2, 3)), ts, key=KEY, **s),
        lambda ts, **s: smdp.integrate(sde, x, ts, key=KEY, **s),
        lambda ts, **s: smdp.probability_flow(sde, score, x, ts, **settings, **s),
        lambda ts, **s: smdp.sample_posterior(sde, score, x, ts, num_samples=2, key=KEY, **s),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("verb", range(4))
def test_a_step_that_ignores_the_times_is_asked_for_its_own_length_only(verb):
    call = verbs(fixed)[verb]
    call(EVEN)
    for ts, substeps in ((EVEN, 2), (UNEVEN, 1)):
        with pytest.raises(ValueError, match="must depend on t0 and t1 to be asked for steps"):
            call(ts, substeps=substeps)
    verbs(timed)[verb](UNEVEN, substeps=2)


def test_what_rests_rests_for_any_time():
    still = smdp.SDE(step=lambda a, b, x, c: x, diffusion=0.1)
    smdp.simulate(still, jnp.ones((2, 3)), UNEVEN, key=KEY, substeps=2)


# Paths that are lost, and correctors -------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"save": (-1, -3)}, {"save": (0, 2)}, {"save": "last"}])
@pytest.mark.parametrize("forget", [False, True])
def test_a_path_is_finite_where_all_of_it_is(settings, forget):
    """A score that is NaN at one time; a simulator that then puts its own value in its place."""

    def step(t0, t1, x, args):
        return jnp.where(jnp.isfinite(x), x, 0.0) if forget else x + 0 * t0

    def score(t, x, args):
        return jnp.where(jnp.abs(t - 0.4) < 0.04, jnp.nan, -x)

    sde = smdp.SDE(step=step, inverse=smdp.integrated_backward(step), diffusion=0.1)
    with pytest.warns(UserWarning, match=r"2 of 2 paths were lost: not finite from t=0.3 on"):
        past = smdp.sample_posterior(
            sde, score, jnp.ones(2), EVEN, num_samples=2, key=KEY, **settings
        )
    assert not past.info.finite.any()
    np.testing.assert_allclose(past.info.lost_at, 0.3, rtol=1e-6)
    inside = jax.jit(
        lambda x: smdp.sample_posterior(sde, score, x, EVEN, num_samples=2, key=KEY, **settings)
    )(jnp.ones(2))
    assert not inside.info.finite.any()


@pytest.mark.parametrize("drift", [False, True])
def test_corrector_is_not_asked_at_the_first_time(drift):
    """Brownian motion from a point: the score -x / (g^2 t) has no value there.

    With ``denoise_last`` the last Euler step lands on the point itself: no noise is left.
    """
    still = lambda t, x, args: jnp.zeros_like(x)
    sde = smdp.SDE(
        still if drift else None, step=None if drift else lambda a, b, x, c: x, diffusion=0.7
    )
    past = smdp.sample_posterior(
        sde,
        lambda t, x, args: -x / (0.49 * t),
        jnp.array([1.3, -0.4]),
        EVEN,
        num_samples=50,
        key=KEY,
        corrector=smdp.Langevin(1e-4, 2),
        denoise_last=True,
    )
    assert past.info.finite.all()
    np.testing.assert_allclose(past.samples, 0, atol=1e-6)


# Times beyond training --------------------------------------------------------------------------


class Zero:
    """A network without parameters."""

    def apply(self, variables, t, x, args):
        return jax.tree.map(jnp.zeros_like, x)


@pytest.mark.parametrize("verb", ["sample_posterior", "probability_flow"])
@pytest.mark.parametrize("ts", [jnp.linspace(-0.5, 0.8, 4), jnp.linspace(0.0, 1.4, 4)])
def test_every_learned_score_warns_of_times_beyond_its_own(verb, ts):
    score = smdp.LearnedScore(Zero(), {}, ts=EVEN)
    sde = smdp.SDE(lambda t, x, args: -x, diffusion=0.1)
    more = {"num_samples": 1, "key": KEY} if verb == "sample_posterior" else {}
    with pytest.warns(UserWarning, match=f"{verb} in .* goes beyond the times"):
        getattr(smdp, verb)(sde, score, jnp.ones(1), ts, **more)
    getattr(smdp, verb)(sde, score, jnp.ones(1), EVEN, **more)


# One state or a batch ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["sample_posterior", "probability_flow"])
def test_an_ambiguous_batch_is_refused(verb):
    """Elementwise drift and score take (5, 2) for one state, and for 5 of shape (2,)."""
    sde = smdp.SDE(lambda t, x, args: -x, diffusion=0.1)
    more = {"num_samples": 3, "key": KEY} if verb == "sample_posterior" else {}

    def call(score, **settings):
        result = getattr(smdp, verb)(sde, score, jnp.ones((5, 2)), EVEN, **more, **settings)
        return result.samples.shape if verb == "sample_posterior" else result.xs.shape

    def elementwise(t, x, args):
        return -x

    with pytest.raises(ValueError, match=r"one state \(batch_axes=0\), or 5 of shape \(2,\)"):
        call(elementwise)
    times = (3,) if verb == "sample_posterior" else (9,)
    assert call(elementwise, batch_axes=0) == (*times, 5, 2)
    assert call(elementwise, batch_axes=1) == (5, *times, 2)
    assert call(lambda t, x, args: -x.T.T.at[0, 0].set(0.0)) == (*times, 5, 2)
    known = smdp.LearnedScore(Zero(), {}, shapes=((2,),))
    with pytest.raises(ValueError, match="batch_axes must be given"):
        call(known)
    assert call(smdp.LearnedScore(Zero(), {}, shapes=((5, 2),))) == (*times, 5, 2)
