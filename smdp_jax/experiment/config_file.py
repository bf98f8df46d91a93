"""Config files: Python files with a ``Config(Experiment)`` and ``PRESETS``."""

import hashlib
import re
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from smdp_jax.experiment.definition import Experiment
from smdp_jax.experiment.errors import ExperimentError
from smdp_jax.experiment.fields import check_fields

__all__ = [
    "ConfigFile",
    "configs_in",
    "load_config_file",
]

PLAIN_NAME = re.compile(r"\w[\w.-]*")
"""What a file or a folder of a run may be called."""


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
        if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name):
            raise ExperimentError(
                f"{path}: names of presets must be letters, digits, '_', '-' and '.', as folders "
                f"are named after them, got {name!r}"
            )
        try:
            check_fields(preset)
        except ExperimentError as error:
            raise ExperimentError(f"{path}, preset {name!r}: {error}") from None
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
    return [file for file in files if b"PRESETS" in file.read_bytes()]


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
