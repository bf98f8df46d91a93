"""How close does a learned score of the affine process come to the exact one?

    python benchmarks/affine_score.py

Compares path score matching with the paper's 1-step and multi-step losses: same paths, network and
number of updates, several seeds. The error is the relative L2 error weighted by the density p_t, at
t from 0.5 to 10 (``evaluate.weighted_score_error``); "worst" is the largest of these times, "all
times" the error over all of them together. A figure is the median over seeds; "seconds" has
simulation, compilation and training in it, the median over seeds as well.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax

import smdp_jax as smdp
from smdp_jax.evaluate import weighted_score_error
from smdp_jax.physics import Affine

AFFINE = Affine(rate=0.5, noise=0.04)
OBJECTIVES = {
    "path_score": smdp.PathScore(),
    "one_step": smdp.OneStep(),
    "multi_step": smdp.MultiStep(windows=(1, 2, 4, 10)),
}
TIMES = (0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0)


@dataclass(frozen=True)
class Settings(harness.Settings):
    """What is trained, and how often."""

    objectives: tuple[str, ...] = tuple(OBJECTIVES)
    """Names of objectives."""
    seeds: int = 3
    """Runs of each."""
    trajectories: int = 4000
    """Simulated paths, half of them from each start."""
    stored: int = 500
    """Stored steps of each."""
    substeps: int = 10
    """Simulator steps in each of them."""
    updates: int = 15_000
    """Updates of the network."""
    batch_size: int = 512
    """Windows per update."""
    learning_rate: float = 1e-2
    """Learning rate of Adam at the start; it falls to 0 as a cosine."""


def train(name: str, seed: int, settings: Settings) -> smdp.LearnedScore:
    """Simulate and learn."""
    k_start, k_path, k_fit = jax.random.split(jax.random.key(seed), 3)
    sde = AFFINE.sde()
    data = smdp.simulate(
        sde,
        AFFINE.prior(k_start, settings.trajectories),
        smdp.linear_grid(0.0, 10.0, settings.stored),
        key=k_path,
        substeps=settings.substeps,
        score_targets=name == "path_score",
    )
    rate = optax.cosine_decay_schedule(settings.learning_rate, settings.updates)
    return smdp.fit(
        sde,
        smdp.models.MLP(),
        data,
        OBJECTIVES[name],
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.99)),
        steps=settings.updates,
        key=k_fit,
        batch_size=settings.batch_size,
        progress=False,
    ).score


def errors(score: Any) -> dict[str, float]:
    """Compare a score with the exact one."""
    xs = jnp.linspace(-1.3, 1.3, 4001)[:, None]

    def on_grid(function: Any) -> np.ndarray:
        by_time = jax.vmap(jax.vmap(function, (None, 0)), (0, None))
        return np.asarray(jax.jit(by_time)(jnp.asarray(TIMES), xs))

    learned, exact = (on_grid(lambda t, x, s=s: s(t, x, None)) for s in (score, AFFINE.score))
    density = on_grid(AFFINE.density)
    each = [
        float(weighted_score_error(*arrays)) for arrays in zip(learned, exact, density, strict=True)
    ]
    together = weighted_score_error(
        *(v.reshape(-1, *v.shape[2:]) for v in (learned, exact, density))
    )
    by_time = {f"t = {t:g}": e for t, e in zip(TIMES, each, strict=True)}
    return {**by_time, "worst": max(each), "all times": float(together)}


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    quick = {
        "objectives": ("path_score",),
        "seeds": 1,
        "trajectories": 50,
        "stored": 20,
        "updates": 50,
    }
    settings = harness.parse(Settings(), quick, __doc__, given)
    started = time.perf_counter()
    medians, runs = [], []
    for name in settings.objectives:
        found = []
        for seed in range(settings.seeds):
            harness.say(f"{name}, seed {seed}")
            begun = time.perf_counter()
            score = jax.block_until_ready(train(name, seed, settings))
            seconds = time.perf_counter() - begun
            found.append({**errors(score), "seconds": seconds})
            runs.append({"objective": name, "seed": seed, **found[-1]})
        middle = {key: statistics.median(run[key] for run in found) for key in found[0]}
        medians.append({"objective": name, **middle})
    targets = [
        harness.Target(f"{row['objective']}: error, {which}", row[which], 0.05)
        for row in medians
        for which in ("all times", "worst")
    ]
    tables = {f"Median of {settings.seeds} seeds": medians, "Every run": runs}
    return harness.publish(settings, __file__, tables, targets, started)


if __name__ == "__main__":
    main()
