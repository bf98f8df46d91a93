"""Work dealt out over the devices of a mesh."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compiling import QUICKLY

SCRIPT = Path(__file__).parent / "on_eight_devices.py"


@pytest.mark.slow
def test_eight_devices():
    """In a process of its own: the number of host devices is decided when JAX starts."""
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    root = str(SCRIPT.parent.parent)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", str(SCRIPT)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_two_processes(tmp_path):
    """Four devices each, over the loopback: what one device finds, in both; one of them writes.

    A store of paths is written and read by both, each its half.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    script = str(SCRIPT.with_name("one_of_two_processes.py"))
    flags = f"{QUICKLY['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    flags = QUICKLY | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen(
            [sys.executable, script, str(number), port, str(tmp_path)],
            env=os.environ | flags | {"PYTHONPATH": str(SCRIPT.parent.parent)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    try:
        said = [process.communicate(timeout=600)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert all("the same" in text for text in said), said[0][-3000:] + said[1][-3000:]
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["20"]
