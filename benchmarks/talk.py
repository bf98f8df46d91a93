"""One figure per experiment as for a talk, from finished runs: what was seen, and is it right?

The figures of a run (posterior, spectra, calibration) side by side under its name and the status of
its targets, as ``FOLDER/NAME.png``.

    python benchmarks/talk.py --runs-dir runs --folder runs/talk
"""

import io
from dataclasses import dataclass
from pathlib import Path

import tyro
from harness import say
from matplotlib.figure import Figure
from PIL import Image

from smdp_jax.evaluate.report import status_of
from smdp_jax.experiment import RunFiles
from smdp_jax.experiment.fields import ExperimentError
from smdp_jax.experiment.report import read_metrics
from smdp_jax.files import write_atomically

# Films, of which the first picture alone would be seen, are left out as well.
_LEFT_OUT = ("training", "inverse", "step_miss", "histogram", "trajectories", "backward")
_HEIGHT = 700
_WIDEST = 4200


@dataclass(frozen=True)
class Options:
    """Settings of this script."""

    runs_dir: str = "runs"
    """Where the runs are."""
    preset: str = "small"
    """Which of each experiment."""
    folder: str = "runs/talk"
    """Where the figures go."""


def rows_of(pictures: list[Image.Image]) -> list[list[Image.Image]]:
    """Pictures of one height, as many in a row as fit."""
    rows: list[list[Image.Image]] = [[]]
    for picture in pictures:
        shown = picture.resize((round(picture.width * _HEIGHT / picture.height), _HEIGHT))
        if rows[-1] and sum(p.width for p in rows[-1]) + shown.width > _WIDEST:
            rows.append([])
        rows[-1].append(shown)
    return rows


def montage(run: Path) -> Image.Image:
    """All that a run has to show, and how many of its targets are met."""
    metrics = read_metrics(RunFiles(run))[0]
    files = sorted((run / "figures").glob("*.png"), key=lambda file: file.stem == "calibration")
    chosen = [Image.open(f).convert("RGB") for f in files if f.stem not in _LEFT_OUT]
    rows = rows_of(chosen)
    width = max(sum(p.width for p in row) for row in rows)
    title = Figure(figsize=(width / 200, 0.8), dpi=200)
    title.text(0.01, 0.5, run.parent.name, fontsize=22, fontweight="bold", va="center")
    met, _, _ = status_of(metrics).partition("; ")  # which ones are missed: in the run's report
    title.text(0.99, 0.5, met, fontsize=13, va="center", ha="right")
    drawn = io.BytesIO()
    title.savefig(drawn, format="png")
    head = Image.open(drawn).convert("RGB")
    page = Image.new("RGB", (width, head.height + _HEIGHT * len(rows)), "white")
    page.paste(head, (0, 0))
    for number, row in enumerate(rows):
        left = (width - sum(p.width for p in row)) // 2
        for picture in row:
            page.paste(picture, (left, head.height + number * _HEIGHT))
            left += picture.width
    return page


def main() -> None:
    """Draw all runs that are finished."""
    options = tyro.cli(Options, description=__doc__)
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    for metrics in sorted(Path(options.runs_dir).glob(f"*/{options.preset}/metrics.json")):
        run = metrics.parent
        try:
            page = montage(run)
        except (ExperimentError, OSError) as error:  # the other runs have figures, too
            say(f"{run}: {error}")
            continue
        file = folder / f"{run.parent.name}.png"
        png = io.BytesIO()
        page.save(png, format="png")
        write_atomically(file, png.getvalue())
        say(f"{file}: {page.width} x {page.height}")


if __name__ == "__main__":
    main()
