"""The stages of a run: simulate, train, sample, evaluate, report.

Each stage reads the files of those before it and writes one of its own, whole or not at all; a
file that is there, computed from the files that are there, is a stage that is done. Randomness
comes from ``config.seed`` by ``fold_in`` with the number of the stage, so a stage that is computed
again, alone or not, gives the same result.
"""

import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from smdp_jax.evaluate import Metric, describe_environment
from smdp_jax.experiment.config_file import ConfigFile
from smdp_jax.experiment.definition import Dataset, Experiment, Run
from smdp_jax.experiment.errors import ExperimentError
from smdp_jax.experiment.report import build_report, read_metrics
from smdp_jax.experiment.run_directory import RunFiles
from smdp_jax.experiment.storage import read_arrays, write_arrays, write_json
from smdp_jax.files import digest_of

__all__ = ["load", "run_experiment"]

Say = Callable[[str], None]


def load(run_dir: str | Path) -> Run:
    """Load a trained run: its process, learned term, data and configuration.

    Parameters
    ----------
    run_dir : path
        A run directory, such as ``runs/affine/small``.

    Returns
    -------
    Run
        With ``.sde``, ``.score`` (or ``.correction``), ``.data`` and ``.config``.

    Raises
    ------
    ExperimentError
        If it is no run directory, if training has not ended, or if a file is damaged.
    """
    files = RunFiles(Path(run_dir))
    _, config = files.load_config()
    for file, stage in ((files.data, "simulated"), (files.fit, "trained")):
        if not file.exists():
            raise ExperimentError(f"{run_dir} is not yet {stage}: it has no {file.name}")
    return _trained(files, config, files.read_data()[0])[0]


def run_experiment(
    file: ConfigFile,
    config: Experiment,
    *,
    preset: str,
    runs_dir: Path,
    shown: str | None = None,
    checkpoint_seconds: float = 10.0,
    progress: bool = False,
    say: Say | None = None,
) -> Path:
    """Run an experiment, or go on with it where it was stopped.

    Parameters
    ----------
    file : ConfigFile
        The config file.
    config : Experiment
        The resolved configuration: a preset of the file, fields replaced at will.
    preset : str
        Name of that preset.
    runs_dir : Path
        Results go to ``runs_dir / file.name / preset``.
    shown : str, optional
        The config file's path for the reader; default its name.
    checkpoint_seconds : float
        Least time between checkpoints of training.
    progress : bool
        Show a progress bar in training.
    say : callable, optional
        Takes lines of text about every stage; default: to standard error.

    Returns
    -------
    Path
        The run directory.

    Raises
    ------
    ExperimentError
        If another run lies there, or if a file of this one is damaged.
    """
    say = _to_stderr if say is None else say
    files = RunFiles(runs_dir / file.name / preset)
    files.open(file, preset, config, shown or file.path.name)
    say(f"{file.name} ({preset}) in {files.directory}")
    root = jax.random.key(config.seed)
    keys = [jax.random.fold_in(root, stage) for stage in range(3)]
    seconds: dict[str, float] = {}

    dataset, seconds["simulate"] = _simulate(files, config, keys[0], say)
    resume = {"directory": files.training, "checkpoint_seconds": checkpoint_seconds}
    _train(files, config, dataset, keys[1], resume | {"progress": progress}, say)
    run, facts = _trained(files, config, dataset)
    seconds["train"] = facts["seconds"]
    arrays, seconds["sample"] = _sample(files, run, keys[2], say)
    _evaluate(files, run, arrays, seconds, facts, say)
    _report(files, run, arrays, say)
    return files.directory


def _simulate(
    files: RunFiles, config: Experiment, key: PRNGKeyArray, say: Say
) -> tuple[Dataset, float]:
    if not files.data.exists():
        say("simulate  ...")
        began = time.perf_counter()
        dataset = config.simulate(key)
        jax.block_until_ready(dataset.train)
        files.write_data(dataset, time.perf_counter() - began)
    # Read back even so: what follows sees the same bits whether or not it was stopped here.
    dataset, seconds = files.read_data()
    say(
        f"simulate  {seconds:.1f} s: {dataset.train.num_samples} paths at "
        f"{dataset.train.num_times} times"
    )
    return dataset, seconds


def _train(
    files: RunFiles,
    config: Experiment,
    dataset: Dataset,
    key: PRNGKeyArray,
    resume: Mapping[str, Any],
    say: Say,
) -> None:
    if not files.fit.exists():
        resumed = (files.training / "checkpoints").exists()
        say("train     going on from the last checkpoint ..." if resumed else "train     ...")
        began = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            fit = config.fit(dataset, key, **resume)
        if fit.learned.model != config.model(dataset.train):
            raise ExperimentError(
                "Config.fit must train Config.model(dataset.train), so that a run can be loaded"
            )
        facts = {
            "seconds": time.perf_counter() - began,
            "resumed": resumed,
            "warnings": [str(warning.message) for warning in caught],
        }
        files.write_fit(fit, facts)
    fit, facts = files.read_fit(config.model(dataset.train))
    loss, step = fit.history["loss"][-1], fit.history["step"][-1]
    say(f"train     {facts['seconds']:.1f} s: loss {loss:.4g} after {step} updates")
    for warning in facts["warnings"]:
        say(f"          warning: {warning}")


def _trained(files: RunFiles, config: Experiment, dataset: Dataset) -> tuple[Run, dict[str, Any]]:
    fit, facts = files.read_fit(config.model(dataset.train))
    run = Run(
        config,
        config.sde(),
        dataset,
        fit.score_or_correction,
        fit.history,
        fit.step_miss,
        files.directory,
    )
    return run, facts


def _sample(files: RunFiles, run: Run, key: PRNGKeyArray, say: Say) -> tuple[dict[str, Any], float]:
    source = digest_of({"variables": run.learned.variables, "truth": dict(run.truth)})
    if not files.samples.exists() or _read_samples(files)["source"] != source:
        say("sample    ...")
        began = time.perf_counter()
        arrays = jax.tree.map(np.asarray, run.config.sample(run, key))
        taken = time.perf_counter() - began
        write_arrays(files.samples, {"arrays": arrays, "source": source, "seconds": taken})
    tree = _read_samples(files)
    say(f"sample    {tree['seconds']:.1f} s")
    return tree["arrays"], tree["seconds"]


def _read_samples(files: RunFiles) -> dict[str, Any]:
    return read_arrays(files.samples, "remove it to sample again")


def _evaluate(
    files: RunFiles,
    run: Run,
    arrays: dict[str, Any],
    seconds: dict[str, float],
    facts: dict[str, Any],
    say: Say,
) -> None:
    source = digest_of(arrays)
    if not files.metrics.exists() or read_metrics(files).record["source"] != source:
        began = time.perf_counter()
        metrics = run.config.evaluate(run, arrays)
        seconds = seconds | {"evaluate": time.perf_counter() - began}
        record = {
            "metrics": _as_json(metrics),
            "seconds": {stage: round(taken, 3) for stage, taken in seconds.items()},
            "training_resumed": facts["resumed"],
            "warnings": facts["warnings"],
            "environment": describe_environment(),
            "source": source,
        }
        write_json(files.metrics, record)
    for metric in read_metrics(files).metrics:
        value = f"{_shown(metric.value)} {metric.unit}".rstrip()
        target = f"  (target {metric.wanted})" if metric.wanted else ""
        say(f"          {metric.name}: {value}{target}")


def _report(files: RunFiles, run: Run, arrays: dict[str, Any], say: Say) -> None:
    age = files.report.stat().st_mtime_ns if files.report.exists() else -1
    if age < files.metrics.stat().st_mtime_ns:
        build_report(files, run, arrays)
    say(f"report    {files.report}")


def _as_json(metrics: Sequence[Metric]) -> dict[str, Any]:
    rows = {}
    for metric in metrics:
        if metric.name in rows:
            raise ExperimentError(f"Config.evaluate returned two metrics named {metric.name!r}")
        value, target = (_plain(number) for number in (metric.value, metric.target))
        rows[metric.name] = {"value": value, "target": target} | {
            "unit": metric.unit,
            "note": metric.note,
            "bound": metric.bound,
            "tolerance": metric.tolerance,
        }
    return rows


def _plain(number: Any) -> Any:
    """A JSON value; None for what is not finite."""
    if number is None or isinstance(number, str | bool | int):
        return number
    number = float(number)
    return number if math.isfinite(number) else None


def _shown(number: Any) -> str:
    return f"{number:.4g}" if isinstance(number, float) else str(number)


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
