"""What ``benchmarks/accelerator.py`` measures: each case is a function that returns its figures."""

import importlib.util
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import jax
import jax.numpy as jnp
import optax
import paper_presets
import timing
import training_throughput
from sampling import random_score
from work import Work, work_of

import smdp_jax as smdp
from smdp_jax.experiment import load_config_file, run_experiment
from smdp_jax.physics import Affine, Smoke
from smdp_jax.physics.turbulence import Turbulence

Case = Callable[[], dict[str, Any]]
CONFIGS = ("affine", "quadratic", "heat", "burgers", "smoke", "turbulence")


@dataclass(frozen=True)
class Sizes(harness.Settings):
    """How large everything is."""

    share: float = 0.01
    """Share of the paper presets that is run to foretell them."""
    product: int = 8192
    """Side of the matrices of the products that show the device's peaks."""
    updates: int = 4000
    """Updates of the toy that are timed."""
    paths: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
    """Paths of the toy."""
    path_steps: int = 500
    """Steps of each."""
    fields: tuple[int, ...] = (256, 64, 1024)
    """Batches of fields, the likeliest to be the best first."""
    field: int = 64
    """Points per side of a field."""
    channels: tuple[int, ...] = (64, 128, 256)
    """Of the U-Net that is to fill the device; the paper's is measured beside it."""
    simulations: tuple[int, ...] = (1, 16, 128, 1024)
    """Batches of simulations."""
    cells: tuple[int, ...] = (64, 256)
    """Cells per side."""
    repeats: int = 3
    """Rounds; the least time counts."""
    runs_dir: str = "runs/accelerator"
    """Where the runs of the paper presets go on."""


QUICK: dict[str, Any] = {
    "product": 64,
    "updates": 4,
    "paths": (20,),
    "path_steps": 4,
    "fields": (2,),
    "field": 8,
    "channels": (2, 3),
    "simulations": (2,),
    "cells": (16,),
    "repeats": 1,
}


def figure(
    value: float, unit: str, work: Work | None = None, took: float = 0.0, dtype: str = "float32"
) -> dict[str, Any]:
    """Return a measured figure; with the work of what took so long, to be compared with peaks."""
    shown: dict[str, Any] = {"value": float(value), "unit": unit}
    if work is not None:
        shown |= {"seconds": took, "work": vars(work), "dtype": dtype}
    return shown


def least(sizes: Sizes, call: Callable[[], Any]) -> float:
    """Return the least time of a call."""
    return timing.interleave({"it": call}, sizes.repeats)["it"].least


def peaks(sizes: Sizes) -> Iterator[tuple[str, Case]]:
    """Yield what the device reaches on one product, on a chain of operations and on a copy."""
    side = sizes.product

    def product(dtype: str) -> dict[str, Any]:
        a = jnp.ones((side, side), dtype)
        f = jax.jit(jnp.matmul)
        took = least(sizes, lambda: f(a, a))
        return figure(2 * side**3 / took, "operations/s")

    def chain() -> dict[str, Any]:
        x = jnp.ones(side**2)
        f = jax.jit(lambda x: jax.lax.fori_loop(0, 16, lambda _, x: x * 0.5 + 1.0, x, unroll=True))
        return figure(2 * 16 * side**2 / least(sizes, lambda: f(x)), "operations/s")

    def copy() -> dict[str, Any]:
        x = jnp.ones(4 * side**2)
        f = jax.jit(lambda x: x + 1)
        return figure(2 * x.nbytes / least(sizes, lambda: f(x)), "bytes/s")

    for dtype in ("bfloat16", "float32"):
        yield dtype, lambda dtype=dtype: product(dtype)
    yield "other", chain
    yield "bytes", copy


def preset(sizes: Sizes, name: str) -> Iterator[tuple[str, Case]]:
    """Yield the hours that a paper preset is foretold to take."""

    def case() -> dict[str, Any]:
        chosen = paper_presets.Settings(
            share=sizes.share, preset="small" if sizes.quick else "paper"
        )
        config: Any = load_config_file(paper_presets.CONFIGS / f"{name}.py").presets[chosen.preset]
        row = paper_presets.foretell(chosen, name, config)
        return figure(row["whole, h"], "h") | {"foretold": row}

    yield f"{name}, whole", case


def toy_updates(sizes: Sizes) -> Iterator[tuple[str, Case]]:
    """Yield updates of the quadratic problem's network."""

    def case(size: int, batch: int) -> dict[str, Any]:
        chosen = training_throughput.Settings(trajectories=50)
        problem = training_throughput.Problem(chosen, size, batch)
        update, state = problem.update(problem.loss, problem.optimizer)
        few, many = sizes.updates, 2 * sizes.updates
        a, b = (
            training_throughput.without_compilation(lambda n=n: problem.fit(n, sizes.updates))[0]
            for n in (few, many)
        )
        took = max(b - a, 1e-9) / (many - few)
        return figure(1 / took, "updates/s", work_of(update, state, problem.data), took)

    for size, batch in ((1, 256), (10, 512)):
        yield f"window {size}, batch {batch}", lambda s=size, b=batch: case(s, b)


def toy_paths(sizes: Sizes, *, learned: bool) -> Iterator[tuple[str, Case]]:
    """Yield path-steps of the affine problem, backward by its exact score or by a network."""
    system, x_end = Affine(), jnp.full((1,), 0.1)
    ts = smdp.linear_grid(0.0, 10.0, sizes.path_steps)
    score = random_score(smdp.models.MLP(), x_end) if learned else system.score

    def case(paths: int) -> dict[str, Any]:
        def sample(x: Any) -> Any:
            return smdp.sample_posterior(
                system.sde(), score, x, ts, num_samples=paths, key=jax.random.key(0)
            ).samples

        took = least(sizes, lambda: sample(x_end))
        rate = paths * sizes.path_steps / took
        return figure(rate, "path-steps/s", work_of(sample, x_end), took)

    for paths in sizes.paths:
        yield f"{paths} paths", lambda paths=paths: case(paths)


def networks(sizes: Sizes, *, wide: bool) -> Iterator[tuple[str, Case]]:
    """Yield the share of the peak that a field network reaches, in training and in sampling."""
    channels = sizes.channels if wide or sizes.quick else (16, 32, 48, 64, 80, 96, 112)
    decay = smdp.SDE(lambda t, x, args: -x, diffusion=0.1)
    ts, side = smdp.linear_grid(0.0, 0.2, 64 if not sizes.quick else 2), sizes.field

    def product(model: Any, score: Any) -> Work:
        x = jnp.zeros((side, side))
        return work_of(lambda v: model.apply(v, 0.1, x, None), score.variables)

    def both(dtype: str) -> tuple[Any, Any, Work]:
        model = smdp.models.UNet(channels, dtype=None if dtype == "float32" else dtype)
        score = random_score(model, jnp.zeros((side, side)))
        return model, score, product(model, score)

    def sampling(dtype: str, batch: int) -> dict[str, Any]:
        _, score, one = both(dtype)
        x_end = jax.random.normal(jax.random.key(1), (side, side))

        def sample() -> Any:
            return smdp.sample_posterior(
                decay, score, x_end, ts, num_samples=batch, key=jax.random.key(2)
            ).samples

        took, calls = least(sizes, sample), batch * (len(ts) - 1)
        return figure(calls / took, "evaluations/s", one * calls, took, dtype)

    def training(dtype: str, batch: int) -> dict[str, Any]:
        model, _, one = both(dtype)
        xs = jax.random.normal(jax.random.key(1), (128, 3, side, side))
        seen: list[float] = []
        each = 2 if sizes.quick else 20
        smdp.fit(
            decay,
            model,
            smdp.Trajectories(smdp.linear_grid(0.0, 0.2, 2), xs),
            smdp.OneStep(),
            optax.adam(1e-4),
            steps=each * (sizes.repeats + 1),
            key=jax.random.key(2),
            batch_size=batch,
            epoch_steps=each,
            progress=False,
            callback=lambda *_: seen.append(time.perf_counter()),
        )
        took = min(b - a for a, b in itertools.pairwise(seen)) / each
        # A gradient takes twice what its value does.
        return figure(batch / took, "windows/s", one * (3 * batch), took, dtype)

    for dtype in ("bfloat16", "float32"):
        for batch in sizes.fields:
            for name, what in (("training", training), ("sampling", sampling)):
                yield (
                    f"{name}, {dtype}, batch {batch}",
                    lambda what=what, dtype=dtype, batch=batch: what(dtype, batch),
                )


def stepped(
    sizes: Sizes, step: Callable[[Any], Any], x: Any, cells: float, inner: int
) -> dict[str, Any]:
    """Time some steps of a batch, one call: cells of all of it, steps inside of each call."""
    turns = 2 if sizes.quick else 20
    many = jax.jit(lambda x: jax.lax.scan(lambda x, _: (step(x), None), x, length=turns)[0])
    took = least(sizes, lambda: many(x))
    return figure(cells * turns * inner / took, "cell-steps/s", work_of(many, x), took)


def smoke(sizes: Sizes) -> Iterator[tuple[str, Case]]:
    """Yield steps of smoke, each simulation with obstacles of its own."""
    script: Any = importlib.import_module("smoke")

    def ours(system: Smoke, batch: int) -> dict[str, Any]:
        masks = script.draw(system, batch)[2]
        step = jax.vmap(lambda x, mask: system.step(0.15, 0.16, x, {"obstacles": mask}))
        x = system.prior(jax.random.key(0), batch)
        return stepped(sizes, lambda x: step(x, masks), x, batch * system.size**2, 1)

    def theirs(system: Smoke, batch: int) -> dict[str, Any]:
        boxes, discs, _ = script.draw(system, batch)
        step = script.PhiFlowSmoke(system).stepper(boxes, discs, inflow=True)
        x = system.prior(jax.random.key(0), batch)
        return figure(batch * system.size**2 / least(sizes, lambda: step(x)), "cell-steps/s")

    for side in sizes.cells[:1]:
        for batch in sizes.simulations:
            yield f"{side}², {batch} at once", lambda s=side, b=batch: ours(Smoke(size=s), b)
            if importlib.util.find_spec("phi") and 1 < batch <= 128:
                name = f"{side}², {batch} at once, PhiFlow"
                yield name, lambda s=side, b=batch: theirs(Smoke(size=s), b)


def navier_stokes(sizes: Sizes) -> Iterator[tuple[str, Case]]:
    """Yield spectral steps of two-dimensional turbulence, which are jax-cfd's, and exponax's."""

    def ours(side: int, batch: int) -> dict[str, Any]:
        system = Turbulence.stationary(size=side)
        step = jax.vmap(lambda x: system.step(0.0, 0.1, x))
        x = system.prior(jax.random.key(0), batch)
        return stepped(sizes, step, x, batch * side**2, system.inner_steps)

    def theirs(side: int, batch: int) -> dict[str, Any]:
        ex: Any = importlib.import_module("exponax")
        step = ex.stepper.NavierStokesVorticity(2, 1.0, side, dt=0.01, diffusivity=1e-4, order=4)
        x = jax.random.normal(jax.random.key(0), (batch, 1, side, side))
        with jax.numpy_dtype_promotion("standard"):
            return stepped(sizes, jax.vmap(step), x, batch * side**2, 1)

    for side in sizes.cells:
        for batch in sizes.simulations[:: 1 if side < 128 else 2]:
            yield f"{side}², {batch} at once", lambda s=side, b=batch: ours(s, b)
            if importlib.util.find_spec("exponax") and batch > 1:
                name = f"{side}², {batch} at once, exponax"
                yield name, lambda s=side, b=batch: theirs(s, b)


def whole(sizes: Sizes, name: str) -> Iterator[tuple[str, Case]]:
    """Yield the minutes of a paper preset in full, going on where it was stopped."""

    def case() -> dict[str, Any]:
        experiments: Any = importlib.import_module("experiments")
        file = load_config_file(paper_presets.CONFIGS / f"{name}.py")
        chosen = "small" if sizes.quick else "paper"
        config: Any = file.presets[chosen]
        if sizes.quick:
            config = paper_presets.part_of(config, 1e-3)
        done = run_experiment(
            file, config, preset=chosen, runs_dir=Path(sizes.runs_dir), say=harness.say
        )
        results = experiments.json.loads((done / "metrics.json").read_text(encoding="utf-8"))
        reached = [target.row() for target in experiments.targets(results, None)]
        minutes = sum(results["seconds"].values()) / 60
        return figure(minutes, "min") | {"reached": reached, "seconds by stage": results["seconds"]}

    yield f"{name}, whole", case


PARTS: dict[str, tuple[float, dict[str, Callable[[Sizes], Iterator[tuple[str, Case]]]]]] = {
    "peaks": (0.05, {"peaks": peaks}),
    "a": (0.3, {f"foretold_{n}": lambda s, n=n: preset(s, n) for n in CONFIGS}),
    "b": (
        0.2,
        {
            "toy_updates": toy_updates,
            "paths_exact": lambda s: toy_paths(s, learned=False),
            "paths_learned": lambda s: toy_paths(s, learned=True),
        },
    ),
    "c": (
        0.25,
        {
            "unet_wide": lambda s: networks(s, wide=True),
            "unet_smoke": lambda s: networks(s, wide=False),
        },
    ),
    "d": (0.2, {"smoke": smoke, "navier_stokes": navier_stokes}),
    "e": (0.0, {f"paper_{n}": lambda s, n=n: whole(s, n) for n in ("heat", "burgers")}),
    "f": (0.0, {f"paper_{n}": lambda s, n=n: whole(s, n) for n in ("turbulence", "smoke")}),
}
"""Share of the minutes that a part may take before others had their turn, and its pieces."""

sys.path.insert(0, str(Path(__file__).parent.parent))  # smoke.py reads the preset of its config
