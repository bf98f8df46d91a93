"""Mistakes in a config: what they claim, and what is kept when they are mended."""

import pytest

from smdp_jax.experiment import ExperimentError, load_config_file, run_experiment
from tests.experiment.quick_run import QUICK, run

# Nothing is claimed or computed before everything was checked


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"updates": 0}, "updates must be from 1"),
        ({"draws": 0}, "draws must be from 1"),
        ({"noise": 0.0}, "noise must be positive"),
        ({"seed": 2**70}, "seed must be from 0"),
        ({"times": (1.0, -1.0)}, "times must be of numbers positive"),
    ],
)
def test_mistaken_values_claim_nothing(tmp_path, fields, message):
    with pytest.raises(ExperimentError, match=message):
        run(tmp_path, **fields)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("return smdp.SDE(", "return tuple(", "sde must return an SDE, got"),
        ("diffusion=self.noise", "diffusion=-self.noise", "diffusion"),
        ("key, **resume", "key", r"must take \*\*resume"),
        ("def sde", "def check(self):\n        raise ValueError('no')\n\n    def sde", "no"),
    ],
)
def test_mistaken_code_claims_nothing(tmp_path, old, new, message):
    if "tuple" in new:
        new, old = "return 3\n        return smdp.SDE(", "return smdp.SDE("
    with pytest.raises((ExperimentError, ValueError), match=message):
        run(tmp_path, old, new)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_mistaken_pace_claims_nothing(tmp_path, seconds):
    file = load_config_file(QUICK)
    with pytest.raises(ExperimentError, match="checkpoint_seconds must be at least 0"):
        run_experiment(
            file,
            file.presets["small"],
            preset="small",
            runs_dir=tmp_path / "runs",
            checkpoint_seconds=seconds,
        )
    with pytest.raises(ExperimentError, match="preset must be a plain name"):
        run_experiment(file, file.presets["small"], preset="../../evil", runs_dir=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("return Dataset(smdp", "return (smdp", "simulate must return a Dataset, got Trajectories"),
        ("smdp.models.MLP((2,))", "print", "model must return a flax.linen.Module, got builtin"),
        ("return smdp.Fit(", "return dict(a=1) or smdp.Fit(", "fit must return a Fit, got dict"),
        ('return {"samples": np', "return [np", "sample must return a dict of arrays, got list"),
        ("return [Metric(", "return 3 or [Metric(", "evaluate must return a sequence of Metric"),
        ("return [Metric(", "return [1, Metric(", "sequence of Metric, got int"),
        ('Metric("lost"', 'Metric("draws"', "two metrics named 'draws'"),
        ("return {}", "return 1", "figures must return a dict of ReportFigure, got int"),
        ("return {}", 'return {"a": 1}', "must return a ReportFigure as 'a', got int"),
        ("return {}", 'return {"../../a": 1}', "must name figures by letters.*got '../../a'"),
    ],
)
def test_methods_that_return_something_else(tmp_path, old, new, message):
    if new.startswith("return [np"):
        new = 'return [1] or {"samples": np'
    with pytest.raises(ExperimentError, match=message):
        run(tmp_path, old, new)
    # What was wrong is mended: the same folder goes on.
    assert (run(tmp_path) / "report.html").exists()
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("method", ["evaluate", "figures", "sample"])
def test_a_bug_that_was_mended_costs_nothing(tmp_path, method):
    before = f"def {method}(self, run, {'key' if method == 'sample' else 'arrays'}):\n"
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, before, f"{before}        1 / 0\n")
    kept = ["data.npz", "training/fit.npz"]
    ages = {n: (tmp_path / "runs/quick/small" / n).stat().st_mtime_ns for n in kept}
    run_dir = run(tmp_path)
    assert {n: (run_dir / n).stat().st_mtime_ns for n in kept} == ages
    assert (run_dir / "config.py").read_text() == QUICK.read_text()


def test_training_that_never_began_claims_nothing(tmp_path):
    # Refused by the training itself, after data were made.
    before = "checkpoint = Path"
    with pytest.raises(ValueError, match="too many"):
        run(tmp_path, before, f"raise ValueError('too many')\n        {before}", updates=9)
    data = (tmp_path / "runs/quick/small/data.npz").stat().st_mtime_ns
    run_dir = run(tmp_path, updates=8)
    assert (run_dir / "data.npz").stat().st_mtime_ns == data


def test_training_goes_on_where_its_config_was_mended(tmp_path):
    before = '(checkpoint / "state").write_text("")'
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, before, f"{before}\n        1 / 0")
    said = []
    run(tmp_path, said=said)
    assert "train     going on from the last checkpoint ..." in said


def test_an_empty_folder_is_no_checkpoint(tmp_path):
    (tmp_path / "runs/quick/small/training/checkpoints/999").mkdir(parents=True)
    said = []
    run(tmp_path, said=said)
    assert "train     ..." in said


# Checkpoints that a config forgets


def test_training_without_checkpoints_is_said(tmp_path):
    said = []
    run(tmp_path, '(checkpoint / "state").write_text("")', "pass", said=said)
    assert any("Config.fit must hand **resume on to smdp_jax.fit" in line for line in said)
    page = (tmp_path / "runs/quick/small/report.html").read_text()
    assert "training kept no checkpoints" in page


# What is warned of while samples are computed


@pytest.mark.parametrize("stage", ["sample", "evaluate"])
def test_warnings_stand_in_the_report(stage, tmp_path):
    """Those that differ in figures once, and again where only the report is made again."""
    old = {"sample": 'return {"samples": np', "evaluate": "return [Metric("}[stage]
    warn = "import warnings; [warnings.warn(f'{n} paths of {n}e-3 were odd') for n in (3, 41)]; "
    for _ in range(2):
        folder, said = tmp_path / "runs/quick/small", []
        run(tmp_path, old, warn + old, said=said)
        sentence = "3 paths of 3e-3 were odd (1 more of this kind)"
        assert f"          warning: {sentence}" in said
        page = (folder / "report.html").read_text()
        assert page.count(f"Warning: {sentence}.") == 1
        (folder / "report.html").unlink()
