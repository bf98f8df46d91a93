"""What does a step of smoke cost, and does it do what PhiFlow's does?

    pip install phiflow
    python benchmarks/smoke.py

*Speed*: one step of a batch of simulations, each with a box and a disc of its own, from the same
states at t = 0.15: by ``jax.vmap`` and by ``jax.lax.map`` of ``Smoke.step``, and by PhiFlow on its
JAX backend (its own batching, compiled, conjugate gradients to the published tolerance of 1e-5),
in one process and in turn. Seconds are those of one simulation, with the divergence that is left.

*Physics*: the plume without obstacles, by both, from rest to t = 0.65. They cannot agree bit by
bit: PhiFlow takes the velocity to be zero beyond the walls, here it goes on with zero gradient.
(With obstacles they differ more: PhiFlow also slows the air on faces covered in part.)

*Data*: all paths of the ``paper`` preset of ``configs/smoke.py``, compilation included.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import timing
from smoke_peer import PhiFlowSmoke

from smdp_jax.physics import Smoke

sys.path.insert(0, str(Path(__file__).parent.parent))
from configs.smoke import PRESETS

State = dict[str, Any]

VMAP, GRADIENT, DOUBLE = "vmap", "vmap of its gradient", "vmap, double precision"


@dataclass(frozen=True)
class Settings(harness.Settings):
    """Sizes."""

    size: int = 64
    """Cells per side."""
    batch: int = 32
    """Simulations at once, each with its own obstacles."""
    repeats: int = 7
    """Rounds."""
    steps: int = 65
    """Steps of 0.01 of the plume."""
    gradient: bool = True
    """Also time a step with its gradient, which takes long to compile."""
    data: bool = True
    """Also generate the data of the paper preset."""
    peer: bool = True
    """Compare with PhiFlow, which must be installed."""


def draw(smoke: Smoke, number: int) -> tuple[np.ndarray, np.ndarray, jax.Array]:
    """Draw a box and a disc for each simulation, and their masks."""
    random = np.random.default_rng(0)
    lower = random.uniform([5, 45], [60, 70], (number, 2))
    boxes = np.stack([lower, lower + random.uniform([10, 7], [30, 12], (number, 2))], axis=1)
    discs = random.uniform([10, 60, 7], [90, 90, 12], (number, 3))
    masks = [
        smoke.box(box[0], box[1]) | smoke.disc(disc[:2], float(disc[2]))
        for box, disc in zip(boxes, discs, strict=True)
    ]
    return boxes, discs, jnp.stack(masks)


def steppers(smoke: Smoke) -> dict[str, Callable[[State, Any], State]]:
    """Return steps of a batch of states and masks, from t = 0.15."""

    def step(x: State, mask: Any) -> State:
        return smoke.step(0.15, 0.16, x, {"obstacles": mask})

    def gradient(x: State, mask: Any) -> State:
        size = lambda x: sum(jnp.sum(leaf**2) for leaf in step(x, mask).values())
        return jax.grad(size)(x)

    return {
        VMAP: jax.jit(jax.vmap(step)),
        "lax.map": jax.jit(lambda x, masks: jax.lax.map(lambda a: step(*a), (x, masks))),
        GRADIENT: jax.jit(jax.vmap(gradient)),
    }


def speed(settings: Settings, smoke: Smoke) -> tuple[list[dict[str, Any]], list[harness.Target]]:
    """Time one step of a batch."""
    harness.say("speed")
    boxes, discs, masks = draw(smoke, settings.batch)
    step = jax.jit(jax.vmap(smoke.step, (None, None, 0, 0)))
    x = smoke.prior(jax.random.key(0), settings.batch)
    for i in range(15):
        x = step(i * 0.01, (i + 1) * 0.01, x, {"obstacles": masks})
    cases: dict[str, Callable[[], Any]] = {
        name: partial(function, x, masks)
        for name, function in steppers(smoke).items()
        if settings.gradient or name != GRADIENT
    }
    if settings.peer:
        double = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), x)
        theirs = PhiFlowSmoke(smoke).stepper(boxes, discs, True)
        cases[DOUBLE] = partial(in_x64, steppers(smoke)[VMAP], double, masks)
        cases["PhiFlow"] = partial(theirs, x)
    times = timing.interleave(cases, settings.repeats)
    rows = [
        {
            "step": name,
            "least s": taken.least / settings.batch,
            "median s": taken.median / settings.batch,
            "compile s": taken.compilation,
            "divergence": None if name == GRADIENT else left(smoke, cases[name](), masks),
        }
        for name, taken in times.items()
    ]
    targets = [harness.Target("divergence after a step", rows[0]["divergence"], 1e-5)]
    if settings.peer:
        for name, said in ((VMAP, ""), (DOUBLE, ", ours in double precision")):
            times_faster = timing.ratio(times["PhiFlow"], times[name])["median ratio"]
            targets.append(
                harness.Target(f"PhiFlow's time / ours{said}", times_faster, 10, at_least=True)
            )
    return rows, targets


def left(smoke: Smoke, x: State, masks: jax.Array) -> float:
    """Return the largest divergence in a batch of states."""
    precise = x["marker"].dtype == np.float64
    with jax.enable_x64(precise):
        divergence = jax.vmap(lambda x, m: smoke.divergence(x, {"obstacles": m}))(x, masks)
        return float(jnp.max(jnp.abs(divergence)))


def in_x64(function: Callable[..., Any], *args: Any) -> Any:
    """Call with double precision enabled."""
    with jax.enable_x64(True):
        return function(*args)


def plume(smoke: Smoke, steps: int) -> list[State]:
    """Simulate from rest without obstacles; all states."""
    step = jax.jit(smoke.step)
    x, path = jax.tree.map(lambda a: a[0], smoke.prior(jax.random.key(0), 1)), []
    for i in range(steps):
        x = step(i * 0.01, (i + 1) * 0.01, x)
        path.append(x)
    return path


def plume_of_peer(smoke: Smoke, steps: int) -> list[State]:
    """Do the same by PhiFlow."""
    peer, none = PhiFlowSmoke(smoke), np.zeros((0, 3))
    with_inflow, without = (peer.stepper(none, none, inflow) for inflow in (True, False))
    x, path = smoke.prior(jax.random.key(0), 1), []
    for i in range(steps):
        x = (with_inflow if i < 20 else without)(x)
        path.append(jax.tree.map(lambda a: np.asarray(a)[0], x))
    return path


def summary(smoke: Smoke, x: State) -> dict[str, float]:
    """Total marker and its centre of mass, in units of length."""
    marker, middles = np.asarray(x["marker"]), (np.arange(smoke.size) + 0.5) * smoke.spacing
    total = marker.sum()
    return {
        "total": float(total * smoke.spacing**2),
        "x": float(middles @ marker.sum(axis=1) / total),
        "y": float(middles @ marker.sum(axis=0) / total),
        "fastest": float(np.abs(x["velocity_y"]).max()),
    }


def physics(settings: Settings, smoke: Smoke) -> tuple[list[dict[str, Any]], list[harness.Target]]:
    """Compare the plumes."""
    harness.say("physics")
    paths = {"ours": plume(smoke, settings.steps)}
    if settings.peer:
        paths["PhiFlow"] = plume_of_peer(smoke, settings.steps)
    last = settings.steps - 1
    rows = [
        {"t": 0.01 * (i + 1), "by": name, **summary(smoke, path[i])}
        for i in sorted({last // 4, last // 2, 3 * last // 4, last})
        for name, path in paths.items()
    ]
    if not settings.peer:
        return rows, []
    ours, theirs = rows[-2], rows[-1]
    apart = np.hypot(ours["x"] - theirs["x"], ours["y"] - theirs["y"]) / smoke.spacing
    return rows, [
        harness.Target("centres of mass apart, in cells", float(apart), 2),
        harness.Target("total marker apart", abs(ours["total"] / theirs["total"] - 1), 0.03),
    ]


def generation(settings: Settings) -> tuple[list[dict[str, Any]], list[harness.Target]]:
    """Time the data of the paper preset."""
    if not settings.data:
        return [], []
    harness.say("data of the paper preset")
    config = PRESETS["paper"]
    seconds = timing.seconds(lambda: config.simulate(jax.random.key(0)).train.xs)
    row = {"paths to learn from": config.trajectories, "cells": config.size**2, "s": seconds}
    return [row], [harness.Target("data of the paper preset, minutes", seconds / 60, 30)]


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    quick = {"size": 16, "batch": 2, "repeats": 1, "steps": 4}
    quick |= dict.fromkeys(("gradient", "data", "peer"), False)
    settings = harness.parse(Settings(), quick, __doc__, given)
    started = time.perf_counter()
    smoke = Smoke(settings.size)
    cost, cost_targets = speed(settings, smoke)
    plumes, plume_targets = physics(settings, smoke)
    data, data_targets = generation(settings)
    tables = {
        f"One step of {settings.batch} simulations, seconds for each": cost,
        "The plume without obstacles": plumes,
    }
    if data:
        tables["Data of the paper preset"] = data
    targets = cost_targets + plume_targets + data_targets
    return harness.publish(settings, __file__, tables, targets, started)


if __name__ == "__main__":
    main()
