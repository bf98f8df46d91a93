"""What ``refine_posterior`` looks at: starts, what noise does to ends, and what it has to say."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.checks import check_alike, check_holds, check_kind, check_that, concrete, warn
from smdp_jax.compiled import compiled, once
from smdp_jax.sde import Args, State
from smdp_jax.solve.noise_free import NoiseFree
from smdp_jax.solve.proximal import Noise, Spread
from smdp_jax.solve.time_grids import time_index
from smdp_jax.trajectories import Trajectories

_PATHS = 1024
_PROBED, _AT_ONCE = 64, 32
_FAR, _SURE = 4.0, 5.0  # mean square misfit, at least; and in deviations of a mean of squares
_GAUSSIAN, _OFF = 0.798, 0.05  # E|z|, and how far off


def measured(
    data: Trajectories, ts: Any, end: NoiseFree, like: State, directions: int, own_paths: int
) -> tuple[tuple[Spread, Spread], np.ndarray, np.ndarray]:
    """Spreads of starts and of what noise adds; starts along components and entries, and noise."""
    few, (starts, noise) = _looked_at(data, ts, end, like)
    known = noise[np.isfinite(noise).all(axis=1)]
    said = f"the simulation on ts must be finite from the data's starts, got {len(known)} of"
    check_that(len(known) > 2, f"{said} {len(starts)}: shorter steps, or another solver")
    spreads = Spread.of(starts, directions), Spread.of(known, max(len(known) // 4, 1))
    if own_paths:
        some = min(max(_PROBED, 1024 // starts.shape[1]), 4 * _PROBED, len(starts))
        added = _by_own_noise(end, spreads[1], few[:some], noise[:some], own_paths)
    else:
        added = jax.vmap(spreads[1].whiten)(jnp.asarray(known - known.mean(axis=0)))
    along = np.asarray(jax.vmap(spreads[0].along)(jnp.asarray(starts)))
    starts = np.concatenate([along, starts], axis=1)
    return spreads, starts, np.asarray(added)[np.isfinite(added).all(axis=1)]


def _looked_at(
    data: Trajectories, ts: Any, end: NoiseFree, like: State
) -> tuple[Trajectories, tuple[np.ndarray, np.ndarray]]:
    """Some paths, from the first to the last time; starts and what noise added, (paths, size)."""
    check_kind("data", data, "Trajectories(ts, xs)", "ts", "xs", "args_axes")
    check_that(concrete(data, ts), "ts and data must be known before tracing: close over them")
    data.check()
    few = data[:_PATHS]
    check_holds("data", few.num_samples, 3, "paths")
    places = [time_index(data.ts, float(ts[i]), "the data's ts", f"ts[{i}]") for i in (0, -1)]
    first, last = (jax.tree.map(lambda x, i=i: jnp.asarray(x[:, i]), few.xs) for i in places)
    check_alike("x_end must be like the data's states,", jax.tree.map(lambda x: x[0], last), like)
    ends = _ends(end, first, few.args, few.args_axes)
    flat = lambda tree: np.asarray(jax.vmap(lambda x: ravel_pytree(x)[0])(tree))
    starts, noise = flat(first), flat(last) - flat(ends)
    check_that(np.ptp(starts, axis=0).any(), "the starts of data must differ, got all alike")
    whole = jax.tree.map(lambda a, b: jnp.stack([a, b], axis=1), first, last)
    some = Trajectories(jnp.asarray(ts)[jnp.array([0, -1])], whole, few.args, None, few.args_axes)
    return some, (starts, noise)


@partial(once, light=False)
def _ends(end: NoiseFree, starts: State, args: Args, args_axes: int | None) -> State:
    return jax.vmap(end, (0, args_axes))(starts, args)


@compiled  # few numbers, and as much work as 16 384 simulations
def _by_own_noise(
    end: NoiseFree, of_all: Spread, data: Trajectories, noise: Any, own_paths: int
) -> Array:
    """What noise added to the ends of paths, in units of what it does from their starts."""

    def one(i: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(0), i)
        own = noise_at(end, of_all, data.at(i, 0), data.args_of(i), key, own_paths)
        return own.whiten(noise[i] - own.mean)

    return jax.lax.map(one, jnp.arange(data.num_samples), batch_size=_AT_ONCE)


def noise_at(
    end: NoiseFree, of_all: Spread, x: State, args: Args, key: PRNGKeyArray, paths: int
) -> Noise:
    """What noise does to the end from x."""
    flat = lambda x: ravel_pytree(x)[0]
    noisy = jax.vmap(lambda key: flat(end.noisy(key, x, args)))(jax.random.split(key, paths))
    return Noise.of(noisy - flat(end(x, args))[None], of_all)


def say_if_not_gaussian(starts: np.ndarray, noise: np.ndarray, step: float, own: bool) -> None:
    """Warn of starts or noise whose mean size is not that of a Gaussian."""
    spread = starts.std(axis=0)
    sizes = np.abs(starts - starts.mean(axis=0))[:, spread > 0].mean(axis=0) / spread[spread > 0]
    size = sizes[np.argmax(np.abs(sizes - _GAUSSIAN))]
    said = f"of its standard deviation, not {_GAUSSIAN}"
    if abs(size - _GAUSSIAN) > _OFF + 4 * 0.6 / math.sqrt(len(starts)):
        warn(
            "refine_posterior takes the starts of the data for Gaussian, and they are not: the "
            f"mean size of a component is {size:.2f} {said}. What the end does not tell is drawn "
            f"towards a Gaussian, by a share step={step:g} each round"
        )
    if not noise.size:
        return
    size = np.abs(noise).mean() / np.sqrt(np.square(noise).mean())
    numbers = noise.size if own else len(noise)
    if abs(size - _GAUSSIAN) > _OFF + 4 * 0.6 / math.sqrt(numbers):
        which = "Gaussian from every start" if own else "the same Gaussian on all paths"
        warn(
            f"refine_posterior takes what noise adds to the end for {which}, and it is not: its "
            f"mean size is {size:.2f} {said}. Samples will be near the end state, and too widely "
            "or narrowly spread"
            + ("" if own else "; rounds > 1 and noise_paths take it sample by sample")
        )


def say_if_missed(found: Any, entries: int) -> None:
    """Warn of samples whose end is far from what was seen."""
    if not concrete(found):
        return
    if anew := int(np.sum(found.lost)):
        warn(
            f"{anew} of {found.lost.size} samples lay where no start of the data does, or were not "
            "finite (.lost tells which): they began anew from draws of the prior"
        )
    misfit = np.asarray(found.misfit).ravel()
    size = 9 * entries / 2
    far = max(_FAR, (1 - 1 / size + _SURE / math.sqrt(size)) ** 3)  # of Wilson and Hilferty
    if lost := int(np.sum(~(misfit <= far))):
        warn(
            f"{lost} of {misfit.size} samples still miss the end state, by over {far:.3g} times "
            f"the noise's mean square (largest {np.max(misfit):.3g}): more rounds, iterations or "
            "directions may do, or samples that are nearer"
        )
