"""Files that a reader sees whole or not at all, and what processes that share them have to say."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import socket
import struct
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint.multihost import get_barrier_sync_fn

try:
    import fcntl
except ImportError:  # Windows has no such lock
    fcntl = None

PathLike = str | os.PathLike[str]


def local_path(path: Any) -> Path:
    """Path with ``~`` spelled out; an address on a network is refused."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"a path must be a str or a Path, got {type(path).__name__}")
    text = os.fspath(path)
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:/", text):
        raise ValueError(f"a path must be one on this machine, got {text!r}: download it first")
    return Path(text).expanduser()


@contextlib.contextmanager
def open_atomically(path: PathLike) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its place when the block ends without an error."""
    path = local_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    # In the same folder: os.replace is atomic only within one file system.
    owner = f"{_machine()}-{os.getpid()}-{uuid.uuid4().hex}"
    temporary = path.with_name(f".{path.name}.{owner}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _machine() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _remove_leftovers(path: Path) -> None:
    """Remove what writers of this file left when they were killed; living ones keep theirs."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.{_machine()}-(\d+)-[0-9a-f]{{32}}\.tmp")
    for name in os.listdir(path.parent):
        match = pattern.fullmatch(name)
        if match and not _runs(int(match[1])):
            path.with_name(name).unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def write_atomically(path: PathLike, content: bytes | str) -> Path:
    """Write a file so that a reader sees the old content or the new, never a part."""
    with open_atomically(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return local_path(path)


def read_archive(
    path: PathLike, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, np.ndarray]:
    """Read arrays of a numpy archive; what is wrong with it is a ValueError in a sentence."""
    # Opened here: np.load leaves the file open where it is no archive.
    with local_path(path).open("rb") as raw:
        start = raw.read(8)
        raw.seek(0)
        if start.startswith(b"\x93NUMPY"):
            raise ValueError("it holds one array alone, not an archive of several")
        if not start.startswith(b"PK"):
            raise ValueError(f"it must begin with b'PK' as archives do, got {start!r}")
        try:
            with np.load(raw, allow_pickle=False) as file:
                return {name: _array_of(file, name) for name in filter(wanted, file.files)}
        except _DAMAGE as error:
            raise ValueError(f"its content is damaged: {error}") from error


# RuntimeError with NotImplementedError: what a changed directory of a zip seems to ask for.
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError)


def _array_of(file: Any, name: str) -> np.ndarray:
    try:
        return file[name]
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        said = f"{name!r} holds Python objects, which are not read: store plain arrays"
        raise ValueError(said) from None


def unpack(structure: Any, arrays: Mapping[str, Any]) -> Any:
    """Put a tree together from its arrays by name, and from its structure, as JSON has it."""
    if structure is None:
        return None
    if "dtype" in structure:
        return arrays[structure["array"]].view(jnp.dtype(structure["dtype"]))
    ((kind, inner),) = structure.items()
    if kind == "array":
        return arrays[inner]
    if kind == "dict":
        return {key: unpack(value, arrays) for key, value in inner.items()}
    if kind in ("list", "tuple"):
        items = [unpack(value, arrays) for value in inner]
        return tuple(items) if kind == "tuple" else items
    return inner


def lock(folder: Path) -> int:
    """Hold a folder until its file is closed; a BlockingIOError names who holds it."""
    held = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            holder = os.read(held, 100).decode(errors="replace") or "unknown"
            os.close(held)
            raise BlockingIOError(f"process {holder}") from None
    os.ftruncate(held, 0)
    os.write(held, f"{os.getpid()}".encode())
    return held


def digest_of(tree: Any) -> str:
    """Digest structure, shapes, dtypes and values of a tree of arrays, numbers and strings."""
    leaves, treedef = jax.tree.flatten(tree)
    content = hashlib.sha256(str(treedef).encode())
    for leaf in map(np.asarray, leaves):
        if leaf.dtype.hasobject:
            raise TypeError(f"a digest is of arrays, numbers and strings, got {leaf}")
        content.update(f"{leaf.shape}{leaf.dtype}".encode())
        content.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)  # no copy
    return content.hexdigest()


_WEEK = 7 * 24 * 3600 * 1000
_barriers = itertools.count()


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def agreed(value: bool) -> bool:
    """What the first process says: clocks and folders differ, and all have to do the same."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def check_alike(what: Any, said: str) -> None:
    """Refuse processes that were started with other values than the first."""
    if jax.process_count() == 1:
        return
    own = np.frombuffer(digest_of([json.dumps(what)])[:16].encode(), np.uint8)
    others = multihost_utils.process_allgather(own)
    unlike = (others != others[0]).any(axis=1)
    if unlike.any():
        got = f"process {unlike.argmax()} unlike process 0"
        raise ValueError(f"all processes must {said}, got {got}: start them with the same code")


def wait() -> None:
    """Wait for the others, however long they take: a collective of the devices would give up."""
    get_barrier_sync_fn()(key=f"smdp_jax-{next(_barriers)}", timeout_ms=_WEEK)


def by_first(action: Callable[[], object]) -> None:
    """Let the first process write, and the others wait until all of it is there."""
    if is_first():
        action()
    wait()
