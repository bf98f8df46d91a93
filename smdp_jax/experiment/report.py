"""Figures and ``report.html`` of a finished run, from the files that are there."""

import hashlib
import importlib.util
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smdp_jax import evaluate
from smdp_jax.evaluate import Metric, ReportFigure, Section, write_report
from smdp_jax.evaluate._html_parts import figure_png
from smdp_jax.experiment.calibrated import figures_of, lost_of
from smdp_jax.experiment.config_file import check_plain_name
from smdp_jax.experiment.definition import Experiment
from smdp_jax.experiment.fields import ExperimentError, as_json, check_returned
from smdp_jax.experiment.run import Run
from smdp_jax.experiment.run_directory import REMEDIES, RunFiles
from smdp_jax.experiment.slices import slice_of_stage
from smdp_jax.experiment.storage import check_kept, read_json, write_json
from smdp_jax.files import digest_of, write_atomically


def read_metrics(files: RunFiles) -> tuple[list[Metric], dict[str, Any]]:
    """Read ``metrics.json``: its rows, and all that it holds."""
    remedy = REMEDIES["metrics.json"]
    record = read_json(files.metrics, remedy)
    try:
        check_kept(files.metrics, record.pop("digest", None), record, remedy)
        rows = record["metrics"].items()
        metrics = [Metric(name, **(row | _value(row))) for name, row in rows]
    except (AttributeError, KeyError, TypeError) as error:
        raise ExperimentError(f"{files.metrics} is damaged ({error!r}); {remedy}") from error
    return metrics, record


def rows_of(metrics: Sequence[Any]) -> dict[str, Any]:
    """Rows of ``metrics.json``, as JSON values."""
    rows = {}
    for metric in metrics:
        check_returned("evaluate", metric, Metric, "a sequence of Metric")
        if metric.name in rows:
            raise ExperimentError(f"Config.evaluate returned two metrics named {metric.name!r}")
        row = vars(metric) | {name: _plain(getattr(metric, name)) for name in ("value", "target")}
        rows[row.pop("name")] = row
    return rows


def _plain(number: Any) -> Any:
    """A JSON value; None for what is not finite."""
    if number is None or isinstance(number, str | bool | int):
        return number
    number = float(number)
    return number if math.isfinite(number) else None


def build_report(files: RunFiles, run: Run, arrays: dict[str, Any]) -> Path:
    """Draw all figures and write the report.

    Parameters
    ----------
    files, run, arrays : RunFiles, Run, dict
        The files of the run, the run, loaded, and what its sampling stage computed.

    Returns
    -------
    Path
        The HTML file, next to ``figures/``.

    Raises
    ------
    ExperimentError
        If matplotlib is not installed, or if a file is damaged.
    """
    check_matplotlib()
    metrics, record = read_metrics(files)
    if record["origin"]["code"].get("samples") != digest_of(arrays):
        said = f"{files.metrics} must belong to {files.samples.name}, got that of other samples"
        raise ExperimentError(f"{said}; run the experiment again")
    file, _ = files.load_config()
    results = _figures(run, arrays)
    training = _training_figures(run)
    pngs = {name: _png(item) for name, item in (results | training).items()}
    for name, png in pngs.items():
        write_atomically(files.directory / "figures" / f"{name}.png", png)

    def shown(items: dict[str, ReportFigure]) -> list[ReportFigure]:
        return [ReportFigure(pngs[name], item.caption, item.alt) for name, item in items.items()]

    seconds = [Metric(stage, taken, unit="s") for stage, taken in record["seconds"].items()]
    resumed = "training was stopped and resumed; its seconds are those of the last part"
    note = resumed if record["training_resumed"] else "with compilation"
    notes = {
        name: "\n\n".join(f"Warning: {warning}." for warning in record.get(name, ()))
        for name in ("warnings", "warnings_of_samples")
    }
    sections = [
        Section("Results", notes["warnings_of_samples"], figures=shown(results)),
        Section("Training", notes["warnings"], figures=shown(training)),
        Section("Time", f"Wall time by stage, {note}.", metrics=seconds),
    ]
    config = files.read_config()
    path = write_report(
        files.report,
        f"{config['experiment']} ({config['preset']}): {file.summary}",
        sections,
        summary=file.text,
        metrics=metrics,
        config=config["config"],
        environment=record["environment"],
        command=command_of(files),
        lost_paths=lost_of(arrays),
    )
    # Last: a report that was not finished is drawn again.
    write_json(files.drawn, _origin_of_report(files, run.config, file.source))
    return path


def report_is_current(files: RunFiles, config: Experiment, source: str) -> bool:
    """Tell whether the report shows the metrics that are there, with figures of this code."""
    if not files.report.exists() or not files.drawn.exists():
        return False
    now = _origin_of_report(files, config, source)
    return read_json(files.drawn, "remove it to draw again") == now


def _origin_of_report(files: RunFiles, config: Experiment, source: str) -> dict[str, Any]:
    found = slice_of_stage(source, config, "report")
    metrics = hashlib.sha256(files.metrics.read_bytes()).hexdigest()
    return found.as_json() | {"metrics": metrics, "config": as_json(config)}


def _figures(run: Run, arrays: dict[str, Any]) -> dict[str, ReportFigure]:
    figures = run.config.figures(run, arrays)
    check_returned("figures", figures, Mapping, "a dict of ReportFigure")
    for name, figure in figures.items():
        check_plain_name("Config.figures must name figures by", name)
        check_returned("figures", figure, ReportFigure, f"a ReportFigure as {name!r}")
    return figures_of(arrays) | dict(figures)


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


def check_matplotlib() -> None:
    """Check that figures can be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        said = "figures need matplotlib, which is not installed"
        raise ExperimentError(f'{said}: pip install "smdp_jax[plots]"')


def _png(item: ReportFigure) -> bytes:
    return item.figure if isinstance(item.figure, bytes) else figure_png(item.figure)


def _value(row: dict[str, Any]) -> dict[str, Any]:
    value = {"value": "not finite" if row["value"] is None else row["value"]}
    # A target that is not finite, itself a figure, is none.
    return value | ({"bound": None, "tolerance": None} if row["target"] is None else {})


def _training_figures(run: Run) -> dict[str, ReportFigure]:
    history = {"step": run.history["step"], "loss": run.history["loss"]}
    if run.dataset.validation is not None:
        history["validation_loss"] = run.history["validation_loss"]
    if run.history["window"].any():
        history["window"] = run.history["window"]
    plots, shown = evaluate.plots, {}
    if history["loss"].size:  # none where metrics.jsonl was lost
        shown["training"] = ReportFigure(
            plots.training_curve(history),
            "Loss by update, mean over each epoch. 1 is the optimum of one-step windows; for score "
            "targets the optimum is the share of their mean square that is noise.",
        )
    return shown | {
        "step_miss": ReportFigure(
            plots.step_miss(run.data.ts[1:], run.step_miss),
            "Squared miss of one backward step over the noise variance of that step, by time. Far "
            "above 1 the score or the step is wrong there.",
        )
    }
