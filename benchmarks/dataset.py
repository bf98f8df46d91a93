"""Write the tasks with truth as a Zarr store on which anybody's sampler can be scored.

Held-out starts and end states of affine, quadratic and heat (presets small), with exact draws of
each posterior. Score a sampler with one call:

    smdp_jax.evaluate.score_sampler(sampler, "runs/tasks.zarr", "heat", key=key)

    python benchmarks/dataset.py --path runs/tasks.zarr
"""

from dataclasses import dataclass

import jax
import numpy as np
import tyro
from harness import say
from peers import Budget, problem_of

from smdp_jax.evaluate import write_tasks

VERSION = "1"


@dataclass(frozen=True)
class Options:
    """Settings of this script."""

    path: str = "runs/tasks.zarr"
    """Folder of the store."""
    cases: int = 300
    """Held-out end states of each task."""
    draws: int = 19
    """Exact draws for each."""
    seed: int = 2_000_000
    """Root of all random numbers; training seeds of the tables are small."""


def main() -> None:
    """Draw all tasks and write them."""
    options = tyro.cli(Options, description=__doc__)
    tasks = {}
    for name in ("affine", "quadratic", "heat"):
        problem = problem_of(name, "small", options.seed, Budget(1, options.cases, options.draws))
        key = jax.random.key(options.seed + 1)
        tasks[name] = {
            "truths": np.asarray(problem.truths),
            "ends": np.asarray(problem.ends),
            "reference": np.asarray(problem.exact(key, problem.ends, options.draws)),
        }
        say(f"{name}: {tasks[name]['reference'].shape}")
    write_tasks(options.path, tasks, version=VERSION)


if __name__ == "__main__":
    main()
