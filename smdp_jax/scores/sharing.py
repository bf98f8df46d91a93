"""A learned term in one file: parameters, scales and times as msgpack, no code and no pickle.

The file is a line that names format and version, the digest of what follows, and that.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.serialization import msgpack_restore, msgpack_serialize

from smdp_jax.checks import check_that
from smdp_jax.files import write_atomically
from smdp_jax.scores.blocks import Cosine, Joint, Periodic, Points
from smdp_jax.scores.kernel import LearnedKernel
from smdp_jax.scores.learned import LearnedScore, StepCorrection
from smdp_jax.scores.moments import physics_of
from smdp_jax.scores.preconditioner import Preconditioner
from smdp_jax.scores.regression import Regression
from smdp_jax.scores.seen import SeenRange
from smdp_jax.scores.step import LearnedStep, StepScale
from smdp_jax.scores.tables import KernelTables
from smdp_jax.sde import SDE
from smdp_jax.solve.condition_splines import Hats

_MAGIC, _VERSION = b"smdp_jax learned term ", 1
_records: dict[str, Callable] = {}


def shareable(record: type) -> type:
    """Let files hold a dataclass; its field ``model`` stays outside."""
    _records[record.__name__] = record
    return record


for _record in (LearnedScore, StepCorrection, LearnedStep, Preconditioner, SeenRange, StepScale):
    shareable(_record)
for _record in (LearnedKernel, KernelTables, Regression, Hats, Periodic, Cosine, Points, Joint):
    shareable(_record)


def save(score: Any, path: str | os.PathLike[str]) -> None:
    """Write a learned score, correction, step or kernel to one file, whole or not at all.

    Parameters
    ----------
    score : LearnedScore, StepCorrection, LearnedStep or LearnedKernel
        ``fit.score``, ``fit.correction``, ``fit.step``, ``fit.kernel``, ``run.score``.
    path : path
        The file; one that exists is replaced.

    Raises
    ------
    TypeError
        If it is a function of another kind, or a kernel with a ``transform`` given as a pair.
    """
    if type(score).__name__ not in _records or not hasattr(score, "model"):
        raise TypeError(f"score must be learned, such as fit.score, got {type(score).__name__}")
    content = {"network": described(score.model), "learned": encoded(score)}
    body = msgpack_serialize(content)
    head = _MAGIC + f"{_VERSION} {hashlib.sha256(body).hexdigest()}\n".encode()
    write_atomically(path, head + body)


def load_score(path: str | os.PathLike[str], model: Any, sde: SDE | None = None) -> Any:
    """Read what ``save`` wrote; no code of the file is run.

    Parameters
    ----------
    path : path
        The file.
    model : flax.linen.Module or None
        The network that was trained, built anew: the file holds its parameters alone. None for a
        kernel without a network.
    sde : SDE, optional
        The process, for kernels whose steps begin with one of the physics back.

    Returns
    -------
    LearnedScore, StepCorrection, LearnedStep or LearnedKernel
        As it was saved.

    Raises
    ------
    FileNotFoundError
        If there is no file.
    ValueError
        If the file is damaged, of another kind or a later version, of another network, or of a
        kernel that needs ``sde``.
    """
    try:
        with open(os.path.expanduser(path), "rb") as file:
            content = file.read()
    except FileNotFoundError:
        raise FileNotFoundError(f"path must be a file that save wrote, got {path}") from None
    head, _, body = content.partition(b"\n")
    known = head.startswith(_MAGIC)
    check_that(known, f"{path} must begin as what save writes does", content[:24])
    version, _, digest = head.removeprefix(_MAGIC).partition(b" ")
    said = f"{path} must be of version {_VERSION}, got version {version.decode(errors='replace')}"
    remedy = "pip install --upgrade smdp_jax, or train again"
    check_that(version == str(_VERSION).encode(), f"{said} of another smdp_jax: {remedy}")
    whole = hashlib.sha256(body).hexdigest().encode() == digest
    check_that(whole, f"{path} is damaged: its content has another digest than it had")
    tree, asked = msgpack_restore(body), described(model)
    said = f"model must be the network of {path}, {tree['network']}, got {asked}"
    check_that(tree["network"] == asked, said)
    return decoded(tree["learned"], model, sde)


def described(part: Any) -> str:
    """Print a part in one line, without addresses: another process has others."""
    # Files older than networks' dtype know of none.
    told = re.sub(r" at 0x[0-9a-f]+|# attributes|\bdtype = None\b", "", repr(part))
    return re.sub(r"\s+", " ", told)


def encoded(value: Any, name: str = "") -> Any:
    """Records, dicts and sequences as dicts; numbers, strings, None and arrays as they are."""
    if type(value).__name__ in _records and dataclasses.is_dataclass(value):
        names = [f.name for f in dataclasses.fields(value) if f.name != "model"]
        fields = {name: encoded(getattr(value, name), name) for name in names}
        return {"record": type(value).__name__, "fields": fields}
    if hasattr(value, "items"):
        return {"dict": {str(name): encoded(part) for name, part in value.items()}}
    if isinstance(value, (tuple, list)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: {str(i): encoded(part) for i, part in enumerate(value)}}
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        return {"array": np.asarray(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    if callable(value) and name == "physics":
        return {"physics": True}
    said = "what is saved must hold arrays and numbers, no functions of its own (a kernel's pair"
    raise TypeError(f"{said} of functions as transform), got {type(value).__name__}")


def decoded(tree: Any, model: Any, sde: SDE | None = None) -> Any:
    """What ``encoded`` was given, with this network in its place."""
    if "record" in tree:
        said = f"the file holds a {tree['record']}, which this smdp_jax has not"
        check_that(tree["record"] in _records, said)
        record = _records[tree["record"]]
        fields = {name: decoded(part, model, sde) for name, part in tree["fields"].items()}
        own = {f.name for f in dataclasses.fields(record)}  # type: ignore[arg-type]
        return record(**({"model": model} if "model" in own else {}), **fields)
    ((kind, value),) = tree.items()
    if kind == "array":
        return jnp.asarray(value)
    if kind == "physics":
        if sde is None:
            raise ValueError("sde must be the process of the kernel, which steps by it, got None")
        return physics_of(sde, "inverse")
    if kind == "dict":
        return {name: decoded(part, model, sde) for name, part in value.items()}
    if kind in ("tuple", "list"):
        parts = [decoded(value[str(i)], model, sde) for i in range(len(value))]
        return tuple(parts) if kind == "tuple" else parts
    return value
