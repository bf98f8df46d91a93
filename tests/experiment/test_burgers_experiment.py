"""The Burgers experiment end to end, on a coarse grid and with a network that is hardly trained."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax.experiment import load, load_config_file, read_arrays, run_experiment
from smdp_jax.studies import noise_free

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiles_quickly")]

CONFIG = Path(__file__).parents[2] / "configs" / "burgers.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    file = load_config_file(CONFIG)
    config = dataclasses.replace(
        file.presets["small"],
        size=32,
        time_steps=8,
        trajectories=12,
        channels=4,
        blocks=1,
        steps=4,
        batch_size=4,
        test_cases=2,
        posterior_samples=3,
        backward_steps=4,
        euler_samples=2,
        chunk=6,
    )
    return run_experiment(
        file,
        config,
        preset="small",
        runs_dir=tmp_path_factory.mktemp("runs"),
        say=lambda line: None,
    )


@pytest.mark.slow
def test_what_is_compared(finished):
    """Ratios and bounds against the saved arrays, simulated forward here."""
    run, arrays = load(finished), read_arrays(finished / "samples.npz", "")["arrays"]
    metrics = json.loads((finished / "metrics.json").read_text())["metrics"]
    step, ts, paths = run.config.system().step, run.data.ts, np.asarray(run.truth["paths"])
    assert paths.shape == (2, 9, 32)
    assert arrays["paths"].shape == (2, 3, 5, 32)

    def miss(starts, of):
        ends = [noise_free.walk(step, jnp.asarray(x), ts) for x in starts]
        return np.mean((np.stack(ends) - paths[of, -1]) ** 2)

    samples = np.mean([miss(arrays["paths"][i, :, 0], [i]) for i in (0, 1)])
    alone, floor = miss(arrays["physics"], [0, 1]), miss(paths[:, 0], [0, 1])
    row = metrics["reconstruction MSE, reversed physics alone / sample"]
    assert row["value"] == pytest.approx(alone / samples, rel=1e-3)
    assert (row["target"], row["bound"]) == (3.0, "at least")
    row = metrics["reconstruction MSE of a sample / noise floor"]
    assert row["value"] == pytest.approx(samples / floor, rel=1e-3)
    assert row["bound"] == "at most"
    assert 8 % int(arrays["physics_stride"]) == 0
    modes, true = arrays["euler_modes"], arrays["true_modes"]
    assert modes.shape == (2, 2, *true.shape[1:])
    fair = np.abs(modes - true[:, None]).mean(axis=1) - np.abs(modes[:, 0] - modes[:, 1]) / 2
    row = metrics["CRPS of the initial modes, Euler's steps"]
    assert row["value"] == pytest.approx(fair.mean(), rel=1e-4)


def test_flows_know_the_noise_of_the_simulated_steps(finished):
    """Four simulator steps in each of eight, so 0.1 / 32 each."""
    run = load(finished)
    x, gain = run.data.at(0, -1), np.asarray(run.config.system().noise_gain(0.1 / 32))
    alone, of_flow = (
        np.fft.rfft(score(run.data.ts[-1], x, None))
        for score in (run.score, run.config.flow_score(run))
    )
    assert gain.max() > 1.2
    np.testing.assert_allclose(of_flow, gain * alone, rtol=0, atol=1e-4 * np.abs(alone).max())


def test_spectra_are_compared(finished):
    """By the first five modes; the flows that count are those within the range of the data."""
    run, arrays = load(finished), read_arrays(finished / "samples.npz", "")["arrays"]
    metrics = json.loads((finished / "metrics.json").read_text())["metrics"]
    power = lambda x: np.abs(np.fft.rfft(np.float64(x)))[..., 1:6] ** 2
    truth = power(run.truth["paths"][:, 0])
    mean = power(arrays["paths"][:, :, 0]).mean(axis=1)
    row = metrics["spectral error of the samples' mean power"]
    assert row["value"] == pytest.approx(np.abs(np.log(mean / truth)).mean() / 2, rel=1e-3)
    inside = np.abs(arrays["flows"]).max(axis=2) <= arrays["limits"]
    whole = inside.all(axis=1)
    assert metrics["share of flows that reach the start"]["value"] == whole.mean()
    errors = np.abs(np.log(power(arrays["flows"][:, 0]) / truth)).mean(axis=1) / 2
    expected = errors[whole].mean() if whole.any() else None
    assert metrics["spectral error of the flow"]["value"] == (
        expected and pytest.approx(expected, rel=1e-3)
    )
    one = np.abs(np.log(power(arrays["paths"][:, 0, 0]) / truth)).mean() / 2
    assert metrics["spectral error of a sample"]["value"] == pytest.approx(one, rel=1e-3)
    row = metrics["spectral error of a sample / of the flow"]
    assert row["value"] == (expected and pytest.approx(one / expected, rel=1e-3))
    assert row["bound"] == "at most"
    assert row["target"] == (expected and pytest.approx(2**0.5))


def test_samples_that_return_have_figures_of_their_own(finished):
    """All paths of one end state are lost, and one of another."""
    run, arrays = load(finished), read_arrays(finished / "samples.npz", "")["arrays"]
    lost = np.zeros(arrays["paths"].shape[:2], bool)
    lost[0], lost[1, 0] = True, True
    paths = np.where(lost[..., None, None], 1e6 * arrays["paths"], arrays["paths"])
    ends = np.where(lost[..., None], np.nan, arrays["sample_ends"])
    found = run.config.evaluate(run, arrays | {"paths": paths, "sample_ends": ends})
    values = {metric.name: metric.value for metric in found}
    whole = (np.abs(paths).max(axis=3) <= arrays["limits"][::2]).all(axis=2)
    assert whole.any()
    assert not whole[lost].any()
    assert values["share of paths that reach the start"] == pytest.approx(whole.mean())
    share = values["share of end states that a path returns from"]
    assert share == pytest.approx(whole.any(axis=1).mean())
    observed = run.truth["paths"][:, -1]
    floor = np.square(arrays["true_ends"] - observed).mean()
    miss = np.square(arrays["sample_ends"] - observed[:, None]).mean(axis=2)
    returned = values["reconstruction MSE of a returned sample / noise floor"]
    assert returned == pytest.approx(miss[whole].mean() / floor, rel=1e-3)


def test_report_has_its_figures(finished):
    for name in ("paths", "profiles", "spectra", "training", "step_miss"):
        assert (finished / "figures" / f"{name}.png").stat().st_size > 1000
