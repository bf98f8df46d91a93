"""An experiment of twenty lines: what it gets by default."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax.experiment import load, load_config_file, run_experiment
from smdp_jax.experiment.calibrated import calibrated, calibration_of, lost_of
from smdp_jax.experiment.run_directory import RunFiles

FILE = Path(__file__).parents[2] / "configs" / "ornstein_uhlenbeck.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    file = load_config_file(FILE)
    config = dataclasses.replace(
        file.presets["small"],
        time_steps=16,
        trajectories=500,
        steps=300,
        batch_size=128,
        learning_rate=1e-2,
        test_cases=60,
        posterior_samples=19,
    )
    runs = tmp_path_factory.mktemp("runs")
    return run_experiment(file, config, preset="small", runs_dir=runs, say=lambda line: None)


def test_the_example_is_short():
    lines = FILE.read_text().split('"""', 2)[2].splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 22


def test_report_says_what_every_experiment_is_asked(finished):
    found = json.loads((finished / "metrics.json").read_text())["metrics"]
    for what in ("lost", "coverage", "SBC", "TARP", "CRPS", "reconstruction", "backward step"):
        assert any(what in name for name in found), what
    page = (finished / "report.html").read_text()
    assert page.count("<figure") == 3
    assert "0 of 1140 paths lost" in page
    # Held-out pairs are not those of training.
    run = load(finished)
    assert run.dataset.validation.num_samples == 60
    assert not np.isin(run.dataset.validation.xs[:, 0], run.data.xs[:, 0]).any()


def test_stored_calibration_is_the_one_computed(finished):
    run, arrays = load(finished), RunFiles(finished).read_samples()[0]
    key = jax.random.split(jax.random.fold_in(jax.random.key(0), 2))[1]
    held_out = run.dataset.validation
    past = smdp.Posterior(arrays["samples"], None)
    report = smdp.calibration_report(run.sde, run.learned, held_out, key=key, drawn=past)
    stored = calibration_of(arrays)
    assert stored.observables == report.observables
    np.testing.assert_array_equal(stored.sbc_ranks, report.sbc_ranks)
    assert [dataclasses.asdict(m) for m in stored.metrics] == [
        dataclasses.asdict(m) for m in report.metrics
    ]


def test_too_few_held_out_paths_or_draws_tell_nothing(finished):
    run, key = load(finished), jax.random.key(1)
    held_out = run.dataset.validation
    assert calibrated(run.sde, run.learned, held_out[:19], key=key) == {}
    some = smdp.Posterior(np.zeros((60, 8, *held_out.xs.shape[2:])), None)
    assert calibrated(run.sde, run.learned, held_out, key=key, drawn=some) == {}


def test_lost_paths_are_counted_where_a_report_says_so():
    some = {"lost": np.float64(3 / 44), "cases": np.int64(4), "num_samples": np.int64(11)}
    assert lost_of({"calibration": some}) == (3, 44)
    for other in ({}, {"calibration": np.zeros(3)}, {"calibration": {"lost": 0.0}}):
        assert lost_of(other) is None


def test_conditions_travel_to_samples(finished):
    config = load(finished).config

    class Conditioned(type(config)):
        def sde(self):
            return smdp.SDE(lambda t, x, args: -args * x, diffusion=0.5)

        def conditions(self, key, number):
            return jax.random.uniform(key, (number,))

    paths = Conditioned(time_steps=4).paths(jax.random.key(1), 7)
    assert paths.args_axes == 0
    assert paths.args.shape == (7,)


def test_windows_longer_than_the_paths_are_refused(finished):
    config = dataclasses.replace(load(finished).config, time_steps=3)
    with pytest.raises(ValueError, match=r"windows must fit into 3 time_steps, got \(1, 2, 4\)"):
        config.check()
