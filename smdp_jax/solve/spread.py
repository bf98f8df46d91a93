r"""Whether steps give paths the right spread: the same noise, in whole steps and in halves of them.

Steps that amplify nothing may still be too long: an explicit one of a rate kappa leaves
``1 / (1 - kappa dt / 2)`` times the variance. Of a few paths from one state, walked both ways, the
means and standard deviations are compared where the pilot looks, but for the very end: a score may
be singular there. A scheme of order p errs by ``2^p / (2^p - 1)`` times what halves change.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from smdp_jax.compiled import once
from smdp_jax.sde import Args, State
from smdp_jax.solve.pilot import Stepper, looked_at
from smdp_jax.solve.terms import levy_area_of, terms_of, white_noise

# Paths: as many as give so many entries, between these; none for states of more entries.
_ENTRIES, _FEWEST, _MOST, _LARGE = 8192, 4, 256, 4096
_ERRORS = 3.0


class Off(NamedTuple):
    """By how much steps are off, where they are most: beyond chance, of a standard deviation."""

    error: float
    width: float
    """Standard deviation of paths over that of shorter steps."""
    shift: float
    """Distance of the means over it."""
    time: float


def off_by(
    build: Callable[[Any], Stepper], what: Any, x: State, grid: Array, args: Args, *, means: bool
) -> Off | None:
    """Walk back from x, and look at widths, and at ``means``; None where nothing can be told."""
    looks = looked_at(grid)[1:]
    size = sum(leaf.size for leaf in jax.tree.leaves(x))
    if not looks or size > _LARGE:
        return None
    keys = jax.random.split(jax.random.key(5), min(max(_ENTRIES // size, _FEWEST), _MOST))
    whole, halves = (np.asarray(v, float) for v in _walked(build, what, x, grid, args, keys))
    if not np.isfinite(halves).all():
        return None
    order = 2 if build(what).order == 2 else 1
    found = []
    for n, a, b in zip(looks, whole.swapaxes(0, 1), halves.swapaxes(0, 1), strict=True):
        found.append(_compared(a, b, 2**order / (2**order - 1), float(grid[n]), means))
    return max(found, key=lambda off: off.error)


def _compared(a: np.ndarray, b: np.ndarray, scale: float, time: float, means: bool) -> Off:
    """Moments of paths (paths, entries) in whole steps and in halves."""
    if not np.isfinite(a).all():
        return Off(np.inf, np.inf, np.inf, time)
    count, tiny = len(a), np.finfo(float).tiny
    std = b.std(axis=0) + tiny
    moved = (a - b).mean(axis=0) / std
    chance = ((a - b).var(axis=0) / std**2).mean() / count
    shift = np.sqrt(max((moved**2).mean() - chance, 0.0))
    own = a.std(axis=0) + tiny
    width = float(np.exp(np.log(own / std).mean()))
    pairs = ((a - a.mean(axis=0)) / own) ** 2 - ((b - b.mean(axis=0)) / std) ** 2
    sure = _ERRORS * pairs.mean(axis=1).std() / 2 / np.sqrt(count)
    beyond = max(abs(width - 1) - sure, 0.0)
    if means:
        beyond = max(beyond, float(shift - _ERRORS * np.sqrt(chance)))
    return Off(scale * beyond, width**scale, scale * float(shift), time)


class _Given(diffrax.AbstractBrownianPath):
    """Increments that are known already."""

    increment: Any
    levy_area: type = eqx.field(static=True)
    t0: Any = eqx.field(static=True, default=-np.inf)
    t1: Any = eqx.field(static=True, default=np.inf)

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True, use_levy: bool = False) -> Any:
        """Return them."""
        w, h = self.increment
        if not use_levy:
            return w
        dt = jax.tree.map(lambda v: jnp.asarray(t1 - t0, v.dtype), w)
        with_area = self.levy_area is diffrax.SpaceTimeLevyArea
        return self.levy_area(dt=dt, W=w, **({"H": h} if with_area else {}))


@partial(once, light=False)
def _walked(
    build: Any, what: Any, x: State, grid: Array, args: Args, keys: Array
) -> tuple[Array, Array]:
    """States (paths, looks, entries) of paths in whole steps, and in halves."""
    process, solver, substeps, _ = build(what)
    area, steps = levy_area_of(solver), (grid.shape[0] - 1) * substeps

    def moved(x: State, a: Array, b: Array, increment: tuple[State, State]) -> State:
        terms = terms_of(process, _Given(increment=increment, levy_area=area))
        state = solver.init(terms, a, b, x, args)
        return solver.step(terms, a, b, x, args, state, made_jump=False)[0]

    def noise(key: Array, dt: Array) -> tuple[State, State]:
        """Increment and space-time Levy area of a half."""
        drawn = jax.vmap(white_noise, (0, None))(jax.random.split(key), x)
        scaled = lambda i, d: jax.tree.map(lambda z: jnp.sqrt(dt / d).astype(z.dtype) * z[i], drawn)
        return scaled(0, 1), scaled(1, 12)

    def joined(one: tuple, two: tuple) -> tuple[State, State]:
        """Of the whole step (Foster, dos Reis, Strange 2023)."""
        (w1, h1), (w2, h2) = one, two
        areas = jax.tree.map(lambda a, b, h, k: (h + k) / 2 + (a - b) / 4, w1, w2, h1, h2)
        return jax.tree.map(jnp.add, w1, w2), areas

    def path(key: Array) -> tuple[Array, Array]:
        def step(carry: tuple, i: Array) -> tuple[tuple, None]:
            (whole, halves), kept = carry
            n, m = i // substeps, (i % substeps).astype(grid.dtype)
            width = (grid[n + 1] - grid[n]) / substeps
            a = grid[n] + m * width
            middle, b = a + width / 2, a + width
            own = jax.random.split(jax.random.fold_in(key, i))
            one, two = noise(own[0], width / 2), noise(own[1], width / 2)
            whole = moved(whole, a, b, joined(one, two))
            halves = moved(moved(halves, a, middle, one), middle, b, two)
            rows = jnp.stack([ravel_pytree(v)[0] for v in (whole, halves)])
            return ((whole, halves), kept.at[slots[i]].set(rows)), None

        flat = ravel_pytree(x)[0]
        kept = jnp.zeros((len(looks) + 1, 2, flat.size), flat.dtype)
        kept = jax.lax.scan(step, ((x, x), kept), jnp.arange(steps))[0][1]
        return kept[:-1, 0], kept[:-1, 1]

    # The last row takes what is not looked at.
    looks = jnp.array(looked_at(grid)[1:]) * substeps - 1
    slots = jnp.full(steps, len(looks)).at[looks].set(jnp.arange(len(looks)))
    return jax.lax.map(path, keys, batch_size=min(len(keys), 32))
