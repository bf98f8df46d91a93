"""A run that is killed or interrupted, and started again, ends like one that was not."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from smdp_jax.experiment import read_arrays
from tests.compiling import QUICKLY

ROOT = Path(__file__).parents[2]
TINY = Path("tests/configs/tiny.py")
AFFINE = Path("configs/affine.py")
SMALL_AFFINE = ["--trajectories", "40", "--time-steps", "20", "--posterior-samples", "1"]
SMALL_AFFINE += ["--test-cases", "20"]


@pytest.fixture(autouse=True)
def interruptible():
    """A suite that runs in the background may have inherited a SIGINT that is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def start():
    """Start the command; whatever happens, no process outlives the test."""
    with contextlib.ExitStack() as stack:

        def begin(config, runs, *words):
            command = [sys.executable, "-m", "smdp_jax", "run", config, "--runs-dir", runs, *words]
            process = subprocess.Popen(
                [str(word) for word in command],
                cwd=ROOT,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"JAX_PLATFORMS": "cpu"} | QUICKLY,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield begin


def finish(process, status=0):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == status, errors
    return errors


def checkpoints(run_dir):
    names = [path.name for path in (run_dir / "training" / "checkpoints").glob("*")]
    return {int(name) for name in names if name.isdecimal()}


def stop_in_training(process, run_dir, how):
    """Send a signal as soon as there is a checkpoint that was not there before."""
    before = checkpoints(run_dir)
    while not checkpoints(run_dir) - before:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(how)


def assert_same_result(one, other):
    fits = [read_arrays(run / "training" / "fit.npz", "") for run in (one, other)]
    samples = [read_arrays(run / "samples.npz", "")["arrays"] for run in (one, other)]
    for part in ("learned", "history", "step_miss"):
        same(fits[0][part], fits[1][part])
    same(*samples)
    records = [json.loads((run / "metrics.json").read_text()) for run in (one, other)]
    assert records[0]["metrics"] == records[1]["metrics"]
    assert records[0]["origin"] == records[1]["origin"]


def same(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            same(one[name], other[name])
    else:
        np.testing.assert_array_equal(one, other)
        assert np.asarray(one).dtype == np.asarray(other).dtype


@pytest.mark.slow
def test_killed_and_interrupted_runs_end_alike(tmp_path, start):
    words = ["--steps", "200", "--checkpoint-seconds", "0"]
    whole = start(TINY, tmp_path / "whole", *words)
    run_dir = tmp_path / "broken" / "tiny" / "small"

    broken = start(TINY, tmp_path / "broken", *words)
    stop_in_training(broken, run_dir, signal.SIGKILL)
    finish(broken, -signal.SIGKILL)
    assert not (run_dir / "training" / "fit.npz").exists()

    broken = start(TINY, tmp_path / "broken", *words)
    stop_in_training(broken, run_dir, signal.SIGINT)
    errors = finish(broken, 130)
    assert errors.endswith("error: interrupted; the same command goes on from here\n")
    assert not (run_dir / "training" / "fit.npz").exists()
    assert 0 < max(checkpoints(run_dir)) < 200

    errors = finish(start(TINY, tmp_path / "broken", *words))
    assert "going on from the last checkpoint" in errors
    finish(whole)
    assert_same_result(run_dir, tmp_path / "whole" / "tiny" / "small")
    assert json.loads((run_dir / "metrics.json").read_text())["training_resumed"]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["path_score", "multi_step"])
def test_killed_affine_run_ends_alike(tmp_path, start, objective):
    words = [*SMALL_AFFINE, "--objective", objective, "--steps", "2000"]
    words += ["--windows", "1", "2", "--checkpoint-seconds", "0"]
    run_dir = tmp_path / "broken" / "affine" / "small"
    broken = start(AFFINE, tmp_path / "broken", *words)
    stop_in_training(broken, run_dir, signal.SIGKILL)
    finish(broken, -signal.SIGKILL)
    assert not (run_dir / "training" / "fit.npz").exists()
    finish(start(AFFINE, tmp_path / "broken", *words))
    finish(start(AFFINE, tmp_path / "whole", *words))
    assert_same_result(run_dir, tmp_path / "whole" / "affine" / "small")
