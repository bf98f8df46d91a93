"""Write the scores that come with the package, from runs of the shipped configs.

``python benchmarks/pretrained.py affine quadratic`` runs what is not yet finished in ``runs/``;
``python benchmarks/pretrained.py runs/heat/small`` takes a finished run as it is, wherever it lies.
Each is written to ``smdp_jax/experiment/weights/NAME.smdp``; all together stay below 10 MB.
"""

import sys
from pathlib import Path

from smdp_jax.experiment import load_config_file, run_experiment
from smdp_jax.experiment.pretrained import write_pretrained

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "smdp_jax" / "experiment" / "weights"
LIMIT = 10_000_000


def finished(name: str) -> Path:
    """A run that is finished, or will be."""
    if (Path(name) / "metrics.json").exists():
        return Path(name).resolve()
    file = load_config_file(ROOT / "configs" / f"{name}.py")
    return run_experiment(file, file.presets["small"], preset="small", runs_dir=ROOT / "runs")


def main(names: list[str]) -> None:
    """Run what is not finished, and write."""
    for run_dir in map(finished, names):
        path = write_pretrained(run_dir, WEIGHTS / f"{run_dir.parent.name}.smdp")
        print(f"{path}: {path.stat().st_size:,} bytes")
    total = sum(path.stat().st_size for path in WEIGHTS.iterdir())
    if total > LIMIT:
        raise SystemExit(f"weights must have at most {LIMIT:,} bytes in all, got {total:,}")


if __name__ == "__main__":
    main(sys.argv[1:])
