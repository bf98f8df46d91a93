"""A config to start from: the twenty lines of an experiment, to be changed where one's own is."""

from collections.abc import Sequence
from pathlib import Path

from smdp_jax.experiment.config_file import PLAIN_NAME
from smdp_jax.experiment.errors import ExperimentError
from smdp_jax.files import write_atomically

__all__ = ["write_config"]

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
