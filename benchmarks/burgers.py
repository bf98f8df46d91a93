r"""How far back through shocks do paths get, by method, from the same network and training time?

Four runs of ``configs/burgers.py``: the loss of one step, windows of steps, path score matching,
and windows after path score matching. All train for about the same time, by as many updates as
short runs of each foretell, and from fewer paths than the preset has. From unseen end states: the
time that each path reaches backward before it leaves the range of the data, the share that reaches
the start, reconstruction against the noise floor, and the CRPS of the initial modes against that of
draws from the prior.

    python benchmarks/burgers.py
    python benchmarks/burgers.py --preset paper --posterior-samples 2 \
        --output benchmarks/results/burgers_hard.json

The second is the hard case, shown as far as it gets.
"""

import dataclasses
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
from harness import Row, Settings, Target, parse, publish, run_of, say

from smdp_jax import Fit, TrainingDiverged

sys.path.insert(0, str(Path(__file__).parent.parent))
from configs.burgers import PRESETS, Config

_COLUMNS = {
    "time reached backward, median": "reached, median",
    "time reached backward, worst": "reached, worst",
    "share of paths that reach the start": "share at t = 0",
    "reconstruction MSE of a sample / noise floor": "reconstruction / floor",
    "CRPS of the initial modes, prior / posterior": "CRPS gain",
}

_LEAST_SECONDS = 25.0


@dataclass(frozen=True)
class Options(Settings):
    """Settings of this benchmark."""

    preset: Literal["small", "paper"] = "small"
    """Which case."""
    seconds: float = 100.0
    """Training time of each method, without compilation."""
    test_cases: int = 50
    """End states."""
    posterior_samples: int = 8
    """Paths from each of them."""
    trajectories: int = 512
    """Simulated paths to learn from."""
    cases: tuple[str, ...] = ("one_step", "multi_step", "path_score", "path_then_windows")
    """Objectives."""


def configuration(case: str, options: Options) -> Config:
    """Return the run that a case names."""
    changes: dict[str, Any] = {
        "objective": case,
        "trajectories": options.trajectories,
        "test_cases": options.test_cases,
        "posterior_samples": options.posterior_samples,
    }
    return dataclasses.replace(PRESETS[options.preset], **changes)


def updates_in(
    seconds: float,
    train: Callable[[int], Fit],
    few: int,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Return how many updates take so long, without compilation, from two runs that differ."""

    def timed(steps: int) -> float:
        began = clock()
        jax.block_until_ready(train(steps).learned.variables)
        return clock() - began

    more, least = 6 * few, timed(few)
    # The compilation of several window lengths alone varies by seconds.
    while (extra := timed(more) - least) < min(_LEAST_SECONDS, seconds / 2):
        more *= 4
    return max(int(seconds * (more - few) / extra), few)


def trained(config: Config, dataset: Any, key: Any, seconds: float) -> tuple[Fit, dict[str, float]]:
    """Train for about so many seconds; return what it took as well."""
    windows = config.objective == "path_then_windows"
    first = dataclasses.replace(config, objective="path_score") if windows else config
    k_first, k_then = jax.random.split(key)
    if windows:
        seconds /= 2  # for each part

    def learn(steps: int) -> Fit:
        return dataclasses.replace(first, steps=steps).fit(dataset, k_first, progress=False)

    updates = updates_in(seconds, learn, 2 * len(config.windows))
    began = time.perf_counter()
    fit = learn(updates)
    took = time.perf_counter() - began
    if not windows:
        return fit, {"updates": float(updates), "training s": took}
    learned = fit.score

    def go_on(steps: int) -> Fit:
        longer = dataclasses.replace(config, window_steps=steps)
        return longer.fit_windows(dataset, learned, k_then, progress=False)

    later = updates_in(seconds, go_on, 2 * len(config.later_windows))
    began = time.perf_counter()
    fit = go_on(later)
    took += time.perf_counter() - began
    return fit, {"updates": float(updates + later), "training s": took}


def measure(config: Config, seconds: float) -> dict[str, float]:
    """Simulate, train, sample and compare."""
    k_data, k_fit, k_sample = jax.random.split(jax.random.key(config.seed), 3)
    dataset = dataclasses.replace(config.simulate(k_data), validation=None)
    try:
        fit, cost = trained(config, dataset, k_fit, seconds)
    except TrainingDiverged as error:
        say(f"{config.objective}: {error}")
        return dict.fromkeys(("updates", "training s", *_COLUMNS.values()), math.nan)
    run = run_of(config, dataset, fit)
    arrays = jax.device_get(config.sample(run, k_sample))
    found = {metric.name: float(metric.value) for metric in config.evaluate(run, arrays)}
    return cost | {short: found[name] for name, short in _COLUMNS.items()}


def targets(options: Options, rows: list[Row]) -> list[Target]:
    """Return how far each method gets and, but for the hard case, what the best should reach."""
    shown = ("training s", "reached, median", "reached, worst", "share at t = 0")
    each = [Target(f"{row['method']}: {what}", row[what]) for row in rows for what in shown]
    if options.preset == "paper":
        return each
    best = max(rows, key=lambda row: (row["share at t = 0"], row["CRPS gain"]))
    return [
        *each,
        Target("best: share of paths at t = 0", best["share at t = 0"], 1.0, at_least=True),
        Target("best: reconstruction / floor", best["reconstruction / floor"], 3.0),
        Target("best: CRPS gain over the prior", best["CRPS gain"], 3.0, at_least=True),
    ]


def main() -> None:
    """Run all cases and publish."""
    quick = {
        "seconds": 0.1,
        "test_cases": 2,
        "posterior_samples": 2,
        "trajectories": 8,
        "cases": ("path_score",),
    }
    options = parse(Options(), quick, __doc__)
    started = time.perf_counter()
    rows: list[Row] = []
    name = f"Burgers, {options.preset}, {options.seconds:g} s of training"
    for case in options.cases:
        rows.append({"method": case, **measure(configuration(case, options), options.seconds)})
        say(str(rows[-1]))
    publish(options, __file__, {name: rows}, targets(options, rows), started)


if __name__ == "__main__":
    main()
