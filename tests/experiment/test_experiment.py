"""Runs in one process: files, loading, stages that are computed again, and what is refused."""

import dataclasses
import json
import re
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
from smdp_jax.experiment.config_file import as_json, from_json, same_code

hardly_trained = pytest.mark.filterwarnings("ignore:one backward step misses")
TINY = Path(__file__).parents[1] / "configs" / "tiny.py"
CONFIGS = Path(__file__).parents[2] / "configs"


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


def contents(folder):
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


# Storage


def test_arrays_round_trip(tmp_path):
    tree = {
        "a": {"x": np.arange(3), "y": jnp.ones((2, 1))},
        "b": [np.float64(2.5), None, (1, "text", True)],
        "empty": {},
    }
    write_arrays(tmp_path / "f.npz", tree)
    back = read_arrays(tmp_path / "f.npz", "")
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        assert np.asarray(one).dtype == np.asarray(other).dtype
        np.testing.assert_array_equal(one, other)
    # Every array has a name that another program can ask for.
    assert set(np.load(tmp_path / "f.npz").files) == {"a/x", "a/y", "b/0", "structure"}


def test_storage_refuses_what_it_cannot_give_back(tmp_path):
    with pytest.raises(ExperimentError, match="x is a set"):
        write_arrays(tmp_path / "f.npz", {"x": {1}})
    with pytest.raises(ExperimentError, match="x is a PRNG key"):
        write_arrays(tmp_path / "f.npz", {"x": jax.random.key(0)})
    assert not (tmp_path / "f.npz").exists()


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated_arrays_are_named(tmp_path, keep):
    path = tmp_path / "f.npz"
    write_arrays(path, {"x": np.arange(1000)})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(ExperimentError, match=r"f\.npz is truncated or damaged.*; remove it"):
        read_arrays(path, "remove it")


def test_flipped_bits_are_seen(tmp_path):
    path = tmp_path / "f.npz"
    write_arrays(path, {"x": np.zeros(1000)})
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ExperimentError, match="damaged"):
        read_arrays(path, "remove it")


# Config files


def test_config_file_is_described_by_its_docstring():
    file = load_config_file(TINY)
    assert file.name == "tiny"
    assert file.summary == "An Ornstein-Uhlenbeck process, small enough to be run in every test"
    assert file.text == "Gaussian, so that the posterior mean is known."
    assert list(file.presets) == ["small", "paper"]


def test_config_round_trip():
    config = load_config_file(TINY).presets["paper"]
    assert from_json(type(config), json.loads(json.dumps(as_json(config)))) == config
    with pytest.raises(ExperimentError, match=r"other fields.*: colour"):
        from_json(type(config), as_json(config) | {"colour": 1})


@pytest.mark.parametrize("name", ["affine", "quadratic", "heat"])
def test_shipped_configs_have_both_presets_and_build(name):
    file = load_config_file(CONFIGS / f"{name}.py")
    assert list(file.presets) == ["small", "paper"]
    assert file.summary
    for config in file.presets.values():
        assert isinstance(config.sde(), smdp.SDE)


def test_missing_config_file_lists_others(tmp_path):
    (tmp_path / "other.py").write_text("PRESETS = {}")
    with pytest.raises(ExperimentError, match=r"missing\.py does not exist; there are .*other\.py"):
        load_config_file(tmp_path / "missing.py")


@pytest.mark.parametrize("text", ["", "PRESETS = {}", "PRESETS = {'small': 1}", "PRESETS = 3"])
def test_config_without_presets(tmp_path, text):
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(ExperimentError, match=r"c\.py must define PRESETS"):
        load_config_file(tmp_path / "c.py")


def test_config_with_a_field_that_json_cannot_hold(tmp_path):
    text = TINY.read_text().replace("widths: tuple[int, ...] = (8,)", "widths: object = range(8)")
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(ExperimentError, match="fields of Config must be numbers, strings"):
        load_config_file(tmp_path / "c.py")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("steps='many'", "steps must be int, got 'many'"),
        ("steps=1.5", "steps must be int, got 1.5"),
        ("steps=True", "steps must be int, got True"),
        ("learning_rate=None", "learning_rate must be float, got None"),
        ("learning_rate=float('nan')", "learning_rate must be finite, got nan"),
        ("widths=(4, 'a')", "widths must be tuple[int, ...], got (4, 'a')"),
        ("widths=4", "widths must be tuple[int, ...], got 4"),
        ("kind='c'", "kind must be typing.Literal['a', 'b'], got 'c'"),
        ("as_flow_map=1", "as_flow_map must be bool, got 1"),
    ],
)
def test_preset_with_an_ill_typed_field(tmp_path, change, message):
    (tmp_path / "c.py").write_text(TINY.read_text().replace('steps=80, kind="b"', change))
    with pytest.raises(ExperimentError, match=re.escape(f"c.py, preset 'paper': {message}")):
        load_config_file(tmp_path / "c.py")


def test_whole_numbers_are_floats_too(tmp_path):
    text = TINY.read_text().replace('steps=80, kind="b"', "learning_rate=1, widths=()")
    (tmp_path / "c.py").write_text(text)
    assert load_config_file(tmp_path / "c.py").presets["paper"].steps == 40


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps=80", "stepz=80", ", line 77 cannot be loaded: TypeError: .*'stepz'"),
        ("import optax", "import optaxx", ", line 12 cannot be loaded: ModuleNotFoundError"),
        ("import optax", "import (", " cannot be loaded: SyntaxError"),
    ],
)
def test_config_that_cannot_be_loaded(tmp_path, old, new, message):
    (tmp_path / "c.py").write_text(TINY.read_text().replace(old, new, 1))
    with pytest.raises(ExperimentError, match=rf"c\.py{message}"):
        load_config_file(tmp_path / "c.py")


def test_same_code_ignores_comments_and_docstrings():
    one = '"""Text."""\ndef f(x):\n    """More."""\n    return x + 1\n'
    assert same_code(one, "# other\ndef f(x):\n\n    return (x + 1)  # why\n")
    assert not same_code(one, one.replace("1", "2"))


# A run


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
    assert not list(finished.rglob("*.partial"))
    record = json.loads((finished / "metrics.json").read_text())
    assert record["metrics"]["mean"]["target"] == 0.0
    assert record["metrics"]["lost"]["value"] is None  # NaN is not JSON
    assert set(record["seconds"]) == {"simulate", "train", "sample", "evaluate"}
    assert min(record["seconds"].values()) >= 0
    page = (finished / "report.html").read_text()
    assert "tiny (small): An Ornstein-Uhlenbeck process" in page
    assert "python -m smdp_jax run tiny.py --preset small" in page
    assert "http" not in page.split("<style>")[0]


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


@hardly_trained
def test_step_corrections_and_trees_come_back(tmp_path):
    file = load_config_file(TINY)
    config = dataclasses.replace(file.presets["small"], as_flow_map=True, steps=2)
    files = RunFiles(tmp_path / "run")
    files.open(file, "small", config, "tiny.py")
    dataset = config.simulate(jax.random.key(0))
    files.write_data(dataset, 0.0)
    files.training.mkdir()
    fit = config.fit(dataset, jax.random.key(1), progress=False)
    files.write_fit(fit, {"seconds": 0.0})
    run = load(files.directory)
    x = jnp.ones((1,))
    assert run.correction.noise_level == fit.correction.noise_level
    assert run.correction(0.5, x, None) == fit.correction(0.5, x, None)
    np.testing.assert_array_equal(run.correction.ts, dataset.train.ts)

    xs = {"u": jnp.zeros((2, 3, 4)), "v": jnp.ones((2, 3))}
    data = smdp.Trajectories(jnp.arange(3.0), xs, {"nu": jnp.ones((2,))}, None, args_axes=0)
    files.write_data(Dataset(data, None, {"k": np.ones(2)}), 1.0)
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
    (run_dir / "samples.npz.partial").write_bytes(b"half a file")  # as kill -9 leaves it
    run_tiny(tmp_path)
    assert (run_dir / stage).is_file()
    again = read_arrays(run_dir / "samples.npz", "")["arrays"]["samples"]
    np.testing.assert_array_equal(again, samples)
    assert json.loads((run_dir / "metrics.json").read_text())["metrics"] == before


def test_results_of_other_inputs_are_made_again(run_dir, tmp_path):
    fit = read_arrays(run_dir / "training" / "fit.npz", "")
    fit["variables"] = jax.tree.map(np.zeros_like, fit["variables"])
    write_arrays(run_dir / "training" / "fit.npz", fit)
    before = read_arrays(run_dir / "samples.npz", "")["arrays"]["samples"]
    run_tiny(tmp_path)
    after = read_arrays(run_dir / "samples.npz", "")["arrays"]["samples"]
    assert (after != before).any()
    metric = json.loads((run_dir / "metrics.json").read_text())["metrics"]["mean"]["value"]
    assert metric == pytest.approx(float(after.mean()))


# What is refused


def test_another_configuration_is_refused(run_dir, tmp_path):
    before = contents(run_dir)
    with pytest.raises(
        ExperimentError,
        match=r"other configuration: steps was 40, now 50; widths was \[8\], now \[4, 4\]; choose",
    ):
        run_tiny(tmp_path, steps=50, widths=(4, 4))
    assert contents(run_dir) == before


def test_another_precision_is_refused(run_dir, tmp_path, x64):
    with pytest.raises(ExperimentError, match="precision was 'float32', now 'float64'"):
        run_tiny(tmp_path)


def test_other_code_is_refused(run_dir, tmp_path):
    (tmp_path / "tiny.py").write_text(TINY.read_text().replace("diffusion=0.5", "diffusion=0.6"))
    file = load_config_file(tmp_path / "tiny.py")
    before = contents(run_dir)
    with pytest.raises(ExperimentError, match=r"other code: tiny\.py has changed since it began"):
        run_experiment(file, file.presets["small"], preset="small", runs_dir=tmp_path, say=quiet)
    assert contents(run_dir) == before


def test_results_without_config_are_refused(run_dir, tmp_path):
    (run_dir / "config.json").unlink()
    with pytest.raises(ExperimentError, match=r"has results but no config\.json"):
        run_tiny(tmp_path)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("config.json", "remove the run directory"),
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


def test_config_of_something_else(run_dir, tmp_path):
    (run_dir / "config.json").write_text('{"config": {}}')
    for use in (lambda: run_tiny(tmp_path), lambda: load(run_dir)):
        with pytest.raises(ExperimentError, match="of a run: it lacks precision, preset"):
            use()


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
