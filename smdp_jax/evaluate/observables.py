"""Numbers to look at a state by: entries of small states; modes, patches and extremes of fields."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from smdp_jax.evaluate.arrays import as_float, by_name
from smdp_jax.sde import State

Observables = Callable[[Any], Mapping[str, Any]]
"""Maps one state to numbers by name."""

SMALL = 8
"""Up to this many entries, a leaf is looked at entry by entry."""


def default_observables(x: State) -> dict[str, Array]:
    """Numbers that tell states apart, for each leaf of a state.

    Leaves of up to 8 entries: the entries. Larger ones, taken as fields: the real part of low
    Fourier modes (unitary; one period along each axis, four along the last), the mean over a
    corner patch of half the length along each axis, the maximum, and the mean square (the
    enstrophy, for a vorticity).

    Parameters
    ----------
    x : pytree
        One state, unbatched.

    Returns
    -------
    dict of str to scalar array
        In the units of the leaf (mean square: their square).
    """
    found = {}
    for name, leaf in by_name(x).items():
        values = as_float(name or "state", leaf)
        parts = _entries(values) if values.size <= SMALL else _of_field(values)
        found |= {f"{name} {part}".strip(): value for part, value in parts.items()}
    return found


def _entries(x: Array) -> dict[str, Array]:
    if x.size == 1:
        return {"value": x.reshape(())}
    return {f"entry {', '.join(map(str, i))}": x[i] for i in np.ndindex(x.shape)}


def _of_field(x: Array) -> dict[str, Array]:
    long = [axis for axis, points in enumerate(x.shape) if points > 3]
    waves = [tuple(int(axis == other) for other in range(x.ndim)) for axis in long]
    if x.shape[long[-1]] >= 12:
        waves.append(tuple(4 * int(axis == long[-1]) for axis in range(x.ndim)))
    modes = jnp.fft.fftn(x, norm="ortho").real
    corner = tuple(
        slice(points // 2 if axis in long else None) for axis, points in enumerate(x.shape)
    )
    return {
        **{f"mode {', '.join(map(str, wave))}": modes[wave] for wave in waves},
        "patch mean": jnp.mean(x[corner]),
        "maximum": jnp.max(x),
        "mean square": jnp.mean(jnp.square(x)),
    }
