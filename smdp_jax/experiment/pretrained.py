"""Trained scores that come with the package, each one file beside this one: no code, no pickle."""

import dataclasses
import importlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.serialization import msgpack_restore, msgpack_serialize

from smdp_jax.checks import check_choice
from smdp_jax.experiment.stages import load
from smdp_jax.files import write_atomically
from smdp_jax.scores.sharing import decoded, encoded
from smdp_jax.scores.step import carried_by
from smdp_jax.sde import SDE
from smdp_jax.solve.linear import LinearPart

_VERSION = 1
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Pretrained:
    """A trained score, and what it was trained on.

    Parameters
    ----------
    sde, score : SDE, LearnedScore or StepCorrection
        The forward process, with the way back where that was learned; what was learned.
    ts, metrics : array (times,), mapping of str to number
        Times of the paths that it learned from; what the run's report says of it.
    system, made_by
        Of ``smdp_jax.physics``: prior, closed forms; the command that trained it.
    """

    sde: SDE
    score: Any
    ts: Any
    metrics: Mapping[str, Any]
    system: Any
    made_by: str


def pretrained(name: str) -> Pretrained:
    """Load a trained score that comes with the package.

    Parameters
    ----------
    name : str
        Of an experiment, such as "affine".

    Returns
    -------
    Pretrained
        With ``.sde``, ``.score``, ``.ts``, ``.metrics`` and ``.system``.

    Raises
    ------
    ValueError
        If there is none of that name, or it was written by another version.
    """
    folder = files("smdp_jax.experiment").joinpath("weights")
    found = [file.name for file in folder.iterdir()]
    there = sorted(file.removesuffix(".smdp") for file in found if file.endswith(".smdp"))
    check_choice("name", name, *there)
    tree: Any = msgpack_restore(folder.joinpath(f"{name}.smdp").read_bytes())
    if tree["version"] != _VERSION:
        said = f"weights of {name!r} must be of version {_VERSION}, got {tree['version']}"
        raise ValueError(f"{said}: of another smdp_jax, {tree['made_by']} trains them again")
    system, score = _built(tree["system"]), decoded(tree["learned"], _built(tree["network"]))
    sde = getattr(system, tree["process"])()
    if "rates" in tree:
        sde = dataclasses.replace(sde, linear=_linear(tree["rates"], tree["points"]))
    if "inverse" in tree:
        sde = dataclasses.replace(sde, inverse=carried_by(score, _built(tree["inverse"])))
    ts, metrics = jnp.asarray(tree["ts"]), json.loads(tree["metrics"])
    return Pretrained(sde, score, ts, metrics, system, tree["made_by"])


def write_pretrained(run_dir: Path, path: Path) -> Path:
    """Write a run's score, process (its ``Config.system()``), inverse and figures to one file."""
    run = load(run_dir)
    system = getattr(run.config, "system", lambda: None)()
    linear, own = run.sde.linear, dataclasses.replace(run.sde, linear=None)
    names = [n for n in ("sde", "continuous_sde") if hasattr(system, n)]
    process = next((n for n in names if getattr(system, n)() in (run.sde, own)), None)
    if process is None:
        raise ValueError(f"{run_dir} must have Config.system() with its process, got {system!r}")
    learned = run.learned
    if inverse := getattr(run.config, "inverse", None):
        # What the network itself reads, and the inverse; not what a run keeps beside them.
        own = {n: v for n, v in learned.variables.items() if n in ("params", "inverse")}
        learned = dataclasses.replace(learned, variables=own)
    record = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
    values = {name: row["value"] for name, row in record["metrics"].items()}
    tree = {
        "version": _VERSION,
        "system": _described(system),
        "process": process,
        "network": _described(learned.model),
        "learned": encoded(learned),
        "ts": np.asarray(run.data.ts),
        "metrics": json.dumps(values),
        "made_by": f"python -m smdp_jax run configs/{run_dir.parent.name}.py",
    }
    if inverse:
        tree["inverse"] = _described(inverse(learned).model)
    if linear is not None and getattr(system, process)() == own:
        tree |= _told_of(linear, run.data.at(0, 0))
    return write_atomically(path, msgpack_serialize(tree))


def _linear(rates: Any, points: int) -> LinearPart:
    """What is linear in a field on a ring."""
    forward = lambda x: jnp.fft.rfft(x, norm="ortho")
    backward = lambda modes: jnp.fft.irfft(modes, points, norm="ortho")
    return LinearPart(jnp.asarray(rates), (forward, backward))


def _told_of(linear: LinearPart, x: Any) -> dict[str, Any]:
    """Rates by mode of a field on a ring; another transform is refused."""
    rates, points, known = linear.rates, jnp.size(x), False
    if linear.transform is not None and jnp.ndim(x) == 1 and not callable(rates):
        (forward, backward), modes = linear.transform, jnp.fft.rfft(x, norm="ortho")
        known = np.allclose(forward(x), modes) and np.allclose(backward(modes), x, atol=1e-6)
    if not known:
        raise ValueError("SDE.linear must have rates of the modes of rfft, norm='ortho', of a ring")
    return {"rates": np.asarray(rates), "points": points}


def _described(value: Any) -> Any:
    """Parts of the package by name and fields; arrays and numbers as they are."""
    if isinstance(value, _PLAIN):
        return {"value": value}
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        return {"array": np.asarray(value)}
    if isinstance(value, (tuple, list)):
        return {"sequence": {str(i): _described(part) for i, part in enumerate(value)}}
    if isinstance(value, Mapping):
        return {"mapping": {name: _described(part) for name, part in value.items()}}
    if inspect.isfunction(value):
        return {"function": _name_of(value)}
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise TypeError(f"a system or network must be made of records, got {value!r}")
    fields = {
        f.name: _described(getattr(value, f.name))
        for f in dataclasses.fields(value)
        if f.init and f.name not in ("parent", "name")
    }
    return {"record": _name_of(type(value)), "fields": fields}


def _name_of(thing: Any) -> str:
    if not thing.__module__.startswith("smdp_jax.") or "<" in thing.__qualname__:
        raise TypeError(f"a system or network must be of smdp_jax, got {thing!r}")
    return f"{thing.__module__}:{thing.__qualname__}"


def _built(tree: Any) -> Any:
    """What ``_described`` described."""
    if "record" in tree:
        fields = {name: _built(part) for name, part in tree["fields"].items()}
        return _named(tree["record"])(**fields)
    ((kind, value),) = tree.items()
    if kind == "function":
        return _named(value)
    if kind == "sequence":
        return tuple(_built(value[str(i)]) for i in range(len(value)))
    if kind == "mapping":
        return {name: _built(part) for name, part in value.items()}
    return value


def _named(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
