"""What do the experiments reach with their presets, and how long do they take?

Runs the configs one after the other as the command line does, and goes on with what is there: a
finished run is only read. Seconds are those of simulating, training, sampling and evaluating,
compilation included.

    python benchmarks/experiments.py
    python benchmarks/experiments.py --preset paper --output benchmarks/results/paper.json
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness import Settings, Target, parse, publish, say

from smdp_jax.experiment import load_config_file, run_experiment

_MINUTES = {
    "affine": 5, "quadratic": 5, "heat": 15, "burgers": 15, "smoke": 15, "turbulence": 15,
    "sensors": 15,
}  # fmt: skip


@dataclass(frozen=True)
class Options(Settings):
    """Settings of this benchmark."""

    configs: tuple[str, ...] = tuple(_MINUTES)
    """Which of configs/."""
    preset: Literal["small", "paper"] = "small"
    """The small presets have a time limit on two cores; the others ask for a GPU."""
    runs_dir: str = "runs"
    """Where the runs are."""


def targets(name: str, results: dict[str, Any], minutes: float | None) -> list[Target]:
    """Return the metrics of a finished run that have a bound."""
    found = []
    for what, metric in results["metrics"].items():
        # Without a target where that is another figure which is not finite.
        if metric["bound"] is not None and metric["target"] is not None:
            value = float("nan") if metric["value"] is None else metric["value"]
            at_least = metric["bound"] == "at least"
            found.append(Target(f"{name}: {what}", value, metric["target"], at_least))
    took = sum(results["seconds"].values()) / 60
    return [*found, Target(f"{name}: minutes", took, minutes)]


def unbounded(name: str, results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the metrics of a finished run that are only reported."""
    return [
        {"config": name, "metric": what, "value": metric["value"]}
        for what, metric in results["metrics"].items()
        if metric["bound"] is None
    ]


def main() -> None:
    """Run all experiments and publish what they should reach."""
    options = parse(Options(), {"configs": ("affine",)}, __doc__)
    started = time.perf_counter()
    rows, others, reached, preset = [], [], [], options.preset
    for name in options.configs:
        file = load_config_file(Path(__file__).parent.parent / "configs" / f"{name}.py")
        done = run_experiment(
            file, file.presets[preset], preset=preset, runs_dir=Path(options.runs_dir), say=say
        )
        results = json.loads((done / "metrics.json").read_text(encoding="utf-8"))
        rows.append({"config": name} | {f"{k} s": v for k, v in results["seconds"].items()})
        others += unbounded(name, results)
        reached += targets(name, results, _MINUTES[name] if preset == "small" else None)
    tables = {"seconds of each stage": rows, "without a bound": others}
    publish(options, __file__, tables, reached, started)


if __name__ == "__main__":
    main()
