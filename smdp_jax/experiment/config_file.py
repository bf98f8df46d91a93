"""Config files: Python files with a ``Config(Experiment)`` and ``PRESETS``."""

import ast
import dataclasses
import hashlib
import json
import math
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from smdp_jax.experiment.definition import Experiment
from smdp_jax.experiment.errors import ExperimentError

__all__ = [
    "ConfigFile",
    "as_json",
    "changed_fields",
    "configs_in",
    "from_json",
    "load_config_file",
    "same_code",
]


@dataclass(frozen=True)
class ConfigFile:
    """A loaded config file.

    Parameters
    ----------
    path : Path
        The file.
    presets : dict
        Experiments by name, the default one first.
    summary : str
        First line of its docstring.
    text : str
        The rest of its docstring.
    """

    path: Path
    presets: Mapping[str, Experiment]
    summary: str
    text: str

    @property
    def name(self) -> str:
        """Name of the experiment: that of the file."""
        return self.path.stem

    @property
    def source(self) -> str:
        """Its content."""
        return self.path.read_text(encoding="utf-8")


def load_config_file(path: Path) -> ConfigFile:
    """Load a config file.

    Parameters
    ----------
    path : Path
        A Python file that needs no other file beside it: runs keep a copy of it alone.

    Returns
    -------
    ConfigFile
        Its presets and description.

    Raises
    ------
    ExperimentError
        If there is no such file, or if it defines no presets.
    """
    if not path.is_file():
        found = [str(other) for other in configs_in(path.parent)] if path.parent.is_dir() else []
        hint = f"; there are {', '.join(found)}" if found else ""
        raise ExperimentError(f"config file {path} does not exist{hint}")
    module = _import(path)
    presets = getattr(module, "PRESETS", None)
    mapping = presets if isinstance(presets, dict) else {}
    if not mapping or not all(isinstance(preset, Experiment) for preset in mapping.values()):
        raise ExperimentError(
            f"{path} must define PRESETS, a dict of names and instances of its Config(Experiment), "
            f"such as PRESETS = {{'small': Config()}}; got {presets!r}"
        )
    for name, preset in mapping.items():
        _check_fields(path, name, preset)
    lines = (module.__doc__ or "").strip().splitlines() or [""]
    return ConfigFile(path, mapping, lines[0].rstrip("."), "\n".join(lines[1:]).strip())


def configs_in(folder: Path) -> list[Path]:
    """List the config files of a folder.

    Parameters
    ----------
    folder : Path
        Where to look.

    Returns
    -------
    list of Path
        Python files with presets, by name; the others are no config files.

    Raises
    ------
    ExperimentError
        If there is no such folder.
    """
    if not folder.is_dir():
        raise ExperimentError(f"folder {folder} does not exist")
    files = sorted(file for file in folder.glob("*.py") if not file.name.startswith("_"))
    return [file for file in files if "PRESETS" in file.read_text(encoding="utf-8")]


def as_json(config: Experiment) -> dict[str, Any]:
    """Return the fields of a configuration as JSON values."""
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    for name, value in fields.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ExperimentError(f"{name} must be finite, got {value}")
    return json.loads(json.dumps(fields))


def from_json(kind: type[Experiment], fields: Mapping[str, Any]) -> Experiment:
    """Rebuild a configuration."""
    known = {f.name for f in dataclasses.fields(kind)}
    if known != set(fields):
        differing = ", ".join(sorted(known ^ set(fields)))
        raise ExperimentError(f"the configuration has other fields than its class: {differing}")

    def frozen(value: Any) -> Any:
        return tuple(frozen(v) for v in value) if isinstance(value, list) else value

    config = kind(**{name: frozen(value) for name, value in fields.items()})
    for name, hint in get_type_hints(kind).items():
        if name in known and not _fits(getattr(config, name), hint):
            shown = getattr(hint, "__name__", hint) if get_args(hint) == () else hint
            raise ExperimentError(f"{name} must be {shown}, got {getattr(config, name)!r}")
    return config


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a value has the type that a field is declared with; True for other types."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Literal:
        return value in parts
    if kind in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is tuple and isinstance(value, tuple):
        kinds = parts[:1] * len(value) if parts[1:] == (...,) else parts
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    numbers = {int: (int,), float: (int, float)}
    if hint in numbers:
        return isinstance(value, numbers[hint]) and not isinstance(value, bool)
    known = kind is tuple or hint in (NoneType, bool, str)
    return not known or isinstance(value, kind or hint)


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Describe the fields in which two configurations differ."""
    names = [*old, *(name for name in new if name not in old)]
    return [
        f"{name} was {old.get(name, 'absent')!r}, now {new.get(name, 'absent')!r}"
        for name in names
        if old.get(name, "absent") != new.get(name, "absent")
    ]


def same_code(one: str, other: str) -> bool:
    """Tell whether two Python sources do the same: comments, docstrings and layout do not count."""

    def code(source: str) -> str:
        tree = ast.parse(source)
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                node.body = [line for line in body if not _is_text(line)]  # pyright: ignore[reportAttributeAccessIssue] some nodes have no body
        return ast.dump(tree)

    return one == other or code(one) == code(other)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _check_fields(path: Path, name: str, preset: Experiment) -> None:
    try:
        same = from_json(type(preset), as_json(preset)) == preset
    except ExperimentError as error:
        raise ExperimentError(f"{path}, preset {name!r}: {error}") from None
    except (TypeError, ValueError):
        same = False
    if not same:
        raise ExperimentError(
            f"{path}: fields of {type(preset).__name__} must be numbers, strings, bools, None or "
            "tuples of these, so that a run can be read back from config.json"
        )


def _import(path: Path) -> ModuleType:
    # Under a name of its own: several config files and their copies live in one process.
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    name = f"smdp_config_{path.stem}_{digest}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    # Compiled here, and not by the import system: a cached file could be that of an older content.
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
    except Exception as error:  # whatever the user's code raises
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        line = f", line {lines[-1]}" if lines else ""
        raise ExperimentError(
            f"{path}{line} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return module
