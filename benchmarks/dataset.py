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
from peer_masked import behind_mask
from peer_problems import Budget, Problem, problem_of

from smdp_jax.evaluate import write_tasks

VERSION = "3"


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


def main() -> None:
    """Draw all tasks and write them."""
    options = tyro.cli(Options, description=__doc__)
    key, tasks = jax.random.key(options.seed + 1), {}
    for name in ("affine", "quadratic", "heat", "burgers"):
        problem = problem_of(name, "small", options.seed, Budget(1, options.cases, options.draws))
        tasks[name] = task(problem, key, options.draws)
        if name == "heat":
            tasks["heat masked"] = task(behind_mask(problem, options.seed), key, options.draws)
    for name, arrays in tasks.items():
        say(f"{name}: {arrays['reference'].shape}")
    looks = {"affine": "sides", "quadratic": "sides"}
    write_tasks(options.path, tasks, version=VERSION, looks=looks)


if __name__ == "__main__":
    main()
