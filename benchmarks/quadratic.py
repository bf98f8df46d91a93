"""How good is what is learned of the quadratic SDE, against the exact answers?

Four runs of ``configs/quadratic.py`` (MLP of 2536 parameters), each over several seeds, medians
shown: multi-step windows and path score matching, from 250 and from 2500 trajectories, half of
them from each start. Seconds include simulation, compilation and training. Q is counted over 1000
end points on [-0.1, 0.1], each drawn as often as ``samples`` says: with one draw each, chance alone
takes 0.02 off the Q of the exact score.

    python benchmarks/quadratic.py
"""

import dataclasses
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from harness import Row, Settings, Target, parse, publish, run_of, say

sys.path.insert(0, str(Path(__file__).parent.parent))
from configs.quadratic import PRESETS, Config

_PATH_SCORE = {"objective": "path_score", "steps": 20_000, "batch_size": 256}
_COLUMNS = {
    "Q, probability flow": "Q flow",
    "Q, reverse-time SDE": "Q SDE",
    "error of P(+1 | x_T), largest": "P error",
    "score error, t = 0.5": "t=0.5",
    "score error, t = 1": "t=1",
    "score error, t = 2": "t=2",
    "score error, t = 5": "t=5",
    "score error, t = 10": "t=10",
}


@dataclass(frozen=True)
class Options(Settings):
    """Settings of this benchmark."""

    seeds: int = 3
    """Runs of each kind."""
    samples: int = 200
    """Posterior samples for each of 1000 end points; a fifth of them after 250 trajectories."""
    steps: int | None = None
    """Updates; default those of the presets."""
    cases: tuple[str, ...] = ("multi 250", "multi 2500", "path 250", "path 2500")
    """What to run."""


def configuration(case: str, options: Options) -> Config:
    """Return the run that a case names."""
    objective, trajectories = case.split()
    preset = PRESETS["paper" if trajectories == "2500" else "small"]
    if objective == "path":
        preset = dataclasses.replace(preset, **_PATH_SCORE)
    samples = options.samples if trajectories == "2500" else max(options.samples // 5, 1)
    changes: dict[str, Any] = {"posterior_samples": samples}
    if options.steps is not None:
        changes["steps"] = options.steps
    return dataclasses.replace(preset, **changes)


def measure(config: Config) -> dict[str, float]:
    """Simulate, train and compare with the exact answers."""
    k_data, k_fit, k_sample = jax.random.split(jax.random.key(config.seed), 3)
    started = time.perf_counter()
    dataset = dataclasses.replace(config.simulate(k_data), validation=None)
    fit = config.fit(dataset, k_fit, progress=False)
    jax.block_until_ready(fit.learned.variables)
    seconds = time.perf_counter() - started
    run = run_of(config, dataset, fit)
    arrays = jax.device_get(config.sample(run, k_sample))
    found = {metric.name: float(metric.value) for metric in config.evaluate(run, arrays)}
    return {"seconds": seconds} | {short: found[name] for name, short in _COLUMNS.items()}


def targets(case: str, row: Row) -> list[Target]:
    """Return what the issue of accuracy is for one kind of run."""
    objective, trajectories = case.split()
    many = trajectories == "2500"
    times = ("t=2", "t=5", "t=10")
    if objective == "path":
        times = ("t=0.5", "t=1", *times)
        bound = 0.05 if many else 0.10
        rows = [Target(f"{case}: score error, {t}", row[t], bound) for t in times]
        rows.append(Target(f"{case}: seconds", row["seconds"], 30.0))
        if many:
            rows.append(Target(f"{case}: error of P(+1)", row["P error"], 0.02))
        return rows
    bound = 0.12 if many else 0.25
    rows = [Target(f"{case}: score error, {t}", row[t], bound) for t in times]
    rows += [
        Target(f"{case}: Q, flow", row["Q flow"], 0.98 if many else 0.95, at_least=True),
        Target(f"{case}: Q, SDE", row["Q SDE"], 0.99 if many else 0.97, at_least=True),
        Target(f"{case}: seconds", row["seconds"], 600.0 if many else 180.0),
    ]
    if many:
        rows.append(Target(f"{case}: error of P(+1)", row["P error"], 0.03))
    return rows


def main() -> None:
    """Run all cases and publish medians over seeds."""
    quick = {"seeds": 1, "samples": 4, "steps": 200, "cases": ("multi 250",)}
    options = parse(Options(), quick, __doc__)
    started = time.perf_counter()
    each: list[Row] = []
    medians: list[Row] = []
    reached: list[Target] = []
    for case in options.cases:
        rows = []
        for seed in range(options.seeds):
            config = dataclasses.replace(configuration(case, options), seed=seed)
            rows.append(measure(config))
            each.append({"run": case, "seed": seed, **rows[-1]})
            say(str(each[-1]))
        median = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        medians.append({"run": case, **median})
        reached += targets(case, median)
    publish(options, __file__, {"medians": medians, "each seed": each}, reached, started)


if __name__ == "__main__":
    main()
