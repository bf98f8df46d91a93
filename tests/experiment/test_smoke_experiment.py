"""The smoke experiment end to end, on a coarse grid and with a network that is hardly trained."""

import dataclasses
import json
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

from smdp_jax.experiment import load, load_config_file, run_experiment

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiles_quickly")]

CONFIG = Path(__file__).parents[2] / "configs" / "smoke.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    file = load_config_file(CONFIG)
    config = dataclasses.replace(
        file.presets["small"],
        size=24,
        time_steps=13,
        first_step=9,
        trajectories=8,
        channels=(4,),
        blocks=1,
        windows=(2,),
        steps=4,
        batch_size=2,
        test_cases=2,
        posterior_samples=2,
        chunk=4,
    )
    with warnings.catch_warnings():
        # Steps five times as long as those of the presets cross many cells.
        warnings.filterwarnings("ignore", "Smoke: a step")
        return run_experiment(
            file,
            config,
            preset="small",
            runs_dir=tmp_path_factory.mktemp("runs"),
            say=lambda line: None,
        )


@pytest.fixture(scope="module")
def run(finished):
    return load(finished)


@pytest.fixture(scope="module")
def metrics(finished):
    return json.loads((finished / "metrics.json").read_text())["metrics"]


@pytest.mark.slow
def test_learns_only_the_second_part_of_the_paths(run):
    np.testing.assert_allclose(run.data.ts, np.linspace(0.45, 0.65, 5), rtol=1e-6)
    assert {k: x.shape for k, x in run.data.xs.items()} == {
        "marker": (8, 5, 24, 24),
        "velocity_x": (8, 5, 23, 24),
        "velocity_y": (8, 5, 24, 23),
    }


def test_every_path_has_obstacles_of_its_own(run):
    parts = (run.data, run.dataset.validation)
    masks = [np.asarray(part.args["obstacles"]) for part in parts]
    masks = np.concatenate([*masks, np.asarray(run.truth["args"]["obstacles"])])
    assert len(np.unique(masks.reshape(len(masks), -1), axis=0)) == len(masks) == 8 + 1 + 2


def test_projected_samples_keep_out_of_obstacles(metrics):
    assert metrics["largest divergence of a projected sample"]["value"] <= 1e-5
    assert metrics["largest flow into obstacles of a projected sample"]["value"] == 0


def test_samples_are_finite_and_compared(metrics):
    assert metrics["share of samples that are finite"]["value"] == 1
    assert all(row["value"] is not None for row in metrics.values())
    # The true state, simulated without noise, misses the observed end by about the noise of four
    # steps, g^2 * 0.2 = 0.002, and no estimate does better than half of that.
    floor = metrics["reconstruction MSE of a sample"]["target"]
    assert 0.0005 < floor < 0.004
    assert metrics["reconstruction MSE of a sample"]["value"] > floor / 2


def test_obstacles_of_observed_states_are_checked(run):
    x_end = {name: x[:1, -1] for name, x in run.truth["paths"].items()}
    mask = run.config.system().box((45, 0), (60, 30))[None]
    with pytest.raises(ValueError, match=r"leave the inflow free, .* got \d+ of its cells covered"):
        run.config.posterior(
            run, x_end, num_samples=1, key=jax.random.key(0), args={"obstacles": mask}
        )


def test_report_has_its_figures(finished):
    figures = {file.name for file in (finished / "figures").iterdir()}
    assert {"fields.png", "backward.png", "spectra.png"} <= figures
    animation = (finished / "figures" / "backward.png").read_bytes()
    assert b"acTL" in animation  # an animated PNG
