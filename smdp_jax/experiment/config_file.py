"""Config files: a ``Config(Experiment)`` and ``PRESETS`` in Python; and one to start from."""

import hashlib
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from smdp_jax.experiment.definition import Experiment
from smdp_jax.experiment.fields import ExperimentError, check_fields
from smdp_jax.files import write_atomically


def _is_plain(name: Any) -> bool:
    """Tell what a file or a folder of a run may be called."""
    return isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name) is not None


def check_plain_name(said: str, name: Any) -> None:
    """Check what files are named after."""
    if not _is_plain(name):
        raise ExperimentError(f"{said} letters, digits, '_', '-' and '.', as files, got {name!r}")


@dataclass(frozen=True)
class ConfigFile:
    """A loaded config file.

    Parameters
    ----------
    path, presets, summary, text
        The file, experiments by name, the default one first, and the first line of its docstring
        and the rest.
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
        there = ", ".join(map(str, configs_in(path.parent))) if path.parent.is_dir() else ""
        raise ExperimentError(f"config file {path} does not exist; there are {there or 'none'}")
    module = _import(path)
    presets = getattr(module, "PRESETS", None)
    found = presets if isinstance(presets, dict) else {}
    if not found or not all(isinstance(preset, Experiment) for preset in found.values()):
        want = "PRESETS, names and instances of its Config(Experiment), as {'small': Config()}"
        raise ExperimentError(f"{path} must define {want}, got {presets!r}")
    for name, preset in found.items():
        check_plain_name(f"{path}: names of presets must be", name)
        try:
            check_fields(preset)
        except ExperimentError as error:
            raise ExperimentError(f"{path}, preset {name!r}: {error}") from None
    lines = (module.__doc__ or "").strip().splitlines() or [""]
    return ConfigFile(path, found, lines[0].rstrip("."), "\n".join(lines[1:]).strip())


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
        what = f"{type(error).__name__}: {error}"
        raise ExperimentError(f"{path}{line} cannot be loaded: {what}") from error
    return module


_FEWEST_POINTS, _MOST_AXES = 4, 3

_TEMPLATE = '''"""{title}: say what is simulated, in which units."""

from dataclasses import dataclass

import jax
{imports}
import smdp_jax as smdp
from smdp_jax.experiment import Experiment, Positive


@dataclass(frozen=True)
class Config(Experiment):
    """{title}."""

    noise: Positive = 0.5
    """Noise amplitude g, in state / sqrt(time)."""

    def drift(self, t, x, args):  # dx/dt of one state, shape {axes}: put your simulator here
        {drift}

    def sde(self):
        return smdp.SDE(self.drift, diffusion=self.noise)

    def prior(self, key, number):  # states at the start, as you know them before you look
        return jax.random.normal(key, (number, {sizes}))

    def model(self, data):
        return smdp.models.for_fields(data)

    def loss(self):
        return smdp.BackwardKernel()


PRESETS = {{"small": Config({settings})}}
'''


def write_config(path: Path, field: Sequence[int] = (), *, periodic: bool = False) -> Path:
    """Write a config that runs: diffusion of a field, or relaxation of a number.

    Parameters
    ----------
    path : Path
        The new file, ``NAME.py``; one that exists is not touched.
    field : sequence of int
        Points along each axis of the grid; none: a scalar.
    periodic : bool
        Whether the ends of the grid meet; else there are walls.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ExperimentError
        If the file exists, or cannot be called so, or for a grid that is none.
    """
    if path.suffix != ".py" or not _is_plain(path.stem):
        raise ExperimentError(f"path must be a file NAME.py, got {path}")
    if path.exists():
        raise ExperimentError(f"path must be a new file, got {path}, which exists")
    if not path.parent.is_dir():
        raise ExperimentError(f"path must lie in a folder that exists, got {path}")
    if len(field) > _MOST_AXES or any(points < _FEWEST_POINTS for points in field):
        want = f"1 to {_MOST_AXES} numbers of points, each at least {_FEWEST_POINTS}"
        raise ExperimentError(f"field must be {want}, got {' '.join(map(str, field))}")
    if periodic and not field:
        raise ExperimentError("periodic needs a field, such as --field 64, got a scalar")
    write_atomically(path, _text(path.stem, tuple(field), periodic).encode())
    return path


def _text(name: str, field: tuple[int, ...], periodic: bool) -> str:
    """Return the file's content."""
    axes = field or (1,)
    return _TEMPLATE.format(
        title=f"{name[0].upper()}{name[1:]}".replace("_", " "),
        imports="import jax.numpy as jnp\n" if field else "",
        axes=axes,
        drift=_diffusion(len(field), "wrap" if periodic else "edge") if field else "return -x",
        sizes=", ".join(map(str, axes)),
        settings="trajectories=1000, batch_size=32" if field else "",
    )


def _diffusion(axes: int, mode: str) -> str:
    """Return the lines of a diffusion, in units of the grid's spacing."""
    lines = []
    for axis in range(axes):
        pad = [(1, 1) if axis == other else (0, 0) for other in range(axes)]
        padded = f'jnp.pad(x, {tuple(pad) if axes > 1 else 1}, mode="{mode}")'
        lines.append(f"d{axis} = jnp.diff({padded}, n=2, axis={axis})")
    total = " + ".join(f"d{axis}" for axis in range(axes))
    lines.append(f"return 3.0 * ({total})" if axes > 1 else f"return 3.0 * {total}")
    return "\n        ".join(lines)
