"""Write the tasks with truth as a Zarr store on which anybody's sampler can be scored.

Held-out starts and end states of affine, quadratic, heat, heat behind a mask and Burgers (presets
small), with exact draws of each posterior; Burgers' are pCN draws of the stored reference. Score a
sampler with one call:

    smdp_jax.evaluate.score_sampler(sampler, "runs/tasks.zarr", "heat", key=key)

    python benchmarks/dataset.py --path runs/tasks.zarr

Starts of affine and quadratic are one of two points: there only the side is judged by ranks and
classifier. Behind the mask every fourth point in each direction is seen, with noise of 5 % of the
fields' standard deviation; the others are 0.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import tyro
from harness import say
from peer_problems import Budget, Problem, problem_of

from smdp_jax.evaluate import write_tasks
from smdp_jax.physics.exact.sensors import sensor_posterior

VERSION = "3"
_EVERY, _NOISE = 4, 0.05


@dataclass(frozen=True)
class Options:
    """Settings of this script."""

    path: str = "runs/tasks.zarr"
    """Folder of the store."""
    cases: int = 300
    """Held-out end states of each task; of Burgers as many as its reference has."""
    draws: int = 19
    """Exact draws for each."""
    seed: int = 2_000_000
    """Root of all random numbers; training seeds of the tables are small."""


def task(problem: Problem, key: Any, draws: int) -> dict[str, np.ndarray]:
    """Starts, what is seen of where they lead, and draws of what may have been."""
    return {
        "truths": np.asarray(problem.truths),
        "ends": np.asarray(problem.ends),
        "reference": np.asarray(problem.exact(key, problem.ends, draws)),
    }


def masked(problem: Problem, seed: int, draws: int) -> dict[str, np.ndarray]:
    """The same fields behind a mask; the posterior is one dense Gaussian, in float64."""
    truths, ends = (np.asarray(x, np.float64) for x in (problem.truths, problem.ends))
    size, rng = truths.shape[-1], np.random.default_rng(seed)
    seen = np.zeros((size, size), bool)
    seen[::_EVERY, ::_EVERY] = True
    looks = np.eye(size**2)[seen.ravel()]
    std = _NOISE * ends.std()
    values = ends.reshape(len(ends), -1) @ looks.T
    values = values + std * rng.standard_normal(values.shape)
    system = problem.system

    def given(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return sensor_posterior(system, [looks], [system.end_time], [value], std**2)[:2]

    # The mean is linear in what is seen, and the covariance does not depend on it.
    gain = np.stack([given(unit)[0] for unit in np.eye(len(looks))], axis=1)
    covariance = given(np.zeros(len(looks)))[1]
    sizes, axes = np.linalg.eigh(covariance)
    root = axes * np.sqrt(np.maximum(sizes, 0))
    white = rng.standard_normal((len(ends), draws, size**2))
    drawn = (values @ gain.T)[:, None] + white @ root.T
    return {
        "truths": truths.astype(np.float32),
        "ends": (values @ looks).reshape(ends.shape).astype(np.float32),
        "reference": drawn.reshape(len(ends), draws, size, size).astype(np.float32),
    }


def main() -> None:
    """Draw all tasks and write them."""
    options = tyro.cli(Options, description=__doc__)
    key, tasks = jax.random.key(options.seed + 1), {}
    for name in ("affine", "quadratic", "heat", "burgers"):
        problem = problem_of(name, "small", options.seed, Budget(1, options.cases, options.draws))
        tasks[name] = task(problem, key, options.draws)
        if name == "heat":
            tasks["heat masked"] = masked(problem, options.seed, options.draws)
    for name, arrays in tasks.items():
        say(f"{name}: {arrays['reference'].shape}")
    looks = {"affine": "sides", "quadratic": "sides"}
    write_tasks(options.path, tasks, version=VERSION, looks=looks)


if __name__ == "__main__":
    main()
