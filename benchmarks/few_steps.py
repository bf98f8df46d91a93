"""How few backward steps are as good as many? Euler's, those exact for Gaussians, and others.

*Scalars*: the affine and the quadratic process from one start, with the exact score. Ends follow
their law at t = 10, so paths back to t = 0.5 must follow the law there, known by quadrature: how
many evaluations until mean and standard deviation are within 1 %? The Gaussians of GaussianStep are
those of simulated paths.

*Heat*: the shipped score. CRPS of a point of the field over that of the exact posterior, error of
the mean and spread over the exact ones, and processor seconds.

*Burgers*: the shipped score. From the end states of the stored reference posterior: CRPS of the ten
initial coefficients over that of the reference with the standard error over end states,
reconstruction over the noise floor, lost paths, and processor seconds without compilation.

    python benchmarks/few_steps.py
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffrax
import harness
import jax
import jax.numpy as jnp
import numpy as np
from harness import Row, Target, parse, publish_cells

import smdp_jax as smdp
from smdp_jax import evaluate, physics
from smdp_jax.physics import Affine, Quadratic
from smdp_jax.physics.spectral.periodic import waves
from smdp_jax.solve.solvers import evaluations_per_step
from smdp_jax.studies import noise_free

SOLVERS = {
    "Euler": diffrax.Euler(),
    "Heun": diffrax.Heun(),
    "GaussianStep": smdp.GaussianStep(),
    "order 1": smdp.GaussianStep(order=1),
}
WAYS = (
    ("Euler", 256),
    ("GaussianStep", 32),
    ("GaussianStep", 24),
    ("order 1", 48),
)
BACK, END = 0.5, 10.0
TOLERATED = 0.01
STEPS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
HEAT_WAYS = (
    ("Heun", None),
    ("order 1", (0, 1, 2, 4, 7, 13, 22, 38, 64)),
    ("order 1", (0, 8, 16, 24, 32, 40, 48, 56, 64)),
    ("GaussianStep", (0, 1, 5, 19, 64)),
)
"""By solver, which of the stored times the steps end at."""
_REFERENCE = Path(__file__).parent / "references" / "burgers.npz"


@dataclass(frozen=True)
class Settings(harness.Settings):
    """How many of what."""

    cases: int = 60
    """End states, 60 at most."""
    draws: int = 32
    """Paths from each."""
    heat_cases: int = 40
    """End states of the heat equation."""
    chunk: int = 128
    """Paths solved at once."""
    scalar_paths: int = 200_000
    """Paths of the scalar processes."""
    only: tuple[str, ...] = ()
    """Measure these again; default: what the file of figures lacks."""


def scalar(system: Affine | Quadratic, paths: int) -> list[Row]:
    """By solver the fewest steps, doubled each time, that are within 1 %."""
    sde, law = system.sde(), physics.reference(system, end_time=END).plus
    points = np.linspace(-2.5, 2.5, 80_001)
    density = jax.jit(jax.vmap(lambda x, t: law.density(t, x[None]), (0, None)))
    before, after = (np.asarray(density(jnp.asarray(points), t), float) for t in (BACK, END))
    mean = np.average(points, weights=before)
    std = np.average((points - mean) ** 2, weights=before) ** 0.5
    quantiles = (np.arange(paths) + 0.5) / paths
    ends = np.interp(quantiles, np.cumsum(after) / after.sum(), points)
    grid = smdp.linear_grid(0.0, END, 200)
    told = smdp.simulate(sde, jnp.ones((2000, 1)), grid, key=jax.random.key(7), substeps=4)
    gaussian = smdp.GaussianStep(reference=smdp.GaussianReference.of(told))
    solvers = (diffrax.Euler(), diffrax.Heun(), diffrax.ShARK(), diffrax.Bosh3(), gaussian)

    def row(solver: Any, steps: int) -> dict[str, Any]:
        found: Any = smdp.sample_posterior(
            sde,
            law.score,
            jnp.asarray(ends, jnp.float32)[:, None],
            smdp.linear_grid(BACK, END, steps),
            num_samples=1,
            key=jax.random.key(1),
            solver=solver,
            chunk_size=50_000,
            batch_axes=1,
        ).samples
        found = np.asarray(found, float)
        return {
            "solver": type(solver).__name__,
            "steps": steps,
            "evaluations": steps * evaluations_per_step(solver),
            "mean error": float(found.mean() / mean - 1),
            "std error": float(found.std() / std - 1),
        }

    def fewest(solver: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for steps in STEPS:
            found = row(solver, steps)
            if max(abs(found["mean error"]), abs(found["std error"])) <= TOLERATED:
                return found
        return found | {"evaluations": math.inf}

    return [fewest(solver) for solver in solvers]


def heat(settings: Settings) -> list[Row]:
    """The shipped score by all ways, Heun's first, against the exact posterior."""
    weights = smdp.pretrained("heat")
    system, ts = weights.system, weights.ts
    k_prior, k_end = jax.random.split(jax.random.key(11))
    true = system.prior(k_prior, settings.heat_cases)
    keys = jax.random.split(k_end, settings.heat_cases)
    x_end = jax.vmap(system.transition, (0, None, None, 0))(keys, 0.0, system.end_time, true)
    mean, std = jax.vmap(system.posterior_mean)(x_end), jnp.sqrt(system.posterior_point_variance())
    best = evaluate.crps_gaussian(mean, std, true).mean()
    score_of = jax.jit(lambda draws: jax.vmap(evaluate.crps_ensemble)(draws, true).mean())
    error = lambda found: evaluate.ensemble_mse(found, true) ** 0.5

    def row(name: str, stops: tuple[int, ...] | None) -> dict[str, Any]:
        grid = ts if stops is None else ts[jnp.asarray(stops)]
        how = {"solver": SOLVERS[name], "chunk_size": settings.chunk, "batch_axes": 1}
        sample = partial(smdp.sample_posterior, weights.sde, weights.score, x_end, grid, **how)
        past, taken = timed(sample, settings.draws)
        calls = (len(grid) - 1) * evaluations_per_step(SOLVERS[name])
        even = "" if stops is None or stops[1] == 1 else ", even"
        return {"steps": f"{name}, {len(grid) - 1}{even}", "calls of the score": calls} | {
            "CRPS / exact": float(score_of(past) / best),
            "RMSE of the mean / exact": float(error(past.mean(axis=1)) / error(mean)),
            "std / exact": float(jnp.sqrt(past.var(axis=1, ddof=1).mean()) / std),
            "CPU s": taken,
        }

    return [row(*way) for way in HEAT_WAYS]


def timed(sample: Any, draws: int) -> tuple[Any, float]:
    """Draw after a first call that compiles; processor seconds."""
    jax.block_until_ready(sample(num_samples=draws, key=jax.random.key(1)))
    begun = time.process_time()
    past: Any = sample(num_samples=draws, key=jax.random.key(0)).samples
    past.block_until_ready()
    return past, time.process_time() - begun


def burgers(settings: Settings) -> list[Row]:
    """The shipped score by all ways, Euler's first."""
    weights = smdp.pretrained("burgers")
    system, ts = weights.system, weights.ts
    with np.load(_REFERENCE) as stored:
        true, x_end, exact = (
            jnp.asarray(stored[name][: settings.cases]) for name in ("truths", "ends", "draws")
        )
    starts = true @ jnp.asarray(waves(system.size, system.modes), true.dtype)

    forward = jax.jit(jax.vmap(lambda x: noise_free.walk(system.step, x, ts)))
    modes = jax.jit(jax.vmap(system.leading_modes))
    score_of = jax.jit(lambda draws: jax.vmap(evaluate.crps_ensemble)(draws, true).mean(axis=1))
    floor, reference = evaluate.ensemble_mse(forward(starts), x_end), score_of(exact)

    def row(name: str, steps: int) -> dict[str, Any]:
        grid = ts[np.linspace(0, len(ts) - 1, steps + 1).round().astype(int)]
        how = {"solver": SOLVERS[name], "chunk_size": settings.chunk, "batch_axes": 1}
        sample = partial(smdp.sample_posterior, weights.sde, weights.score, x_end, grid, **how)
        past, taken = timed(sample, settings.draws)
        crps = score_of(jax.vmap(modes)(past))
        ratio = crps.mean() / reference.mean()
        # Of a ratio of means over the same end states.
        error = jnp.std(crps - ratio * reference, ddof=1) / reference.mean() / len(true) ** 0.5
        again = evaluate.ensemble_mse(jax.vmap(forward)(past), x_end) / floor
        lost = int((~jnp.isfinite(past).all(axis=-1)).sum())
        calls = steps * evaluations_per_step(SOLVERS[name])
        return {"steps": f"{name}, {steps}", "calls of the score": calls} | {
            "CRPS": float(crps.mean()),
            "over the reference's": float(ratio),
            "±": float(error),
            "reconstruction / floor": again,
            "lost": lost,
            "CPU s": taken,
        }

    return [row(*way) for way in WAYS]


def scalar_targets(rows: list[Row]) -> list[Target]:
    """Return how many times more evaluations Euler's steps need."""
    euler, *others = (row["evaluations"] for row in rows)
    ratio = min(euler, STEPS[-1]) / min(others)
    return [Target("Euler's evaluations over the fewest", ratio, 5.0, at_least=True)]


def heat_targets(rows: list[Row]) -> list[Target]:
    """Return what few steps should reach beside Heun's many."""
    heun, *few = rows
    return [
        target
        for row in few
        for target in (
            Target(f"{row['steps']}: CRPS / exact", row["CRPS / exact"], 1.03),
            Target(f"{row['steps']}: Heun's time over it", heun["CPU s"] / row["CPU s"], 4.0, True),
        )
    ]


def burgers_targets(rows: list[Row]) -> list[Target]:
    """Return what few steps should reach beside Euler's many, and all beside the reference."""
    euler, *few = rows
    whole = [
        Target(f"{row['steps']}: CRPS over the reference's", row["over the reference's"], 1.05)
        for row in rows
    ]
    return whole + [
        target
        for row in few
        for target in (
            Target(f"{row['steps']}: CRPS over Euler's", row["CRPS"] / euler["CRPS"], 1.03),
            Target(
                f"{row['steps']}: Euler's time over it", euler["CPU s"] / row["CPU s"], 4.0, True
            ),
        )
    ]


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Sample by all ways, and publish how the shortest compare with Euler's."""
    quick = {"cases": 2, "draws": 2, "heat_cases": 2, "scalar_paths": 1000}
    settings = parse(Settings(), quick, __doc__, given)
    paths = settings.scalar_paths
    ways: dict[str, tuple[Callable[[], list[Row]], Callable[[list[Row]], list[Target]]]] = {
        "Affine": (partial(scalar, Affine(), paths), scalar_targets),
        "Quadratic": (partial(scalar, Quadratic(), paths), scalar_targets),
        "Heat": (partial(heat, settings), heat_targets),
        "Burgers": (partial(burgers, settings), burgers_targets),
    }

    def cell(name: str) -> tuple[list[Row], list[Target]]:
        rows, targets = ways[name]
        return (found := rows()), targets(found)

    cells = {name: partial(cell, name) for name in ways}
    return publish_cells(settings, __file__, cells, settings.only)


if __name__ == "__main__":
    main()
