"""The experiment with sensors end to end, on coarse grids and with hardly any training."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from smdp_jax.experiment import load, load_config_file, read_arrays, run_experiment

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiles_quickly")]

CONFIG = Path(__file__).parents[2] / "configs" / "sensors.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    file = load_config_file(CONFIG)
    config = dataclasses.replace(
        file.presets["small"],
        size=32,
        time_steps=8,
        trajectories=32,
        channels=4,
        blocks=1,
        steps=4,
        batch_size=4,
        test_cases=2,
        particles=48,
        heat_size=8,
        heat_particles=256,
    )
    return run_experiment(
        file,
        config,
        preset="small",
        runs_dir=tmp_path_factory.mktemp("runs"),
        say=lambda line: None,
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:moves of the end state are short")
@pytest.mark.filterwarnings("ignore:only .* particles count")  # 48 of a score of 4 updates
def test_what_is_compared(finished):
    """Figures of the table from the saved arrays; the heat equation against its exact answer."""
    run, arrays = load(finished), read_arrays(finished / "samples.npz", "")["arrays"]
    metrics = json.loads((finished / "metrics.json").read_text())["metrics"]
    truth = np.asarray(run.truth["paths"])[:, 0]
    misses = []
    for name in ("one time", "three times"):
        record = arrays["burgers"][name]
        assert record["samples"].shape == (2, 48, 32)
        assert record["ess"].shape == (2, 9)
        misses.append(np.sqrt(np.mean((record["samples"].mean(axis=1) - truth) ** 2)))
        row = metrics[f"Burgers, {name}: RMSE of the mean / of the prior's"]
        assert row["value"] == pytest.approx(misses[-1] / truth.std(), rel=1e-3)
        heat = arrays["heat"][name]
        # 256 particles with at least 40 that count: five standard errors of a mean are 0.8.
        assert metrics[f"heat, {name}: distance of the mean / exact RMSE"]["value"] < 0.8
        assert heat["ess"].min() > 40
        off = abs(heat["log_evidence"] - heat["exact_log_evidence"])
        assert off < 5 * heat["log_evidence_error"] + 0.1
    row = metrics["Burgers: RMSE with three times / with one"]
    assert row["value"] == pytest.approx(misses[1] / misses[0], rel=1e-3)
    assert row["bound"] == "at most"


def test_report_has_its_figures(finished):
    names = ("burgers", "heat", "particles_one", "particles_three", "training", "step_miss")
    for name in names:
        assert (finished / "figures" / f"{name}.png").stat().st_size > 1000
