"""Files that a reader sees whole or not at all."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["open_atomically", "write_atomically"]


@contextlib.contextmanager
def open_atomically(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its place when the block ends without an error.

    Parameters
    ----------
    path : path
        Where to; missing folders are made. An old file is kept if the block fails.

    Yields
    ------
    BinaryIO
        To write to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder: os.replace is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Write a file so that a reader sees the old content or the new, never a part.

    Parameters
    ----------
    path : path
        Where to; missing folders are made.
    content : bytes or str
        All of it; text is written as UTF-8.

    Returns
    -------
    Path
        ``path``.
    """
    with open_atomically(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return Path(path)
