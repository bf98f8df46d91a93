"""Files that a reader sees whole or not at all, and digests of what is in them."""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import jax
import numpy as np
from jaxtyping import PyTree


@contextlib.contextmanager
def open_atomically(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its place when the block ends without an error."""
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
    """Write a file so that a reader sees the old content or the new, never a part."""
    with open_atomically(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return Path(path)


def digest_of(tree: PyTree) -> str:
    """Digest structure, shapes, dtypes and values of a tree of arrays."""
    leaves, treedef = jax.tree.flatten(tree)
    content = hashlib.sha256(str(treedef).encode())
    for leaf in map(np.asarray, leaves):
        content.update(f"{leaf.shape}{leaf.dtype}".encode())
        content.update(leaf.tobytes())
    return content.hexdigest()
