"""A run folder through mistakes, mending, kills and edits; ``quick.py`` learns nothing."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax import __main__ as command_line
from smdp_jax.experiment import (
    ExperimentError,
    load,
    load_config_file,
    read_arrays,
    run_experiment,
    write_arrays,
)
from smdp_jax.experiment.processes import only_process_in

QUICK = Path(__file__).parents[1] / "configs" / "quick.py"
RESULTS = ["data.npz", "training/fit.npz", "samples.npz", "metrics.json", "report.html"]


def run(folder, old="", new="", *, preset="small", said=None, **fields):
    """Run ``quick.py`` with a change of its text and of its fields."""
    text = QUICK.read_text()
    assert old in text
    (folder / "quick.py").write_text(text.replace(old, new, 1) if old else text)
    file = load_config_file(folder / "quick.py")
    config = dataclasses.replace(file.presets[preset], **fields)
    say = (said if said is not None else []).append
    return run_experiment(file, config, preset=preset, runs_dir=folder / "runs", say=say)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("quick"))


@pytest.fixture
def run_dir(finished, tmp_path):
    """A copy that a test may damage, where ``run(tmp_path)`` expects it."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "quick" / "small"))


def contents(folder):
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def made(run_dir, before):
    """Results that were written again."""
    return [name for name in RESULTS if (run_dir / name).stat().st_mtime_ns != before[name]]


def times(run_dir):
    return {name: (run_dir / name).stat().st_mtime_ns for name in RESULTS}


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


# What is kept when code or settings change


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({}, []),
        ({"old": '"""Move."""', "new": '"""Shift."""'}, []),
        ({"old": "import jax\n", "new": "import math\n\nimport jax\n"}, []),
        ({"old": "arrays[", "new": "2 * arrays["}, ["metrics.json", "report.html"]),
        ({"old": "return {}", "new": "return dict()"}, ["report.html"]),
        ({"draws": 6}, ["samples.npz", "metrics.json", "report.html"]),
    ],
)
def test_only_what_depends_on_a_change_is_made_again(run_dir, tmp_path, change, again):
    before, said = times(run_dir), []
    run(tmp_path, said=said, **change)
    assert made(run_dir, before) == again
    assert any(" again: " in line for line in said) == any("report" not in name for name in again)
    assert json.loads((run_dir / "config.json").read_text())["config"]["draws"] == change.get(
        "draws", 4
    )
    before = contents(run_dir)
    run(tmp_path, **change)
    assert contents(run_dir) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"updates": 4}, "another configuration: updates was 3, now 4; choose"),
        ({"times": (0.5, 2.0)}, r"times was \[0.5, 1.0\], now \[0.5, 2.0\]; choose"),
        ({"seed": 1, "times": (2.0,)}, "seed was 0, now 1; times was"),
        ({"old": "SHIFT = 1.0", "new": "SHIFT = 2.0"}, "the code of SHIFT has changed; choose"),
        ({"old": "np.ones(1)", "new": "np.zeros(1)"}, "the code of fit has changed"),
    ],
)
def test_finished_work_of_another_configuration_is_refused(run_dir, tmp_path, change, message):
    before = contents(run_dir)
    with pytest.raises(ExperimentError, match=message):
        run(tmp_path, **change)
    assert contents(run_dir) == before


def test_other_training_is_refused_also_where_data_were_removed(run_dir, tmp_path):
    (run_dir / "data.npz").unlink()
    with pytest.raises(ExperimentError, match="times was"):
        run(tmp_path, times=(0.25, 0.5))


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


# Damage


@pytest.mark.parametrize("name", ["config.json", "config.py"])
def test_damaged_description_is_written_anew(run_dir, tmp_path, name):
    before, results = contents(run_dir), times(run_dir)
    (run_dir / name).write_bytes((run_dir / name).read_bytes()[:50])
    with pytest.raises(ExperimentError, match=f"{name}.*(damaged|must define|cannot be loaded)"):
        load(run_dir)
    run(tmp_path)
    (run_dir / name).unlink()
    run(tmp_path)
    assert contents(run_dir) == before
    assert not made(run_dir, results)


def edit_samples(run_dir):
    tree = read_arrays(run_dir / "samples.npz", "")
    tree["arrays"]["samples"] = tree["arrays"]["samples"] + 1e-3
    write_arrays(run_dir / "samples.npz", tree)


def edit_metrics(run_dir):
    text = (run_dir / "metrics.json").read_text()
    (run_dir / "metrics.json").write_text(text.replace('"value": 4', '"value": 5'))


@pytest.mark.parametrize(
    ("edit", "name"), [(edit_samples, "samples.npz"), (edit_metrics, "metrics.json")]
)
def test_edited_results_do_not_enter_a_report(run_dir, tmp_path, capsys, edit, name):
    edit(run_dir)
    message = rf"{name} must be as it was written, and has changed since; remove it to"
    with pytest.raises(ExperimentError, match=message):
        run(tmp_path)
    assert command_line.main(["report", str(run_dir)]) == 1
    assert re.search(message, capsys.readouterr().err)
    (run_dir / name).unlink()
    assert (run(tmp_path) / "report.html").exists()


def test_metrics_of_other_samples_do_not_enter_a_report(run_dir, tmp_path, capsys):
    metrics = (run_dir / "metrics.json").read_bytes()
    run(tmp_path, draws=5)
    (run_dir / "metrics.json").write_bytes(metrics)
    assert command_line.main(["report", str(run_dir)]) == 1
    assert "metrics.json must belong to samples.npz" in capsys.readouterr().err
    run(tmp_path, draws=5)
    assert json.loads((run_dir / "metrics.json").read_text())["metrics"]["draws"]["value"] == 5


def test_results_of_another_version_are_named(run_dir, tmp_path):
    tree = read_arrays(run_dir / "data.npz", "")
    del tree["origin"]
    write_arrays(run_dir / "data.npz", tree)
    with pytest.raises(ExperimentError, match=r"data\.npz must say what it was made from"):
        run(tmp_path)


def test_precision_is_kept(tmp_path):
    with jax.enable_x64(True):
        run_dir = run(tmp_path, "1.0", "1.0")
        assert load(run_dir).data.xs.dtype == jnp.float64
    with pytest.raises(ExperimentError, match=r"a run in double precision.*JAX_ENABLE_X64=1"):
        load(run_dir)
    with pytest.raises(ExperimentError, match="precision was 'float64', now 'float32'"):
        run(tmp_path)


def test_runs_in_half_precision_are_read(tmp_path):
    run_dir = run(tmp_path, "len(self.times), 1)))", "len(self.times), 1), jnp.bfloat16))")
    assert load(run_dir).data.xs.dtype == jnp.bfloat16


def test_lost_record_of_training(run_dir, tmp_path):
    fit = read_arrays(run_dir / "training" / "fit.npz", "")
    fit["history"] = {name: np.zeros(0) for name in fit["history"]}
    write_arrays(run_dir / "training" / "fit.npz", fit)
    (run_dir / "report.html").unlink()
    said = []
    run(tmp_path, said=said)
    assert any("no record" in line for line in said)
    assert (run_dir / "report.html").exists()


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


# One process at a time

HOLD = """
import fcntl, os, sys, time
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(file, fcntl.LOCK_EX)
os.write(file, str(os.getpid()).encode())
print("held", flush=True)
time.sleep(600)
"""


def test_a_folder_has_one_process(run_dir, tmp_path):
    before = contents(run_dir)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, run_dir / ".lock"], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ExperimentError, match=rf"another process works in .*{other.pid}\)"):
            run(tmp_path, draws=7)
        assert command_line.main(["report", str(run_dir)]) == 1
        other.send_signal(signal.SIGKILL)
    assert other.returncode == -signal.SIGKILL
    assert {k: v for k, v in contents(run_dir).items() if k != ".lock"} == {
        k: v for k, v in before.items() if k != ".lock"
    }
    run(tmp_path, draws=7)
    assert contents(run_dir)[".lock"] == b""


def test_lock_ends_with_an_error(tmp_path):
    twice = pytest.raises(ExperimentError, match="another process")
    with only_process_in(tmp_path), twice, only_process_in(tmp_path):
        raise AssertionError
    with pytest.raises(ZeroDivisionError), only_process_in(tmp_path):
        raise ZeroDivisionError
    with only_process_in(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
