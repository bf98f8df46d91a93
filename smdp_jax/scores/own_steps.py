"""What belongs to one grid of times, and one process: is it asked for these?"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from smdp_jax.checks import check_that, concrete, holds_traced
from smdp_jax.compiled import once, parts_of, signature_of
from smdp_jax.sde import SDE, Args, State
from smdp_jax.solve.process import known


def first_of(own: Any, asked: Any) -> int | None:
    """Find where in its own times a grid begins that consists of its steps; None: other steps."""
    own, asked = np.asarray(own), np.asarray(asked)
    nearest = np.abs(asked[:, None] - own[None]).argmin(axis=1)
    near = np.abs(own[nearest] - asked).max() <= 1e-3 * np.diff(own).min()
    return int(nearest[0]) if near and (np.diff(nearest) == 1).all() else None


def steps_of(own: Any, asked: Any) -> str:
    """Both grids in words."""
    own, asked = np.asarray(own), np.asarray(asked)
    return (
        f"({len(own) - 1} steps of {np.diff(own).min():g} to {np.diff(own).max():g} in "
        f"[{own[0]:g}, {own[-1]:g}]), got {len(asked) - 1} steps in [{asked[0]:g}, {asked[-1]:g}]"
    )


def noise_of(sde: SDE, ts: Array, x: State) -> State:
    """g sqrt(dt) of every step of a grid."""
    table = jax.vmap(lambda t: sde.g(t, x))(ts[1:])
    return jax.tree.map(lambda g: g * jnp.sqrt(jnp.diff(ts)).astype(g.dtype), table)


def move_of(sde: SDE, ts: Array, x: State, args: Args) -> State:
    """What the physics makes of a state in the last step."""
    if sde.step is not None:
        moved = sde.step(ts[-2], ts[-1], x, args)
        return jax.tree.map(jnp.subtract, moved, x)
    assert sde.drift is not None
    return sde.drift(ts[-1], x, args)


@once
def _noise_and_move(sde: SDE, ts: Array, x: State, args: Args) -> tuple[State, State]:
    return noise_of(sde, ts, x), move_of(sde, ts, x, args)


def check_same_process(ts: Array, noise: State, probe: tuple[State, Args, State], sde: SDE) -> None:
    """Refuse another process, by its noise on the grid and its physics at one state."""
    x, args, moved = probe
    if not concrete(noise, moved, ts):
        return
    look = lambda: holds_traced(lambda: (noise_of(sde, ts, x), move_of(sde, ts, x, args)))
    if known.get(("traced", parts_of(sde), signature_of((ts, x, args))), look):
        return
    said = "sde must be the process that the kernel was learned for, got a"
    with jax.ensure_compile_time_eval():  # known, also where the caller is traced
        now, again = _noise_and_move(sde, ts, x, args)
        for name, old, new in (("noise", noise, now), ("physics", moved, again)):
            leaves = (map(np.asarray, jax.tree.leaves(tree)) for tree in (old, new))
            for a, b in zip(*leaves, strict=True):  # numpy's maximum keeps NaN
                size, apart = float(np.abs(a).max()), float(np.abs(a - b).max())
                got = f"{name} that differs by {apart:.3g} where its own is up to {size:.3g}"
                check_that(apart <= 1e-3 * size, f"{said} {got}")
