import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax.models import (
    FNO,
    MLP,
    DilatedResNet,
    SpectralGain,
    SpectralPreconditioned,
    Spectrum,
    UNet,
    mode_variance,
)
from smdp_jax.physics.spectral.periodic import multiplicity, squared_wavenumbers

G, T = 0.1, 0.2


def heat_variance(t, grid):
    """Mode variances of the stochastic heat equation with prior |k|^-4 (zero mean)."""
    k2 = squared_wavenumbers(grid).astype(float)
    safe = np.where(k2 == 0, 1, k2)
    prior = np.where(k2 == 0, 0, 30.0 / safe**2)
    noise = np.where(k2 == 0, G**2 * t, G**2 * -np.expm1(-2 * safe * t) / (2 * safe))
    return prior * np.exp(-2 * k2 * t) + noise


def covariance(variance, grid):
    """Dense covariance matrix of a field whose modes have these variances."""
    columns = np.eye(np.prod(grid)).reshape(-1, *grid)
    axes = tuple(range(1, len(grid) + 1))
    modes = np.fft.rfftn(columns, axes=axes, norm="ortho") * variance
    return np.fft.irfftn(modes, s=grid, axes=axes, norm="ortho").reshape(len(columns), -1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "gain", "net"),
    [
        ((8, 8), True, UNet(channels=(4,))),
        ((7, 9), False, MLP(widths=(4,))),
        ((16,), True, DilatedResNet(4, 1, (1,), dims=1)),
        ((15,), False, FNO(2, 3, 1, 4, dims=1)),
    ],
    ids=lambda value: str(value) if isinstance(value, tuple) else "",
)
def test_starts_as_the_exact_gaussian_score(grid, gain, net):
    # Truth: the gradient of the log density, with a dense covariance matrix in real space.
    with jax.enable_x64(True):
        ts = np.linspace(0, T, 9)
        table = np.stack([heat_variance(t, grid) for t in ts])
        model = SpectralPreconditioned(net, Spectrum(ts, table), spectral_gain=gain)
        x = jax.random.normal(jax.random.key(0), grid, jnp.float64)
        variables = jax.jit(model.init)(jax.random.key(1), 0.1, x, None)
        for t in (ts[1], ts[4], ts[8]):
            sigma = covariance(heat_variance(t, grid), grid)
            expected = -np.linalg.solve(sigma, np.asarray(x).ravel()).reshape(grid)
            score = jax.jit(model.apply)(variables, t, x, None)
            np.testing.assert_allclose(score, expected, rtol=1e-8, atol=1e-8)


def test_closed_form_variance_and_several_fields():
    with jax.enable_x64(True):
        grid = (8, 8)

        def variance(t):
            return {"u": 1 + t * jnp.ones((8, 5)), "v": 4 * jnp.ones((8, 5))}

        model = SpectralPreconditioned(UNet(channels=(4,)), variance)
        keys = jax.random.split(jax.random.key(0))
        x = {
            k: jax.random.normal(key, grid, jnp.float64) for k, key in zip("uv", keys, strict=True)
        }
        variables = jax.jit(model.init)(jax.random.key(1), 0.1, x, None)
        score = jax.jit(model.apply)(variables, 0.5, x, None)
        np.testing.assert_allclose(score["u"], -x["u"] / 1.5, rtol=1e-12)
        np.testing.assert_allclose(score["v"], -x["v"] / 4, rtol=1e-12)


@pytest.mark.slow
def test_correction_enters_as_written():
    # s = -C^{-1/2} (m y + N): with C = 4 and m = 1 + b the score is -(1 + b) x / 4 - N / 2.
    grid = (4, 4)
    net = MLP(widths=(4,), conditions=lambda _: None)
    model = SpectralPreconditioned(net, lambda t: 4 + 0 * t * jnp.ones((4, 3)), spectral_gain=True)
    x = jax.random.normal(jax.random.key(0), grid)
    variables = jax.jit(model.init)(jax.random.key(1), 0.1, x, None)
    variables["params"]["SpectralGain_0"]["Dense_2"]["bias"] = jnp.array([0.5])
    inner = jax.tree.map(lambda p: p + 0.2, variables["params"]["net"])
    variables["params"]["net"] = inner
    expected = -1.5 * x / 4 - jax.jit(net.apply)({"params": inner}, 0.1, x / 2, None) / 2
    np.testing.assert_allclose(
        jax.jit(model.apply)(variables, 0.1, x, None), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_network_sees_state_in_units_of_its_own_size():
    # Parseval: the root mean square over points is the mean over all modes.
    grid, seen = (6, 9), []
    table = np.random.default_rng(0).uniform(0.5, 2, (2, 6, 5))
    net = MLP(widths=(4,), conditions=lambda args: seen.append(args) or args)
    model = SpectralPreconditioned(net, Spectrum(np.array([0.0, 1.0]), table))
    x = jax.random.normal(jax.random.key(0), grid)
    model.init(jax.random.key(1), 0.0, x, {"nu": jnp.array(2.0)})
    args, shown = seen[0]
    rms = np.sqrt(np.trace(covariance(table[0], grid)) / 54)
    np.testing.assert_allclose(shown, x / rms, rtol=1e-5)
    assert args == {"nu": 2.0}


def test_mode_that_starts_from_nothing_is_safe():
    grid, ts = (8, 8), np.linspace(0, T, 9)
    table = np.stack([heat_variance(t, grid) for t in ts])
    assert table[0, 0, 0] == 0
    model = SpectralPreconditioned(UNet(channels=(4,)), Spectrum(ts, table), spectral_gain=True)
    x = jnp.ones(grid)
    variables = jax.jit(model.init)(jax.random.key(1), 0.1, x, None)
    score = jax.jit(model.apply)
    # floor 1e-3 of the next time's variance: x_0 / (1e-3 g² dt) and no more
    np.testing.assert_allclose(score(variables, 0.0, x, None), -1e3 / (G**2 * T / 8), rtol=1e-4)
    np.testing.assert_allclose(score(variables, T / 16, x, None), -16 / (G**2 * T), rtol=2e-3)


def test_interpolation_is_exact_for_pure_growth_and_pure_decay():
    ts = np.array([0.0, 0.5, 2.0])
    table = np.stack([[2 + 3 * t, np.exp(-7 * t)] for t in ts])
    evaluate = jax.jit(Spectrum(ts, table))
    for t in (0.0, 0.2, 0.5, 1.3, 2.0):
        values = evaluate(t)
        np.testing.assert_allclose(values, [2 + 3 * t, np.exp(-7 * t)], rtol=1e-5)
    for outside, edge in ((-1.0, 0.0), (9.0, 2.0)):
        np.testing.assert_allclose(evaluate(outside), evaluate(edge))


def test_tables_with_equal_contents_are_equal():
    ts, table = np.array([0.0, 1.0]), np.ones((2, 8, 5))
    a, b, c = Spectrum(ts, table), Spectrum(ts, table.copy()), Spectrum(ts, 2 * table)
    assert a == b
    assert hash(a) == hash(b)
    assert a != c
    assert a != Spectrum(ts, {"u": table})
    model = SpectralPreconditioned(UNet(channels=(4,)), a)
    assert model == SpectralPreconditioned(UNet(channels=(4,)), b)
    table[:] = 7.0
    assert a == b  # a copy is kept


@pytest.mark.parametrize("grid", [(8,), (5, 7), (4, 6, 6)])
def test_parseval(grid):
    xs = jax.random.normal(jax.random.key(0), (11, *grid))
    for radial in (False, True):
        variance = mode_variance(xs, radial=radial)
        total = np.sum(multiplicity(grid) * np.asarray(variance))
        np.testing.assert_allclose(total, np.mean(np.sum(xs**2, range(1, xs.ndim))), rtol=1e-5)
    assert multiplicity(grid).sum() == np.prod(grid)


def test_shells_are_averaged_over_all_modes_of_one_wavenumber():
    grid = (6, 6)
    xs = np.random.default_rng(0).normal(size=(3, *grid))
    power = np.mean(np.abs(np.fft.fft2(xs, norm="ortho")) ** 2, axis=0)
    k = np.fft.fftfreq(6, 1 / 6)
    k2 = np.rint(k[:, None] ** 2 + k[None] ** 2)
    expected = np.array([[power[k2 == k2[i, j]].mean() for j in range(4)] for i in range(6)])
    variance = mode_variance(jnp.asarray(xs, jnp.float32), radial=True)
    np.testing.assert_allclose(variance, expected, rtol=1e-4)


def test_estimate_of_a_known_spectrum():
    grid, n = (8, 8), 4000
    truth = 0.1 + heat_variance(0.05, grid)
    white = np.random.default_rng(0).normal(size=(n, *grid))
    modes = np.fft.rfft2(white, norm="ortho") * np.sqrt(truth)
    xs = jnp.asarray(np.fft.irfft2(modes, s=grid, norm="ortho"), jnp.float32)
    # |x_k|²/C_k has variance at most 2, so 5 standard errors: false alarm below 40 · 6e-7 (raw;
    # a right tail of a mean of 4000 is close to normal), fewer still in shells.
    tolerance = 5 * np.sqrt(2 / n)
    for radial in (False, True):
        np.testing.assert_allclose(mode_variance(xs, radial=radial) / truth, 1, atol=tolerance)


def test_from_trajectories_is_one_estimate_per_time():
    ts = jnp.array([0.0, 0.5, 1.0])
    xs = {"u": jax.random.normal(jax.random.key(0), (7, 3, 6, 6))}
    spectrum = Spectrum.from_trajectories(ts, xs, radial=True)
    evaluate = jax.jit(spectrum)
    for i, t in enumerate(ts):
        expected = mode_variance(np.asarray(xs["u"])[:, i], radial=True)
        np.testing.assert_allclose(evaluate(t)["u"], expected, rtol=1e-5)


TWO = np.array([0.0, 1.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Spectrum(np.array([0.0]), np.ones((1, 3))), "two strictly increasing"),
        (lambda: Spectrum(TWO[::-1], np.ones((2, 3))), "strictly increasing"),
        (lambda: Spectrum(TWO, np.ones((3, 3))), "variance must be 2 times"),
        (lambda: Spectrum(TWO, -np.ones((2, 3))), "at least 0"),
        (lambda: Spectrum(TWO, np.full((2, 3), np.nan)), "finite"),
        (lambda: Spectrum(TWO, np.zeros((2, 3))), "not all 0"),
        (lambda: Spectrum(TWO, np.ones((2, 3)), floor=0.0), "floor must be in"),
        (lambda: mode_variance(jnp.ones(3)), r"got \(3,\)"),
        (lambda: mode_variance(jnp.ones((0, 3))), r"got \(0, 3\)"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_gain_layers_keep_their_names():
    """Stored parameters are found by them: the layer that starts at zero is the last one."""
    found = SpectralGain(5).init(jax.random.key(0), jnp.array(0.3), (8,))["params"]
    assert found["Dense_0"]["kernel"].shape[1] == found["Dense_1"]["kernel"].shape[0] == 5
    assert found["Dense_2"]["kernel"].shape == (5, 1)
