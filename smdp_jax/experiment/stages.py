"""The stages of a run: simulate, train, sample, evaluate, report.

Each stage reads the files of those before it and writes one of its own, whole or not at all; a
file that is there, made from the files, settings and code that are there, is a stage that is done.
Randomness comes from ``config.seed`` by ``fold_in`` with the number of the stage, so a stage that
is computed again, alone or not, gives the same result.
"""

import contextlib
import inspect
import math
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from smdp_jax.evaluate import describe_environment
from smdp_jax.experiment.calibrated import metrics_of
from smdp_jax.experiment.config_file import ConfigFile, check_plain_name
from smdp_jax.experiment.definition import Experiment
from smdp_jax.experiment.fields import ExperimentError, as_json, check_fields, check_returned
from smdp_jax.experiment.processes import all_devices, check_same_run, only_process_in
from smdp_jax.experiment.report import build_report, read_metrics, report_is_current, rows_of
from smdp_jax.experiment.run import Dataset, Run
from smdp_jax.experiment.run_directory import RunFiles
from smdp_jax.experiment.slices import Slice, slice_of_stage
from smdp_jax.experiment.storage import write_arrays, write_json
from smdp_jax.files import agreed, by_first, digest_of, is_first, wait
from smdp_jax.sde import SDE
from smdp_jax.solve.batches import dealt_out
from smdp_jax.training.fit import Fit

Say = Callable[[str], None]


def load(run_dir: str | Path) -> Run:
    """Load a trained run: its process, learned term, data and configuration.

    This executes ``config.py`` in the run directory: load only runs whose code you trust.
    ``smdp_jax.load_score`` gets a learned score alone, and executes nothing.

    Parameters
    ----------
    run_dir : path
        A run directory, such as ``runs/affine/small``.

    Returns
    -------
    Run
        With ``.sde``, ``.score`` (or ``.correction``, ``.kernel``), ``.data`` and ``.config``.

    Raises
    ------
    ExperimentError
        If it is no run directory, if training has not ended, if a file is damaged, or if the run is
        in double precision and this session is not.
    """
    files = RunFiles(Path(run_dir))
    files.check_precision()
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
    initial: Any = None,
) -> Path:
    """Run an experiment, or go on with it where it was stopped.

    Everything is checked before a folder is made. Data and training are kept as long as what they
    depend on stays the same; what comes after them is made again where its code, settings or input
    have changed. All devices share the work. Of several processes, which must all see the run
    directory, the first one writes, evaluates and reports.

    Parameters
    ----------
    file, config : ConfigFile, Experiment
        The config file, and the resolved configuration: a preset of it, fields replaced at will.
    preset, runs_dir
        Name of that preset; results go to ``runs_dir / file.name / preset``.
    shown : str, optional
        The config file's path for the reader; default its name.
    checkpoint_seconds, progress
        Least time between checkpoints of training; show a progress bar in training.
    say : callable, optional
        Takes lines of text about every stage; default: to standard error.
    initial : LearnedScore, StepCorrection, LearnedStep or LearnedKernel, optional
        Training starts from its parameters, such as ``smdp.pretrained("heat").score``.

    Returns
    -------
    Path
        The run directory.

    Raises
    ------
    ExperimentError
        If a field or a method of the configuration does not fit, if data or training of another
        configuration lie there, if another process works there, or if a file is damaged.
    ValueError
        If the process or another part of the library refuses what the configuration asks for.
    """
    say = (_to_stderr if say is None else say) if is_first() else lambda line: None
    _check(config, preset, checkpoint_seconds)
    files = RunFiles(runs_dir / file.name / preset)
    check_same_run({"source": file.source, "preset": preset, "config": as_json(config)})
    with only_process_in(files.directory) if is_first() else contextlib.nullcontext():
        begun = _started_from(initial)
        by_first(lambda: files.open(file, preset, config, shown or file.path.name, begun))
        if not files.config.exists():
            got = f"{runs_dir}, where process {jax.process_index()} finds nothing of process 0's"
            raise ExperimentError(f"runs_dir must be a folder that all processes see, got {got}")
        say(f"{file.name} ({preset}) in {files.directory}")
        resume = {"checkpoint_seconds": checkpoint_seconds, "progress": progress and is_first()}
        resume |= {} if initial is None else {"initial": initial}
        _Stages(files, file.source, config, say).run(resume)
    return files.directory


def _check(config: Experiment, preset: str, seconds: float) -> None:
    """Check all that can be known before anything is computed or written."""
    check_plain_name("preset must be a plain name of", preset)
    if not 0 <= seconds < math.inf:
        raise ExperimentError(f"checkpoint_seconds must be at least 0 and finite, got {seconds}")
    check_fields(config)
    config.check()
    check_returned("sde", config.sde(), SDE, "an SDE")
    takes = inspect.signature(config.fit)
    if not any(p.kind is p.VAR_KEYWORD for p in takes.parameters.values()):
        want = "take **resume, which says where checkpoints are kept, and hand it to smdp_jax.fit"
        raise ExperimentError(f"Config.fit must {want}, got fit{takes}")


@dataclass(frozen=True)
class _Stages:
    """One run, stage by stage."""

    files: RunFiles
    source: str
    config: Experiment
    say: Say

    def run(self, resume: Mapping[str, Any]) -> None:
        root = jax.random.key(self.config.seed)
        keys = [jax.random.fold_in(root, stage) for stage in range(3)]
        seconds: dict[str, float] = {}
        with dealt_out(all_devices()):
            dataset, seconds["simulate"] = self.simulate(keys[0])
            run, facts = self.train(dataset, keys[1], resume)
            seconds["train"] = facts["seconds"]
            arrays, seconds["sample"] = self.sample(run, keys[2])
        if is_first():
            self.evaluate(run, arrays, seconds, facts)
            self.report(run, arrays)
        wait()

    def origin(self, stage: str, **inputs: str) -> Slice:
        """What a stage is made from now."""
        return slice_of_stage(self.source, self.config, stage, **inputs)

    def simulate(self, key: PRNGKeyArray) -> tuple[Dataset, float]:
        files = self.files
        if agreed(not files.data.exists()):
            self.say("simulate  ...")
            began = time.perf_counter()
            dataset = self.config.simulate(key)
            check_returned("simulate", dataset, Dataset, "a Dataset")
            jax.block_until_ready(dataset.train)
            seconds, origin = time.perf_counter() - began, self.origin("simulate")
            by_first(lambda: files.write_data(dataset, seconds=seconds, origin=origin.as_json()))
        # Read back even so: what follows sees the same bits whether or not it was stopped here.
        dataset, seconds = files.read_data()
        found = f"{dataset.train.num_samples} paths at {dataset.train.num_times} times"
        self.say(f"simulate  {seconds:.1f} s: {found}")
        return dataset, seconds

    def train(
        self, dataset: Dataset, key: PRNGKeyArray, resume: Mapping[str, Any]
    ) -> tuple[Run, dict[str, Any]]:
        files, config = self.files, self.config
        if agreed(not files.fit.exists()):
            model = config.model(dataset.train)
            check_returned("model", model, nn.Module, "a flax.linen.Module")
            resumed = agreed(files.has_checkpoints)
            self.say(f"train     {'going on from the last checkpoint ' if resumed else ''}...")
            begun = _started_from(resume.get("initial"))
            origin = self.origin("train", **begun).as_json()
            began = time.perf_counter()
            with _heard() as said:
                fit = config.fit(dataset, key, directory=files.training, **resume)
            check_returned("fit", fit, Fit, "a Fit")
            if fit.learned.model != model:
                want = "Config.model(dataset.train), so that a run can be loaded"
                raise ExperimentError(f"Config.fit must train {want}")
            if not files.has_checkpoints:
                lost = "training kept no checkpoints, so that it can't go on where it is stopped"
                said.append(f"{lost}: Config.fit must hand **resume on to smdp_jax.fit")
            facts = {"seconds": time.perf_counter() - began, "resumed": resumed, "warnings": said}
            by_first(lambda: files.write_fit(fit, origin=origin, **facts))
        run, facts = _trained(files, config, dataset)
        losses, steps = run.history["loss"], run.history["step"]
        reached = f"loss {losses[-1]:.4g} after {steps[-1]} updates" if losses.size else "no record"
        self.say(f"train     {facts['seconds']:.1f} s: {reached}")
        self.warn(facts["warnings"])
        return run, facts

    def warn(self, said: Sequence[str]) -> None:
        for warning in said:
            self.say(f"          warning: {warning}")

    def sample(self, run: Run, key: PRNGKeyArray) -> tuple[dict[str, Any], float]:
        files = self.files
        learned = digest_of({"variables": run.learned.variables, "truth": dict(run.truth)})
        origin = self.origin("sample", **{"learned parameters": learned})
        if agreed(self._to_be_made("sample", files.samples, origin)):
            began = time.perf_counter()
            with _heard() as said:
                arrays = run.config.sample(run, key)
            check_returned("sample", arrays, Mapping, "a dict of arrays")
            arrays = jax.tree.map(np.asarray, dict(arrays))
            tree = {"arrays": arrays, "digest": digest_of(arrays), "origin": origin.as_json()}
            tree |= {"seconds": time.perf_counter() - began, "warnings": said}
            by_first(lambda: write_arrays(files.samples, tree))
        arrays, seconds = files.read_samples()
        self.say(f"sample    {seconds:.1f} s")
        return arrays, seconds

    def evaluate(
        self, run: Run, arrays: dict[str, Any], seconds: dict[str, float], facts: dict[str, Any]
    ) -> None:
        files = self.files
        origin = self.origin("evaluate", samples=digest_of(arrays))
        if self._to_be_made("evaluate", files.metrics, origin):
            began = time.perf_counter()
            with _heard() as said:
                metrics = run.config.evaluate(run, arrays)
            check_returned("evaluate", metrics, Sequence, "a sequence of Metric")
            metrics = [*metrics, *metrics_of(arrays)]
            seconds = seconds | {"evaluate": time.perf_counter() - began}
            record = {
                "metrics": rows_of(metrics),
                "seconds": {stage: round(taken, 3) for stage, taken in seconds.items()},
                "training_resumed": facts["resumed"],
                "warnings": facts["warnings"],
                "warnings_of_samples": [*files.read_warnings(), *said],
                "environment": describe_environment(),
                "origin": origin.as_json(),
            }
            write_json(files.metrics, record | {"digest": digest_of(record)})
        written, record = read_metrics(files)
        self.warn(record.get("warnings_of_samples", ()))
        for metric in written:
            number = f"{metric.value:.4g}" if isinstance(metric.value, float) else metric.value
            value = f"{number} {metric.unit}".rstrip()
            target = f"  (target {metric.wanted})" if metric.wanted else ""
            self.say(f"          {metric.name}: {value}{target}")

    def report(self, run: Run, arrays: dict[str, Any]) -> None:
        if not report_is_current(self.files, run.config, self.source):
            build_report(self.files, run, arrays)
        self.say(f"report    {self.files.report}")

    def _to_be_made(self, stage: str, file: Path, origin: Slice) -> bool:
        """Whether a result is missing or made from something else, which is said."""
        if not file.exists():
            self.say(f"{stage:<9} ...")
            return True
        changes = self.files.origin(file).changes(origin)
        if changes:
            self.say(f"{stage:<9} again: {'; '.join(changes)} ...")
        return bool(changes)


def _started_from(initial: Any) -> dict[str, str]:
    """What tells a training that starts from given parameters."""
    return {} if initial is None else {"the first parameters": digest_of(initial.variables)}


def _trained(files: RunFiles, config: Experiment, dataset: Dataset) -> tuple[Run, dict[str, Any]]:
    fit, facts = files.read_fit(config.model(dataset.train))
    learned: Any = fit.learned
    what = (config, config.sde(), dataset, learned, fit.history, fit.step_miss, files.directory)
    return Run(*what), facts


@contextlib.contextmanager
def _heard() -> Iterator[list[str]]:
    """What is warned of, in a list that is full afterwards; what differs in figures, once."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield said
    alike: dict[str, list[str]] = {}
    for warning in caught:
        text = str(warning.message)
        alike.setdefault(re.sub(r"[-+.\de]*\d", "0", text), []).append(text)
    for first, *others in alike.values():
        said.append(f"{first} ({len(others)} more of this kind)" if others else first)


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
