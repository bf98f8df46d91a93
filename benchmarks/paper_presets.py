"""How long do the ``paper`` presets take on this device, and how much memory?

    python benchmarks/paper_presets.py --share 0.01

Runs every preset as it is, network, grid, batch and windows, but with a share of its paths, updates
and end states; then with twice as many. The straight line through both says how long each stage
takes with all of them: compilation counts once. *At most* is what the second run took, compilation
and all, times what it lacks: where the two differ much, the share is too small. Each run has a
process of its own, whose peak memory is that of the device where JAX knows it, of the process
elsewhere; beside it the size of all training paths, of which a run with a share holds only a part.

``benchmarks/experiments.py --preset paper`` runs them whole, goes on where it was stopped, and
records what they reach.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import harness
import jax

from smdp_jax.experiment import ConfigFile, Experiment, load, load_config_file, run_experiment

CONFIGS = Path(__file__).parent.parent / "configs"
GIB = 2**30
COUNTS = {
    "simulate": ({"trajectories"}, 8),
    "train": ({"steps", "window_steps", "inverse_steps"}, 16),
    "sample": ({"test_cases"}, 2),
}
"""Fields of a config that a stage's time grows with, and the least that they are set to."""


@dataclass(frozen=True)
class Settings(harness.Settings):
    """Which, and how much of them."""

    configs: tuple[str, ...] = ("affine", "quadratic", "heat", "burgers", "smoke", "turbulence")
    """Which of configs/."""
    share: float = 0.01
    """Share of the paths, updates and end states."""
    preset: Literal["paper", "small"] = "paper"
    """The small ones show how well the straight line foretells a whole run."""
    job: str = ""
    """Run this config in this process and print what it took; empty: all, each in its own."""
    twice: bool = False
    """Whether that job has twice the share."""


def part_of(config: Experiment, share: float, *, twice: bool = False) -> Experiment:
    """Return the config with a share of what it counts, or twice that; never more than all."""

    def of(name: str, least: int) -> int:
        whole = getattr(config, name)
        unit = 20 if name == "test_cases" and whole >= 200 else 1  # many are looked at in groups
        part = unit * max(1, round(share * whole / unit))
        return min(whole, max(least, part) * (2 if twice else 1))

    fields = {f.name for f in dataclasses.fields(config)}
    counts = {n: of(n, least) for names, least in COUNTS.values() for n in names & fields}
    return dataclasses.replace(config, **counts)


def counted(config: Experiment, stage: str) -> int:
    """Return what a stage's time grows with."""
    return sum(getattr(config, name, 0) for name in COUNTS[stage][0])


def whole_time(times: Sequence[float], counts: Sequence[int], whole: int) -> float:
    """Extend the straight line through two (count, seconds) to the whole count.

    Flat where the larger count took no longer.
    """
    (first, second), (few, more) = times, counts
    if more == whole:
        return second
    return second + max(0.0, second - first) / (more - few) * (whole - more)


def run_here(file: ConfigFile, preset: str, config: Experiment) -> dict[str, Any]:
    """Run one config in this process."""
    with tempfile.TemporaryDirectory() as folder:
        done = run_experiment(file, config, preset=preset, runs_dir=Path(folder), say=harness.say)
        seconds = json.loads((done / "metrics.json").read_text(encoding="utf-8"))["seconds"]
        paths = sum(leaf.nbytes for leaf in jax.tree.leaves(load(done).data))
    known = jax.devices()[0].memory_stats() or {}
    return {
        "seconds": seconds,
        "peak": known.get("peak_bytes_in_use", harness.peak_memory()),
        "limit": known.get("bytes_limit"),
        "paths": paths,
    }


def run_apart(settings: Settings, name: str, *, twice: bool) -> dict[str, Any]:
    """Run one config in a process of its own."""
    options = ["--job", name, "--share", str(settings.share), "--preset", settings.preset]
    command = [sys.executable, str(Path(__file__)), *options, *(["--twice"] if twice else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def foretell(settings: Settings, name: str, config: Experiment) -> dict[str, Any]:
    """Run twice, and return the row of a table: what the whole will take."""
    parts = [part_of(config, settings.share, twice=twice) for twice in (False, True)]
    runs = [run_apart(settings, name, twice=False)]
    runs.append(run_apart(settings, name, twice=True) if parts[1] != parts[0] else runs[0])

    def stage(of: str) -> tuple[float, float]:
        times, counts = [r["seconds"][of] for r in runs], [counted(p, of) for p in parts]
        number = counted(config, of)
        most = times[1] * number / counts[1] if number else times[1]
        return whole_time(times, counts, number), most

    whole: Mapping[str, tuple[float, float]] = {of: stage(of) for of in COUNTS}
    all_paths = runs[1]["paths"] * counted(config, "simulate") / counted(parts[1], "simulate")
    return {
        "config": name,
        "updates run": counted(parts[1], "train"),
        "of": counted(config, "train"),
        **{f"{of}, h": seconds / 3600 for of, (seconds, _) in whole.items()},
        "whole, h": sum(seconds for seconds, _ in whole.values()) / 3600,
        "at most, h": sum(seconds for _, seconds in whole.values()) / 3600,
        "peak GiB": runs[1]["peak"] / GIB,
        "of GiB": runs[1]["limit"] and runs[1]["limit"] / GIB,
        "paths GiB": all_paths / GIB,
    }


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    quick = {"configs": ("affine",), "share": 1e-3, "preset": "small"}
    settings = harness.parse(Settings(), quick, __doc__, given)
    preset = settings.preset
    if not 0 < settings.share <= 1:
        raise SystemExit(f"--share must be above 0 and at most 1, got {settings.share:g}")
    if settings.job:
        file = load_config_file(CONFIGS / f"{settings.job}.py")
        config = part_of(file.presets[preset], settings.share, twice=settings.twice)
        figures = run_here(file, preset, config)
        print(json.dumps(figures))
        return figures
    started = time.perf_counter()
    rows, targets = [], []
    for name in settings.configs:
        config = load_config_file(CONFIGS / f"{name}.py").presets[preset]
        row = foretell(settings, name, config)
        rows.append(row)
        targets += [
            harness.Target(f"{name}: foretold hours", row["whole, h"]),
            harness.Target(f"{name}: hours, at most", row["at most, h"]),
            harness.Target(f"{name}: GiB, peak and all paths", row["peak GiB"] + row["paths GiB"]),
        ]
    return harness.publish(settings, __file__, {f"Presets {preset}": rows}, targets, started)


if __name__ == "__main__":
    main()
