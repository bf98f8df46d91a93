"""The turbulence experiment end to end, on a coarse grid and with networks that are hardly trained.

Where its arithmetic has a closed form (linear flows, white noise on a coarser grid), that too.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax.experiment import (
    load,
    load_config_file,
    read_arrays,
    run_experiment,
)
from smdp_jax.physics.spectral import vorticity
from smdp_jax.studies import noise_free, reversed_flow

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiles_quickly")]

CONFIG = Path(__file__).parents[2] / "configs" / "turbulence.py"
TINY = {
    "size": 12,
    "simulated_size": 24,
    "viscosity": 5e-3,
    "forcing_wavenumber": 1,
    "spin_up": 0.2,
    "end_time": 0.6,
    "reconstructed_time": 0.2,
    "time_steps": 3,
    "substeps": 4,
    "trajectories": 8,
    "modes": 4,
    "width": 4,
    "layers": 1,
    "inverse_steps": 60,
    "steps": 8,
    "windows": (2,),
    "batch_size": 2,
    "test_cases": 2,
    "posterior_samples": 3,
    "chunk": 18,
}


def preset(name) -> Any:
    return load_config_file(CONFIG).presets[name]


def tiny(**fields) -> Any:
    return dataclasses.replace(preset("small"), **TINY | fields)


def stop(*_, **__):
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was stopped before the last of its two trainings, and started again."""
    file, runs = load_config_file(CONFIG), tmp_path_factory.mktemp("runs")

    def begin(config):
        return run_experiment(file, config, preset="small", runs_dir=runs, say=lambda line: None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smdp.MultiStep, "noise_level", property(stop))
        with pytest.raises(KeyboardInterrupt):
            begin(tiny())
    return begin(tiny())


@pytest.fixture(scope="module")
def run(finished):
    return load(finished)


@pytest.fixture(scope="module")
def arrays(finished):
    return read_arrays(finished / "samples.npz", "")["arrays"]


@pytest.fixture(scope="module")
def metrics(finished):
    return json.loads((finished / "metrics.json").read_text())["metrics"]


@pytest.mark.slow
def test_paths_are_stored_on_the_coarse_grid_and_split(run):
    assert run.data.xs.shape == (8, 4, 12, 12)
    assert run.dataset.validation.xs.shape == (8, 4, 12, 12)
    # Only the part that is reconstructed, t = 0.2 ... 0.6.
    assert run.truth["paths"].shape == (2, 3, 12, 12)
    starts = [run.data.xs[:, 1], run.dataset.validation.xs[:, 1], run.truth["paths"][:, 0]]
    starts = np.concatenate(starts).reshape(18, -1)
    assert len(np.unique(starts, axis=0)) == 18


@pytest.mark.slow
def test_noise_of_the_stored_grid_is_the_configured_one():
    # Hardly any physics in so short a time: what is left is g dW. Modes at the coarse grid's
    # Nyquist wavenumber are cut: a share (11/12)^2 of its points' variance remains.
    config = tiny(viscosity=1e-9, drag=0.0, forcing="none", spin_up=0.0, end_time=0.01, noise=0.5)
    ts = smdp.linear_grid(0.0, 0.01, 1)
    paths = config.states(jax.random.key(0), ts, 18)
    variance = np.var(paths[:, 1] - paths[:, 0]) / (0.5**2 * 0.01 * (11 / 12) ** 2)
    # 18 x 121 independent modes: standard error 0.030; beyond 4.5 of them once in 150 000 times.
    assert abs(variance - 1) < 0.14


def test_inverse_travels_with_the_correction(run):
    inverse = run.config.inverse(run.learned)
    assert float(inverse.preconditioner.dt) == pytest.approx(-0.2)
    sde, ts = run.config.backward(run)
    np.testing.assert_allclose(ts, [0.2, 0.4, 0.6], rtol=1e-6)
    x = run.data.xs[0, -1]
    np.testing.assert_array_equal(sde.inverse(0.6, 0.4, x, None), inverse(0.6, 0.4, x, None))
    assert run.correction.noise_level == 1.0
    assert run.history["inverse_step"][-1] == 60
    assert run.history["inverse_loss"][-1] < 0.9  # it has begun to learn


def test_path_without_noise_is_inverse_and_correction(run, arrays):
    """The last step of it by hand, from the state that the end state led to."""
    path = arrays["shown"]["Without noise"]
    np.testing.assert_array_equal(path[-1], run.truth["paths"][0, -1])
    sde, (t0, t1) = run.config.backward(run)[0], run.data.ts[1:3]
    x = jnp.asarray(path[1])
    by_hand = sde.inverse(t1, t0, x, None) + (t1 - t0) * 0.6**2 * run.correction(t1, x, None)
    np.testing.assert_allclose(path[0], by_hand, rtol=1e-3, atol=1e-3)


def test_samples_shown_are_those_compared(arrays):
    shown, samples = arrays["shown"], arrays["estimates"]["sample"]
    assert samples.shape == (2, 3, 12, 12)
    np.testing.assert_allclose(shown["Sample 1"][0], samples[0, 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(shown["Sample 2"][0], samples[0, 1], rtol=1e-4, atol=1e-4)
    assert arrays["finite"].all()


def test_metrics_compare_with_the_noise_floor(run, arrays, metrics):
    ends, observed = arrays["ends"], run.truth["paths"][:, -1]
    floor = np.mean((ends["true"] - observed) ** 2)
    np.testing.assert_allclose(ends["true"][0], forward(run, arrays["estimates"]["true"][0]), 1e-4)
    ratio = np.mean((ends["sample"] - observed[:, None]) ** 2) / floor
    value = metrics["reconstruction MSE / noise floor: a sample"]["value"]
    assert value == pytest.approx(float(ratio), rel=1e-3)
    alone = [
        row["value"]
        for name, row in metrics.items()
        if name.startswith("reconstruction MSE / noise floor: physics alone")
    ]
    assert len(alone) == 3
    best = metrics["reconstruction MSE, best physics alone / a sample"]
    assert best["value"] == pytest.approx(min(alone) / value, rel=1e-3)
    assert best["target"] == 3.0
    row = metrics["spectral error of a sample"]
    assert (
        row["target"]
        == metrics[
            "spectral error of the vorticity: noise-free path, as in the windows of training"
        ]["value"]
    )


def forward(run, x):
    ts = run.config.backward(run)[1]
    return noise_free.walk(run.sde.step, jnp.asarray(x), ts)


def test_report_has_its_figures(finished):
    for name in ("fields", "backward", "spectra", "inverse", "training", "step_miss"):
        assert (finished / "figures" / f"{name}.png").stat().st_size > 1000
    assert "acTL" in (finished / "figures" / "backward.png").read_bytes()[:200].decode("latin1")


@pytest.mark.slow
def test_users_end_states_are_walked_back_by_the_learned_inverse(run):
    x_end = run.truth["paths"][:1, -1]
    past = run.config.posterior(run, x_end, num_samples=3, key=jax.random.key(1), save="all")
    assert past.samples.shape == (1, 3, 3, 12, 12)
    ts, (sde, _) = run.data.ts, run.config.backward(run)
    # The last step adds no noise: it is the inverse and the correction, by hand.
    x, (t0, t1) = past.samples[0, 0, 1], ts[1:3]
    by_hand = sde.inverse(t1, t0, x, None) + (t1 - t0) * 0.6**2 * run.correction(t1, x, None)
    np.testing.assert_allclose(past.samples[0, 0, 0], by_hand, rtol=1e-3, atol=1e-3)


# Pieces with closed forms


def decay(t0, t1, x, args):
    return x * jnp.exp(-3.0 * (t1 - t0))


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_walks_of_a_linear_flow(stride):
    ts = jnp.linspace(0.0, 1.0, 5)
    x = jnp.array([1.0, -2.0])
    path = noise_free.walk(decay, x, ts, save="all")
    exact = np.exp(-3.0 * np.asarray(ts)[:, None]) * np.asarray(x)
    np.testing.assert_allclose(path, exact, rtol=1e-5)
    np.testing.assert_allclose(noise_free.walk(decay, path[-1], ts[::-1]), x, rtol=1e-5)
    negated = noise_free.negated_walk(decay, x, ts, stride=stride)
    growth = 2 - np.exp(-3.0 * stride / 4)
    legs = 4 // stride
    expected = growth ** np.arange(legs, -1, -1)[:, None] * np.asarray(x)
    np.testing.assert_allclose(negated, expected, rtol=1e-5)


def test_best_length_of_negated_steps():
    """Steps that triple the state: F - 1 = 5^4 3^4 - 1, (7 * 9)^2 - 1, 79 * 81 + 1 for 1, 2, 4."""
    ts, x = jnp.linspace(0.0, 1.0, 5), jnp.array([[1.0], [-2.0]])
    tripled = lambda t0, t1, x, args: -3.0 * x
    starts, stride = noise_free.best_negated_starts(tripled, x, ts)
    assert stride == 2
    np.testing.assert_allclose(starts, 49 * np.asarray(x), rtol=1e-6)


def test_strides_must_divide_the_grid():
    with pytest.raises(ValueError, match="stride=3 must divide the 4 steps"):
        noise_free.negated_walk(decay, jnp.ones(2), jnp.linspace(0.0, 1.0, 5), stride=3)


def test_energy_spectrum_sums_to_the_energy():
    w = jax.random.normal(jax.random.key(0), (16, 16))
    # White noise has energy beyond the last whole shell: a field without it.
    w = jnp.fft.irfft2(jnp.fft.rfft2(w).at[5:12].set(0).at[:, 5:].set(0))
    total = reversed_flow.energy_spectrum(w).sum()
    assert float(total) == pytest.approx(float(vorticity.energy(w)), rel=1e-5)


def test_presets_differ_where_the_paper_does():
    small, paper = preset("small"), preset("paper")
    assert paper.simulated_size == 4 * paper.size == 256
    x = small.simulator(32, 1).prior(jax.random.key(0), 1)[0]
    assert small.step(0.0, 0.1, x).shape == (32, 32)
