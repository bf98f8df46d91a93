"""How much memory do sampling and training of the heat problem take at most?

    python benchmarks/memory.py

Each job runs in a process of its own; the figure is that process's peak resident memory
(``ru_maxrss``), beside that of a process which only imports everything and starts JAX:

- *sampling, exact score*: 10 000 paths of the heat equation, 32 x 32, Heun, 64 steps;
- *sampling, U-Net*: the same by a network. Only the last state of a path is kept, so memory does
  not depend on the number of steps: 4 of them will do, which saves an hour;
- *training*: two updates on windows of 32 steps, batch 16, U-Net;
- *training, many paths*: two updates of an MLP on paths of 0.5 GiB, beside the same on few paths.
  What it takes more, over the size of the paths and less the paths themselves, is what ``fit``
  needs for them.

*Growth*: how much of the memory of 60 calls of ``sample_posterior``, each with a score of its own,
is still resident after them; a program that outlived its score would be a leak of 5 MiB a call.

Paths are solved in chunks (``chunk_size``), as ``configs/heat.py`` does.
"""

import json
import math
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import diffrax
import harness
import jax
import optax
import timing

import smdp_jax as smdp
from smdp_jax.physics import Heat

HEAT = Heat()
GIB = 2**30


@dataclass(frozen=True)
class Settings(harness.Settings):
    """Sizes."""

    paths: int = 10_000
    """Sampled paths."""
    chunk: int = 64
    """Paths solved at once."""
    steps: int = 64
    """Steps with the exact score."""
    unet_steps: int = 4
    """Steps with the U-Net."""
    channels: tuple[int, ...] = (16, 32, 48)
    """Channels of the U-Net."""
    window: int = 32
    """Steps per window in training."""
    trajectories: int = 64
    """Paths to train on."""
    batch_size: int = 16
    """Windows per update."""
    calls: int = 60
    """Calls with a score of their own."""
    many: int = 2**17
    """Paths of 1024 numbers (4 KiB) for the extra memory of ``fit``."""
    job: Literal["all", "nothing", "exact", "unet", "training", "few", "many", "growth"] = "all"
    """Run one job in this process and print its peak memory, or all in processes of their own."""


def nothing(settings: Settings) -> Any:
    """Start JAX."""
    return jax.random.normal(jax.random.key(0), (32, 32)) @ jax.numpy.eye(32)


def sample(settings: Settings, score: Any, steps: int) -> Any:
    """Sample the past of one end state."""
    return smdp.sample_posterior(
        HEAT.continuous_sde(),
        score,
        HEAT.step(0.0, HEAT.end_time, HEAT.prior(jax.random.key(0), 1)[0]),
        smdp.linear_grid(0.0, float(HEAT.end_time), steps),
        num_samples=settings.paths,
        key=jax.random.key(1),
        solver=diffrax.Heun(),
        chunk_size=settings.chunk,
    )


def exact(settings: Settings) -> Any:
    """Sample with the exact score."""
    return sample(settings, HEAT.score, settings.steps)


def unet(settings: Settings) -> Any:
    """Sample with an untrained U-Net; what it computes does not matter here."""
    model = smdp.models.UNet(settings.channels)
    x = HEAT.prior(jax.random.key(2), 1)[0]
    variables = model.init(jax.random.key(3), 0.1, x, None)
    return sample(settings, smdp.LearnedScore(model, variables), settings.unet_steps)


def training(settings: Settings) -> Any:
    """Train a U-Net on windows."""
    sde = HEAT.sde()
    data = smdp.simulate(
        sde,
        HEAT.prior(jax.random.key(0), settings.trajectories),
        smdp.linear_grid(0.0, float(HEAT.end_time), settings.window),
        key=jax.random.key(1),
    )
    fit = smdp.fit(
        sde,
        smdp.models.UNet(settings.channels),
        data,
        smdp.MultiStep(windows=(settings.window,)),
        optax.adam(1e-4),
        steps=2,
        key=jax.random.key(2),
        batch_size=settings.batch_size,
        progress=False,
    )
    return fit.correction.variables


def resident() -> float:
    """MiB of this process that are in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def growth(settings: Settings) -> dict[str, float]:
    """Measure what calls with fresh scores leave behind, in MiB; the first few are not counted."""
    sde, ts = smdp.SDE(lambda t, x, args: -x, diffusion=0.5), smdp.linear_grid(0.0, 1.0, 4)

    def call(i: int) -> None:
        shift = jax.numpy.asarray(i, float)
        smdp.sample_posterior(
            sde, lambda t, x, args: shift - x, shift, ts, num_samples=1, key=jax.random.key(0)
        )

    started = time.perf_counter()
    for i in range(5):
        call(i)
    before = resident()
    for i in range(settings.calls):
        call(i)
    left = resident() - before
    return {"calls": settings.calls, "MiB left": left, "seconds": time.perf_counter() - started}


def on_paths(paths: int) -> Any:
    """Train on paths that no other array of their size was made for."""
    size = (paths, 64, 16)
    wave = jax.jit(lambda: jax.numpy.sin(0.01 * jax.lax.iota("float32", math.prod(size))))
    data = smdp.Trajectories(smdp.linear_grid(0.0, 1.0, 63), wave().reshape(size))
    fit = smdp.fit(
        smdp.SDE(lambda t, x, args: -x, diffusion=1.0),
        smdp.models.MLP((16,)),
        data,
        smdp.OneStep(),
        optax.adam(1e-4),
        steps=2,
        key=jax.random.key(2),
        progress=False,
    )
    return fit.score.variables


def path_gib(settings: Settings) -> float:
    """Size of the many paths."""
    return settings.many * 64 * 16 * 4 / GIB


JOBS: dict[str, tuple[str, Callable[[Settings], Any], float | None]] = {
    "nothing": ("nothing", nothing, None),
    "exact": ("sampling, exact score", exact, 4.0),
    "unet": ("sampling, U-Net", unet, 4.0),
    "training": ("training", training, 8.0),
    "few": ("training, few paths", lambda settings: on_paths(8), None),
    "many": ("training, many paths", lambda settings: on_paths(settings.many), None),
}
"""Name, job, and GiB that it should stay below."""


def run_here(settings: Settings) -> dict[str, float]:
    """Run one job in this process."""
    took = timing.seconds(lambda: JOBS[settings.job][1](settings))
    return {"seconds": took, "GiB": harness.peak_memory() / GIB}


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    quick = {
        "paths": 20,
        "chunk": 10,
        "steps": 2,
        "unet_steps": 1,
        "channels": (4, 4),
        "window": 2,
        "trajectories": 4,
        "batch_size": 2,
        "calls": 3,
        "many": 64,
    }
    settings = harness.parse(Settings(), quick, __doc__, given)
    if settings.job != "all":
        figures = growth(settings) if settings.job == "growth" else run_here(settings)
        print(json.dumps(figures))
        return figures
    started = time.perf_counter()
    rows, targets = [], []
    for job, (name, _, bound) in JOBS.items():
        harness.say(name)
        figures = harness.apart(settings, __file__, job=job)
        idle = rows[0]["peak GiB"] if rows else figures["GiB"]
        rows.append(
            {
                "job": name,
                "peak GiB": figures["GiB"],
                "above nothing GiB": figures["GiB"] - idle,
                "seconds": figures["seconds"],
            }
        )
        if bound is not None:
            targets.append(harness.Target(f"{name}: peak GiB", figures["GiB"], bound))
    few, many = (row["peak GiB"] for row in rows[-2:])
    extra = (many - few) / path_gib(settings) - 1
    targets.append(harness.Target("training: extra memory over that of the paths", extra, 1.2))
    harness.say("growth")
    left = harness.apart(settings, __file__, job="growth")
    targets.append(harness.Target("60 fresh scores: MiB left", left["MiB left"], 50.0))
    tables = {"Memory": rows, "Growth over calls with fresh scores": [left]}
    return harness.publish(settings, __file__, tables, targets, started)


if __name__ == "__main__":
    main()
