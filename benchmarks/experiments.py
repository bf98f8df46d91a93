"""What do the experiments reach with their presets, and how long do they take?

Runs the configs one after the other as the command line does, and goes on with what is there: a
finished run is only read. Seconds are those of simulating, training, sampling and evaluating,
compilation included. Configs that are not named keep the figures that the file has.

    python benchmarks/experiments.py
    python benchmarks/experiments.py --configs heat
    python benchmarks/experiments.py --preset paper --output benchmarks/results/paper.json
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from harness import Row, Settings, Target, parse, publish_cells, say

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


def targets(results: dict[str, Any], minutes: float | None) -> list[Target]:
    """Return the metrics of a finished run that have a bound."""
    found = []
    for what, metric in results["metrics"].items():
        # Without a target where that is another figure which is not finite.
        if metric["bound"] is not None and metric["target"] is not None:
            value = float("nan") if metric["value"] is None else metric["value"]
            at_least = metric["bound"] == "at least"
            found.append(Target(what, value, metric["target"], at_least))
    took = sum(results["seconds"].values()) / 60
    return [*found, Target("minutes", took, minutes)]


def figures(results: dict[str, Any]) -> list[Row]:
    """Return what a finished run took and what it only reports."""
    took = {f"{stage}, seconds": value for stage, value in results["seconds"].items()}
    loose = {k: m["value"] for k, m in results["metrics"].items() if m["bound"] is None}
    today = datetime.now(UTC).date().isoformat()
    return [
        {"on": today, "what": what, "value": value} for what, value in {**took, **loose}.items()
    ]


def measure(options: Options, name: str) -> tuple[list[Row], list[Target]]:
    """Run one config, or read its run."""
    file = load_config_file(Path(__file__).parent.parent / "configs" / f"{name}.py")
    preset = options.preset
    done = run_experiment(
        file, file.presets[preset], preset=preset, runs_dir=Path(options.runs_dir), say=say
    )
    results = json.loads((done / "metrics.json").read_text(encoding="utf-8"))
    return figures(results), targets(results, _MINUTES[name] if preset == "small" else None)


def main() -> None:
    """Run the experiments and publish what they should reach."""
    options = parse(Options(), {"configs": ("affine",)}, __doc__)
    cells = {name: partial(measure, options, name) for name in _MINUTES}
    publish_cells(options, __file__, cells, only=options.configs)


if __name__ == "__main__":
    main()
