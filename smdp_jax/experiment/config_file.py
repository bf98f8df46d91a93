"""Config files: a ``Config(Experiment)`` and ``PRESETS`` in Python; and one to start from."""

import hashlib
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from smdp_jax.experiment.definition import Experiment
from smdp_jax.experiment.fields import ExperimentError, check_fields
from smdp_jax.files import write_atomically

PLAIN_NAME = re.compile(r"\w[\w.-]*")
"""What a file or a folder of a run may be called."""


@dataclass(frozen=True)
class ConfigFile:
    """A loaded config file.

    Parameters
    ----------
    path, presets : Path, dict
        The file, and experiments by name, the default one first.
    summary, text : str
        First line of its docstring; the rest of its docstring.
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

    noise: Positive = {noise}
    """Noise amplitude g, in state / sqrt(time)."""

    def drift(self, t, x, args):  # dx/dt of one state, {shape}: put your simulator here
{drift}

    def sde(self):
        return smdp.SDE(self.drift, diffusion=self.noise)

    def prior(self, key, number):  # states at the start, as you know them before you look
        return jax.random.normal(key, (number, {axes}))

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
    if path.suffix != ".py" or not PLAIN_NAME.fullmatch(path.stem):
        raise ExperimentError(f"path must be a file NAME.py, got {path}")
    if path.exists():
        raise ExperimentError(f"path must be a new file, got {path}, which exists")
    if not path.parent.is_dir():
        raise ExperimentError(f"path must lie in a folder that exists, got {path}")
    if len(field) > _MOST_AXES or any(points < _FEWEST_POINTS for points in field):
        raise ExperimentError(
            f"field must be 1 to {_MOST_AXES} numbers of points, each at least {_FEWEST_POINTS}, "
            f"got {' '.join(map(str, field))}"
        )
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
        noise=0.5,
        shape=f"shape ({', '.join(map(str, axes))}{',' if len(axes) == 1 else ''})",
        drift=_diffusion(len(field), "wrap" if periodic else "edge")
        if field
        else "        return -x",
        axes=", ".join(map(str, axes)),
        settings="trajectories=1000, batch_size=32" if field else "",
    )


def _diffusion(axes: int, mode: str) -> str:
    """Return the lines of a diffusion, in units of the grid's spacing."""
    lines = []
    for axis in range(axes):
        sides = ["(1, 1)" if axis == other else "(0, 0)" for other in range(axes)]
        pad = f"({', '.join(sides)})" if axes > 1 else "1"
        lines.append(
            f'        d{axis} = jnp.diff(jnp.pad(x, {pad}, mode="{mode}"), n=2, axis={axis})'
        )
    total = " + ".join(f"d{axis}" for axis in range(axes))
    return "\n".join(
        [*lines, f"        return 3.0 * ({total})" if axes > 1 else f"        return 3.0 * {total}"]
    )
