"""A run folder through edits, damage and kills; ``quick.py`` learns nothing."""

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
    read_arrays,
    write_arrays,
)
from smdp_jax.experiment.processes import only_process_in
from tests.experiment.quick_run import run
from tests.folders import contents

RESULTS = ["data.npz", "training/fit.npz", "samples.npz", "metrics.json", "report.html"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("quick"))


@pytest.fixture
def run_dir(finished, tmp_path):
    """A copy that a test may damage, where ``run(tmp_path)`` expects it."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "quick" / "small"))


def made(run_dir, before):
    """Results that were written again."""
    return [name for name in RESULTS if (run_dir / name).stat().st_mtime_ns != before[name]]


def times(run_dir):
    return {name: (run_dir / name).stat().st_mtime_ns for name in RESULTS}


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
