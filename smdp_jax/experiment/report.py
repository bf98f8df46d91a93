"""Figures and ``report.html`` of a finished run, from the files that are there."""

import importlib.util
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smdp_jax import evaluate
from smdp_jax.evaluate import Metric, ReportFigure, Section, write_report
from smdp_jax.evaluate.figures import figure_png
from smdp_jax.experiment.config_file import as_json
from smdp_jax.experiment.definition import Run
from smdp_jax.experiment.errors import ExperimentError
from smdp_jax.experiment.run_directory import RunFiles
from smdp_jax.experiment.storage import read_json
from smdp_jax.files import write_atomically

__all__ = ["MetricsFile", "build_report", "command_of", "read_metrics", "require_matplotlib"]


@dataclass(frozen=True)
class MetricsFile:
    """Content of ``metrics.json``."""

    metrics: list[Metric]
    record: dict[str, Any]


def read_metrics(files: RunFiles) -> MetricsFile:
    """Read ``metrics.json``."""
    remedy = "remove it to evaluate again"
    record = read_json(files.metrics, remedy)
    try:
        rows = record["metrics"].items()
        metrics = [Metric(name, **(row | _value(row))) for name, row in rows]
    except (AttributeError, KeyError, TypeError) as error:
        raise ExperimentError(f"{files.metrics} is damaged ({error!r}); {remedy}") from error
    return MetricsFile(metrics, record)


def build_report(files: RunFiles, run: Run, arrays: dict[str, Any]) -> Path:
    """Draw all figures and write the report.

    Parameters
    ----------
    files : RunFiles
        The files of the run.
    run : Run
        The run, loaded.
    arrays : dict
        What its sampling stage computed.

    Returns
    -------
    Path
        The HTML file, next to ``figures/``.

    Raises
    ------
    ExperimentError
        If matplotlib is not installed, or if a file is damaged.
    """
    require_matplotlib()
    content = read_metrics(files)
    file, _ = files.load_config()
    results = dict(run.config.figures(run, arrays))
    training = _training_figures(run)
    pngs = {name: _png(item) for name, item in (results | training).items()}
    for name, png in pngs.items():
        write_atomically(files.directory / "figures" / f"{name}.png", png)

    def shown(items: dict[str, ReportFigure]) -> list[ReportFigure]:
        return [ReportFigure(pngs[name], item.caption, item.alt) for name, item in items.items()]

    record = content.record
    seconds = [Metric(stage, taken, unit="s") for stage, taken in record["seconds"].items()]
    if record["training_resumed"]:
        note = "training was stopped and resumed; its seconds are those of the last part"
    else:
        note = "with compilation"
    notes = [f"Warning: {warning}." for warning in record["warnings"]]
    sections = [
        Section("Results", figures=shown(results)),
        Section("Training", "\n\n".join(notes), figures=shown(training)),
        Section("Time", f"Wall time by stage, {note}.", metrics=seconds),
    ]
    config = files.read_config()
    return write_report(
        files.report,
        f"{config['experiment']} ({config['preset']}): {file.summary}",
        sections,
        summary=file.text,
        metrics=content.metrics,
        config=config["config"],
        environment=record["environment"],
        command=command_of(files),
    )


def command_of(files: RunFiles) -> str:
    """Write the command that makes a run."""
    file, config = files.load_config()
    record = files.read_config()
    preset = as_json(file.presets[record["preset"]])
    words = ["python", "-m", "smdp_jax", "run", record["config_file"], "--preset", record["preset"]]
    for name, value in as_json(config).items():
        if value == preset[name]:
            continue
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def require_matplotlib() -> None:
    """Check that figures can be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ExperimentError(
            'figures need matplotlib, which is not installed: pip install "smdp_jax[plots]"'
        )


def _png(item: ReportFigure) -> bytes:
    return item.figure if isinstance(item.figure, bytes) else figure_png(item.figure)


def _value(row: dict[str, Any]) -> dict[str, Any]:
    return {"value": "not finite" if row["value"] is None else row["value"]}


def _training_figures(run: Run) -> dict[str, ReportFigure]:
    history = {"step": run.history["step"], "loss": run.history["loss"]}
    if run.dataset.validation is not None:
        history["validation_loss"] = run.history["validation_loss"]
    if run.history["window"].any():
        history["window"] = run.history["window"]
    plots = evaluate.plots
    return {
        "training": ReportFigure(
            plots.training_curve(history),
            "Loss by update, mean over each epoch. 1 is the optimum of one-step windows; for score "
            "targets the optimum is the share of their mean square that is noise.",
        ),
        "step_miss": ReportFigure(
            plots.step_miss(run.data.ts[1:], run.step_miss),
            "Squared miss of one backward step over the noise variance of that step, by time. Far "
            "above 1 the score or the step is wrong there.",
        ),
    }
