"""Runs in one process: files, loading, stages that are computed again, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax.experiment import (
    Dataset,
    ExperimentError,
    RunFiles,
    load,
    load_config_file,
    read_arrays,
    run_experiment,
    sample_end_states,
    write_arrays,
)
from tests.folders import contents

hardly_trained = pytest.mark.filterwarnings("ignore:one backward step misses")
TINY = Path(__file__).parents[1] / "configs" / "tiny.py"


def quiet(line):
    """Say nothing."""


def run_tiny(runs_dir, **fields):
    file = load_config_file(TINY)
    config = dataclasses.replace(file.presets["small"], **fields)
    return run_experiment(file, config, preset="small", runs_dir=runs_dir, say=quiet)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run_tiny(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def run_dir(finished, tmp_path):
    """A copy that a test may damage, where ``run_tiny(tmp_path)`` expects it."""
    return Path(shutil.copytree(finished, tmp_path / "tiny" / "small"))


def test_run_leaves_every_file(finished):
    for name in (
        "config.json",
        "config.py",
        "data.npz",
        "training/fit.npz",
        "training/metrics.jsonl",
        "samples.npz",
        "metrics.json",
        "figures/training.png",
        "figures/step_miss.png",
        "report.html",
    ):
        assert (finished / name).is_file(), name
    record = json.loads((finished / "metrics.json").read_text())
    assert record["metrics"]["mean"]["target"] == 0.0
    assert record["metrics"]["lost"]["value"] is None  # NaN is not JSON
    assert set(record["seconds"]) == {"simulate", "train", "sample", "evaluate"}
    assert min(record["seconds"].values()) >= 0
    page = (finished / "report.html").read_text()
    assert "tiny (small): An Ornstein-Uhlenbeck process" in page
    assert "python -m smdp_jax run tiny.py --preset small" in page
    assert "http" not in page.split("<style>")[0]


@pytest.mark.slow
@hardly_trained
def test_run_of_a_kernel_is_loaded_with_it(tmp_path):
    config = tmp_path / "kernel.py"
    config.write_text(TINY.read_text().replace("smdp.OneStep()", "smdp.BackwardKernel()"))
    file = load_config_file(config)
    folder = run_experiment(
        file, file.presets["small"], preset="small", runs_dir=tmp_path, say=quiet
    )
    run = load(folder)
    with pytest.raises(TypeError, match=r"a backward kernel: use fit\.kernel"):
        run.score  # noqa: B018
    again = run.config.sample(run, jax.random.key(0))["samples"]
    past = run.config.posterior(run, run.truth["x_end"], num_samples=4, key=jax.random.key(0))
    np.testing.assert_array_equal(again, past.samples)
    assert run.kernel.ts.shape == (9,)
    assert run.kernel.left is not None


def test_load_works_anywhere(run_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = load("tiny/small")
    assert run.config.steps == 40
    assert run.data.xs.shape == (16, 9, 1)
    # The process, the score and the data fit together.
    past = smdp.sample_posterior(
        run.sde, run.score, run.data.xs[0, -1], run.data.ts, num_samples=4, key=jax.random.key(0)
    )
    assert bool(past.info.finite.all())
    with pytest.raises(TypeError, match="learned a score"):
        _ = run.correction


@hardly_trained
def test_loaded_score_is_the_trained_one(run_dir):
    run = load(run_dir)
    key = jax.random.fold_in(jax.random.key(0), 1)
    fit = run.config.fit(run.dataset, key, directory=None, progress=False)
    t, x = jnp.asarray(0.5), jnp.ones((1,))
    assert run.score(t, x, None) == fit.score(t, x, None)
    # Its times, shapes and the range of its data as well, which guard its use.
    assert run.score.seen is not None
    jax.tree.map(np.testing.assert_array_equal, run.score, fit.score)


@pytest.mark.slow
@hardly_trained
def test_step_corrections_and_trees_come_back(tmp_path):
    file = load_config_file(TINY)
    config = dataclasses.replace(file.presets["small"], as_flow_map=True, steps=2)
    files = RunFiles(tmp_path / "run")
    files.directory.mkdir()
    files.open(file, "small", config, "tiny.py")
    dataset = config.simulate(jax.random.key(0))
    files.write_data(dataset, seconds=0.0)
    files.training.mkdir(exist_ok=True)
    fit = config.fit(dataset, jax.random.key(1), progress=False)
    files.write_fit(fit, seconds=0.0)
    run = load(files.directory)
    x = jnp.ones((1,))
    assert run.correction.noise_level == fit.correction.noise_level
    assert run.correction(0.5, x, None) == fit.correction(0.5, x, None)
    np.testing.assert_array_equal(run.correction.ts, dataset.train.ts)

    xs = {"u": jnp.zeros((2, 3, 4)), "v": jnp.ones((2, 3))}
    data = smdp.Trajectories(jnp.arange(3.0), xs, {"nu": jnp.ones((2,))}, None, args_axes=0)
    files.write_data(Dataset(data, None, {"k": np.ones(2)}), seconds=1.0)
    back, _ = files.read_data()
    assert jax.tree.structure(back.train) == jax.tree.structure(data)
    assert back.train.args_axes == 0
    assert back.validation is None


def test_same_run_again_changes_nothing(run_dir, tmp_path):
    before = contents(run_dir)
    run_tiny(tmp_path)
    assert contents(run_dir) == before


@pytest.mark.parametrize(
    "stage", ["samples.npz", "metrics.json", "report.html", "training/fit.npz"]
)
def test_removed_result_is_made_again_alike(run_dir, tmp_path, stage):
    before = json.loads((run_dir / "metrics.json").read_text())["metrics"]
    samples = read_arrays(run_dir / "samples.npz", "")["arrays"]["samples"]
    (run_dir / stage).unlink()
    run_tiny(tmp_path)
    assert (run_dir / stage).is_file()
    again = read_arrays(run_dir / "samples.npz", "")["arrays"]["samples"]
    np.testing.assert_array_equal(again, samples)
    assert json.loads((run_dir / "metrics.json").read_text())["metrics"] == before


def test_results_of_other_inputs_are_made_again(run_dir, tmp_path):
    fit = read_arrays(run_dir / "training" / "fit.npz", "")
    fields = fit["learned"]["fields"]
    fields["variables"] = jax.tree.map(np.zeros_like, fields["variables"])
    write_arrays(run_dir / "training" / "fit.npz", fit)
    before = read_arrays(run_dir / "samples.npz", "")["arrays"]["samples"]
    run_tiny(tmp_path)
    after = read_arrays(run_dir / "samples.npz", "")["arrays"]["samples"]
    assert (after != before).any()
    metric = json.loads((run_dir / "metrics.json").read_text())["metrics"]["mean"]["value"]
    assert metric == pytest.approx(float(after.mean()))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("data.npz", "remove it to simulate again"),
        ("training/fit.npz", "remove it to take the result from the last checkpoint"),
        ("samples.npz", "remove it to sample again"),
        ("metrics.json", "remove it to evaluate again"),
    ],
)
def test_truncated_files_are_named(run_dir, tmp_path, name, remedy):
    file = run_dir / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    before = contents(run_dir)
    with pytest.raises(ExperimentError, match=rf"{name} is truncated or damaged.*{remedy}"):
        run_tiny(tmp_path)
    assert contents(run_dir) == before


def test_config_of_something_else(run_dir):
    (run_dir / "config.json").write_text('{"config": {}}')
    with pytest.raises(ExperimentError, match="of a run: it lacks experiment, precision, preset"):
        load(run_dir)


def test_load_of_unfinished_runs(run_dir, tmp_path):
    with pytest.raises(ExperimentError, match=r"not a run directory: it has no config\.json"):
        load(tmp_path / "nowhere")
    (run_dir / "training" / "fit.npz").unlink()
    with pytest.raises(ExperimentError, match=r"not yet trained: it has no fit\.npz"):
        load(run_dir)


# End states of the user


def test_sampling_end_states_from_a_file(run_dir, tmp_path):
    ends = np.array([[0.5], [-0.5]])  # float64, as numpy makes them
    np.savez(tmp_path / "ends.npz", x_end=ends)
    run, output = load(run_dir), tmp_path / "past.npz"
    sample_end_states(run, tmp_path / "ends.npz", output, num_samples=5, seed=3)
    written = np.load(output)
    expected = run.config.posterior(
        run, jnp.asarray(ends, jnp.float32), num_samples=5, key=jax.random.key(3)
    )
    np.testing.assert_array_equal(written["samples"], expected.samples)
    assert written["samples"].shape == (2, 5, 1)
    assert written["finite"].shape == (2, 5)
    with pytest.raises(ExperimentError, match="exists; remove it or choose another --output"):
        sample_end_states(run, tmp_path / "ends.npz", output, num_samples=5)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((2, 1))}, r"needs an array 'x_end'; it has \['x'\]"),
        ({"x_end": np.ones((2, 3))}, r"must have shape \(n, \*\(1,\)\).*got \(2, 3\)"),
        ({"x_end": np.ones(())}, r"must have shape"),
        ({"x_end": np.ones((0, 1))}, r"at least 1; got \(0, 1\)"),
        ({"x_end": np.full((2, 1), np.nan)}, "must hold finite real numbers"),
        ({"x_end": np.array([["a"]])}, "must hold finite real numbers"),
    ],
)
def test_end_states_that_do_not_fit(finished, tmp_path, arrays, message):
    np.savez(tmp_path / "ends.npz", **arrays)
    with pytest.raises(ExperimentError, match=message):
        sample_end_states(load(finished), tmp_path / "ends.npz", tmp_path / "o.npz", num_samples=1)
    assert not (tmp_path / "o.npz").exists()


def test_end_states_that_cannot_be_read(finished, tmp_path):
    run, output = load(finished), tmp_path / "o.npz"
    with pytest.raises(ExperimentError, match=r"ends\.npz does not exist"):
        sample_end_states(run, tmp_path / "ends.npz", output, num_samples=1)
    (tmp_path / "ends.npz").write_bytes(b"no zip")
    with pytest.raises(ExperimentError, match=r"ends\.npz is no \.npz file"):
        sample_end_states(run, tmp_path / "ends.npz", output, num_samples=1)
    np.savez(tmp_path / "fine.npz", x_end=np.ones((1, 1)))
    with pytest.raises(ExperimentError, match=r"folder .*missing of --output does not exist"):
        sample_end_states(run, tmp_path / "fine.npz", tmp_path / "missing" / "o.npz", num_samples=1)
