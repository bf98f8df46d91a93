"""One run of several processes: the figures of one, whichever of them dies on the way."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from smdp_jax.__main__ import main
from smdp_jax.experiment import read_arrays

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "ornstein_uhlenbeck.py"
# Paths and test cases that do not divide over 8 devices, and a batch that does not either.
SMALL = ["--trajectories", "30", "--time-steps", "5", "--test-cases", "21", "--batch-size", "20"]
SMALL += ["--posterior-samples", "20", "--steps", "300", "--checkpoint-seconds", "0"]


def start(runs, devices, *words, config=CONFIG, **env):
    flags = f"--xla_force_host_platform_device_count={devices}"
    env |= {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "smdp_jax", "run", str(config), "--runs-dir", str(runs)]
    command += [*SMALL, *words]
    return subprocess.Popen(command, env=os.environ | env, stderr=subprocess.PIPE, text=True)


FIRST_PORT = 61440  # of those that JAX chooses from by the number of a job


def slurm(port, number):
    """What srun tells its processes, as far as JAX reads it."""
    job = {"SLURM_JOB_ID": str(port - FIRST_PORT), "SLURM_STEP_NODELIST": "localhost"}
    own = {"SLURM_NTASKS": "2", "SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}
    return [], job | own


def mpirun(port, number):
    """What Open MPI tells its processes."""
    own = {"RANK": str(number), "LOCAL_RANK": str(number), "SIZE": "2"}
    own = {f"OMPI_COMM_WORLD_{name}": value for name, value in own.items()}
    uri = f"{(port - FIRST_PORT) * 4096}.0;tcp://127.0.0.1:1"
    return [], own | {"OMPI_MCA_orte_hnp_uri": uri}


def by_hand(port, number):
    words = ["--coordinator", f"localhost:{port}", "--processes", "2", "--process", str(number)]
    return words, {}


def free_port():
    for port in range(FIRST_PORT + os.getpid() % 4000, 65536):
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("localhost", port))
            return port
    raise OSError("no port is free")


@pytest.fixture
def two():
    """Start a run of two processes with four devices each; none outlives the test."""
    started = []

    def begin(runs, how=by_hand, configs=(CONFIG, CONFIG)):
        port = free_port()
        for number, config in enumerate(configs):
            words, env = how(port, number)
            started.append(start(runs, 4, "--distributed", *words, config=config, **env))
        return started[-2:]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def ended(process):
    _, errors = process.communicate(timeout=900)
    return process.returncode, errors


def results(runs):
    folder = runs / CONFIG.stem / "small"
    record = json.loads((folder / "metrics.json").read_text())
    arrays = read_arrays(folder / "samples.npz", "")["arrays"]
    return record["metrics"], arrays["samples"], folder


def assert_same(runs, others):
    (figures, samples, _), (found, drawn, _) = results(runs), results(others)
    assert figures.keys() == found.keys()
    np.testing.assert_allclose(drawn, samples, rtol=1e-3, atol=1e-3)
    for name, row in figures.items():
        # Ranks may change where two samples are equal but for roundings.
        np.testing.assert_allclose(found[name]["value"], row["value"], rtol=2e-2, err_msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process with one device finds."""
    runs = tmp_path_factory.mktemp("alone")
    status, errors = ended(start(runs, 1))
    assert status == 0, errors
    return runs


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path, two, alone):
    found = [ended(process) for process in two(tmp_path, slurm)]
    assert [status for status, _ in found] == [0, 0], found
    assert "report" in found[0][1]
    assert "simulate" not in found[1][1]  # the first one speaks
    assert_same(alone, tmp_path)
    assert (results(tmp_path)[2] / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("lost", "how"), [(0, mpirun), (1, by_hand)])
def test_one_dies_and_one_process_goes_on(tmp_path, two, alone, lost, how):
    """Killed in training; the other one ends with a sentence; then 1 process of 8 devices."""
    processes = two(tmp_path, how)
    checkpoints = tmp_path / CONFIG.stem / "small" / "training" / "checkpoints"
    while not any(p.name.isdecimal() for p in checkpoints.glob("*")):
        assert processes[lost].poll() is None, ended(processes[lost])
        time.sleep(0.02)
    processes[lost].send_signal(signal.SIGKILL)
    status, errors = ended(processes[1 - lost])
    assert status == 1
    assert "start all of them again by the same command, which goes on" in errors.splitlines()[-1]
    status, errors = ended(start(tmp_path, 8))
    assert status == 0, errors
    assert "going on from the last checkpoint" in errors
    assert_same(alone, tmp_path)


@pytest.mark.slow
def test_processes_of_another_config_are_refused(tmp_path, two):
    other = tmp_path / CONFIG.name
    other.write_text(CONFIG.read_text() + "\nEDITED = True\n")
    for process in two(tmp_path / "runs", configs=(CONFIG, other)):
        status, errors = ended(process)
        assert status == 1
        assert "must run the same experiment, got process 1 unlike process 0" in errors
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--coordinator", "localhost:1"], "--process need --distributed"),
        (["--processes", "2", "--process", "0"], "--process need --distributed"),
    ],
)
def test_half_of_the_options_is_refused(words, message, capsys, tmp_path):
    assert main(["run", str(CONFIG), "--runs-dir", str(tmp_path), *words]) == 1
    assert message in capsys.readouterr().err
