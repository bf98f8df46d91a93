r"""How far back through shocks do paths get, by method, from the same network and training time?

Four runs of ``configs/burgers.py``: the loss of one step, windows of steps, path score matching,
and windows after path score matching. Updates are chosen so that all train for about as long as
path score matching in the preset, as measured by short runs of each beforehand. From unseen end
states: the time that each path reaches backward before it leaves the range of the data, the share
that reaches the start, reconstruction against the noise floor, and the CRPS of the initial modes
against that of draws from the prior.

    python benchmarks/burgers.py
    python benchmarks/burgers.py --preset paper --seconds 240 --posterior-samples 4 \
        --output benchmarks/results/burgers_hard.json

The second is the hard case, shown as far as it gets.
"""

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
from harness import Row, Settings, Target, parse, publish, run_of, say

sys.path.insert(0, str(Path(__file__).parent.parent))
from configs.burgers import PRESETS, Config

_COLUMNS = {
    "time reached backward, median": "reached, median",
    "time reached backward, worst": "reached, worst",
    "share of paths that reach the start": "share at t = 0",
    "reconstruction MSE of a sample / noise floor": "reconstruction / floor",
    "CRPS of the initial modes, prior / posterior": "CRPS gain",
}

_LEAST_SECONDS = 8.0


@dataclass(frozen=True)
class Options(Settings):
    """Settings of this benchmark."""

    preset: Literal["small", "paper"] = "small"
    """Which case."""
    seconds: float = 100.0
    """Training time of each method, without compilation."""
    test_fields: int = 50
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
        "test_fields": options.test_fields,
        "posterior_samples": options.posterior_samples,
    }
    return dataclasses.replace(PRESETS[options.preset], **changes)


def rate(config: Config, dataset: Any, key: Any) -> float:
    """Updates per second, without compilation: from two runs that differ by seconds."""

    def timed(steps: int) -> float:
        short = dataclasses.replace(config, steps=steps, window_steps=steps)
        began = time.perf_counter()
        fit = short.fit(dataset, key, progress=False)
        jax.block_until_ready(fit.learned.variables)
        return time.perf_counter() - began

    few, more = 2 * len(config.windows), 12 * len(config.windows)
    least = timed(few)
    # Compilation alone varies by a second.
    while (extra := timed(more) - least) < _LEAST_SECONDS:
        more *= 4
    return (more - few) / extra


def trained(config: Config, dataset: Any, key: Any, seconds: float) -> tuple[Any, Config, float]:
    """Train for about so many seconds; return what it took, compilation included."""
    if config.objective != "path_then_windows":
        steps = max(int(seconds * rate(config, dataset, key)), 10)
        config = dataclasses.replace(config, steps=steps)
    else:
        # Half of the time for each part.
        path = dataclasses.replace(config, objective="path_score")
        windows = dataclasses.replace(config, objective="multi_step", windows=config.later_windows)
        config = dataclasses.replace(
            config,
            steps=max(int(0.5 * seconds * rate(path, dataset, key)), 10),
            window_steps=max(int(0.5 * seconds * rate(windows, dataset, key)), 10),
        )
    began = time.perf_counter()
    fit = config.fit(dataset, key, progress=False)
    return fit, config, time.perf_counter() - began


def measure(config: Config, seconds: float) -> dict[str, float]:
    """Simulate, train, sample and compare."""
    k_data, k_fit, k_sample = jax.random.split(jax.random.key(config.seed), 3)
    dataset = dataclasses.replace(config.simulate(k_data), validation=None)
    fit, config, took = trained(config, dataset, k_fit, seconds)
    run = run_of(config, dataset, fit)
    arrays = jax.device_get(config.sample(run, k_sample))
    found = {metric.name: float(metric.value) for metric in config.evaluate(run, arrays)}
    updates = float(config.steps)
    if config.objective == "path_then_windows":
        updates += config.window_steps
    cost = {"updates": updates, "training s": took}
    return cost | {short: found[name] for name, short in _COLUMNS.items()}


def targets(options: Options, rows: list[Row]) -> list[Target]:
    """Return what the best method should reach, or how far each gets in the hard case."""
    if options.preset == "paper":
        shown = ("reached, median", "reached, worst", "share at t = 0", "CRPS gain")
        return [Target(f"{row['method']}: {what}", row[what]) for row in rows for what in shown]
    best = max(rows, key=lambda row: (row["share at t = 0"], row["CRPS gain"]))
    return [
        Target("best: share of paths at t = 0", best["share at t = 0"], 1.0, at_least=True),
        Target("best: reconstruction / floor", best["reconstruction / floor"], 3.0),
        Target("best: CRPS gain over the prior", best["CRPS gain"], 3.0, at_least=True),
    ]


def main() -> None:
    """Run all cases and publish."""
    quick = {
        "seconds": 0.1,
        "test_fields": 2,
        "posterior_samples": 2,
        "trajectories": 8,
        "cases": ("path_score",),
    }
    options = parse(Options(), quick, __doc__)
    started = time.perf_counter()
    rows: list[Row] = []
    for case in options.cases:
        rows.append({"method": case, **measure(configuration(case, options), options.seconds)})
        say(str(rows[-1]))
    name = f"Burgers, {options.preset}, {options.seconds:g} s of training"
    publish(options, __file__, {name: rows}, targets(options, rows), started)


if __name__ == "__main__":
    main()
