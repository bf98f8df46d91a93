"""Several processes that share a run, on one machine or many: all compute, the first one writes.

JAX ends a process, without a word to Python, when another one is lost. So the command starts a
second one of itself that does the work, and says what became of it.
"""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh

from smdp_jax.experiment.fields import ExperimentError
from smdp_jax.files import check_alike, digest_of, lock
from smdp_jax.solve.batches import AXIS

LOST = (
    "another process has ended, or cannot be reached (what it says tells why); start all of them "
    "again by the same command, which goes on from the last checkpoint"
)
_BY_HAND = "--coordinator HOST:PORT --processes N --process I"
SILENCE = 30
"""Seconds without a sign of life after which a process counts as lost."""
_PARENT = "SMDP_SUPERVISOR"


def supervised(arguments: Sequence[str]) -> int | None:
    """Do the command in a process of its own, and say so where it is lost; None inside of that."""
    if _PARENT in os.environ:
        return None
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "smdp_jax", *arguments]
    with subprocess.Popen(
        command, env=os.environ | {_PARENT: str(reading)}, pass_fds=[reading]
    ) as worker:
        os.close(reading)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C goes to both
        signal.signal(signal.SIGTERM, lambda *_: worker.terminate())
        status = worker.wait()
    os.close(writing)
    if status == -signal.SIGABRT:
        sys.stderr.write(f"error: {LOST}\n")
        return 1
    return 128 - status if status < 0 else status


def watched() -> None:
    """End when the process that started this one has: it would not be missed otherwise."""
    if _PARENT not in os.environ:
        return

    def watch() -> None:
        os.read(int(os.environ[_PARENT]), 1)  # nothing is ever written
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Find the other processes; before anything else of JAX is used."""
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < 3:
        got = " and no ".join(missing)
        raise ExperimentError(f"{_BY_HAND} must be given together, got no {got}")
    try:
        jax.distributed.initialize(
            coordinator, processes, process, heartbeat_timeout_seconds=SILENCE
        )
    except (ValueError, TypeError, IndexError) as error:
        want = f"must be started by srun or mpirun, on a TPU pod, or with {_BY_HAND}"
        raise ExperimentError(f"--distributed {want}, got none that fits ({error})") from error


def all_devices() -> Mesh | None:
    """All devices of all processes, where there are several."""
    return jax.make_mesh((jax.device_count(),), (AXIS,)) if jax.device_count() > 1 else None


def check_same_run(what: Mapping[str, object]) -> None:
    """Refuse processes with another config, preset or code, told by digests."""
    check_alike({**what, "smdp_jax": _code(), "jax": jax.__version__}, "run the same experiment")


@functools.cache
def _code() -> str:
    folder = Path(__file__).parents[1]
    files = {str(f.relative_to(folder)): f.read_text("utf-8") for f in folder.rglob("*.py")}
    return digest_of(files)


@contextlib.contextmanager
def only_process_in(directory: Path) -> Iterator[None]:
    """Keep other processes out of a folder; it is made. The system drops a dead process's lock."""
    directory.mkdir(parents=True, exist_ok=True)
    try:
        held = lock(directory)
    except BlockingIOError as error:
        said = f"another process works in {directory} ({error}): wait until it has ended"
        raise ExperimentError(f"{said}, or choose another --runs-dir") from None
    try:
        yield
    finally:
        os.ftruncate(held, 0)
        os.close(held)
