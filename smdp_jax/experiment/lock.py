"""One process at a time in a folder of a run."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from smdp_jax.experiment.errors import ExperimentError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["only_process_in"]


@contextlib.contextmanager
def only_process_in(directory: Path) -> Iterator[None]:
    """Keep other processes out of a folder; it is made. The system drops a dead process's lock."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / ".lock"
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 100).decode(errors="replace") or "unknown"
                raise ExperimentError(
                    f"another process works in {directory} (process {holder}): wait until it has "
                    "ended, or choose another --runs-dir"
                ) from None
            except OSError:  # a file system without locks
                pass
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}".encode())
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)
