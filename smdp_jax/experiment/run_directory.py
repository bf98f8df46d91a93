"""A run on disk: which file holds what, and whose run it is."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smdp_jax.experiment.config_file import (
    ConfigFile,
    as_json,
    changed_fields,
    from_json,
    load_config_file,
    same_code,
)
from smdp_jax.experiment.definition import Dataset, Experiment
from smdp_jax.experiment.errors import ExperimentError
from smdp_jax.experiment.storage import read_arrays, read_json, write_arrays, write_json
from smdp_jax.scores.learned import LearnedScore, StepCorrection
from smdp_jax.scores.preconditioner import Preconditioner
from smdp_jax.training.fit import Fit
from smdp_jax.trajectories import Trajectories

__all__ = ["RunFiles"]


@dataclass(frozen=True)
class RunFiles:
    """The files of one run directory.

    Parameters
    ----------
    directory : Path
        The folder.
    """

    directory: Path

    @property
    def config(self) -> Path:
        """Resolved configuration."""
        return self.directory / "config.json"

    @property
    def source(self) -> Path:
        """Copy of the config file."""
        return self.directory / "config.py"

    @property
    def data(self) -> Path:
        """Trajectories and known answers."""
        return self.directory / "data.npz"

    @property
    def training(self) -> Path:
        """Folder of checkpoints and metrics by epoch."""
        return self.directory / "training"

    @property
    def fit(self) -> Path:
        """Learned parameters; there once training has ended."""
        return self.training / "fit.npz"

    @property
    def samples(self) -> Path:
        """Whatever was computed with the learned term."""
        return self.directory / "samples.npz"

    @property
    def metrics(self) -> Path:
        """Metrics, targets, seconds by stage, environment."""
        return self.directory / "metrics.json"

    @property
    def report(self) -> Path:
        """The report."""
        return self.directory / "report.html"

    def open(self, file: ConfigFile, preset: str, config: Experiment, shown: str) -> None:
        """Begin a run here, or check that the one that lies here is the same.

        Parameters
        ----------
        file : ConfigFile
            The config file.
        preset : str
            Name of the preset that ``config`` started from.
        config : Experiment
            The resolved configuration.
        shown : str
            The config file's path for the reader.

        Raises
        ------
        ExperimentError
            If another run lies here; nothing is changed then.
        """
        way_out = "choose another --runs-dir, or remove that directory to run anew"
        record = {
            "experiment": file.name,
            "preset": preset,
            "config_file": shown,
            "precision": str(jnp.result_type(float)),
            "config": as_json(config),
        }
        if not self.config.exists():
            if self.data.exists() or self.training.exists():
                raise ExperimentError(f"{self.directory} has results but no config.json; {way_out}")
            self.directory.mkdir(parents=True, exist_ok=True)
            self.source.write_text(file.source, encoding="utf-8")
            write_json(self.config, record)
            return
        old = self.read_config()
        changes = changed_fields(old["config"], record["config"])
        changes += changed_fields(
            {"precision": old["precision"]}, {"precision": record["precision"]}
        )
        if changes:
            raise ExperimentError(
                f"{self.directory} holds a run of another configuration: {'; '.join(changes)}; "
                f"{way_out}"
            )
        if not self.source.exists() or not same_code(self.source.read_text("utf-8"), file.source):
            raise ExperimentError(
                f"{self.directory} holds a run of other code: {shown} has changed since it began "
                f"(compare with {self.source}); {way_out}"
            )

    def read_config(self) -> dict[str, Any]:
        """Read ``config.json``.

        Returns
        -------
        dict
            Its content.

        Raises
        ------
        ExperimentError
            If this is no run directory, or if the file is damaged.
        """
        if not self.config.exists():
            raise ExperimentError(f"{self.directory} is not a run directory: it has no config.json")
        record = read_json(self.config, "remove the run directory to run anew")
        missing = {"preset", "precision", "config"} - set(record)
        if missing:
            raise ExperimentError(
                f"{self.config} is no configuration of a run: it lacks {', '.join(sorted(missing))}"
            )
        return record

    def load_config(self) -> tuple[ConfigFile, Experiment]:
        """Load the copy of the config file and the resolved configuration.

        Returns
        -------
        tuple (ConfigFile, Experiment)
            Both as they were when the run began.

        Raises
        ------
        ExperimentError
            If this is no run directory, or if a file is damaged.
        """
        record = self.read_config()
        file = load_config_file(self.source)
        if record["preset"] not in file.presets:
            raise ExperimentError(f"{self.source} has no preset {record['preset']!r}")
        return file, from_json(type(file.presets[record["preset"]]), record["config"])

    def write_data(self, dataset: Dataset, seconds: float) -> None:
        """Write the data.

        Parameters
        ----------
        dataset : Dataset
            What was simulated.
        seconds : float
            How long it took.
        """
        validation = dataset.validation
        tree = {
            "train": _fields(dataset.train),
            "validation": None if validation is None else _fields(validation),
            "truth": dict(dataset.truth),
            "seconds": seconds,
        }
        write_arrays(self.data, tree)

    def read_data(self) -> tuple[Dataset, float]:
        """Read the data.

        Returns
        -------
        tuple (Dataset, float)
            The data, and how many seconds they took.

        Raises
        ------
        ExperimentError
            If the file is damaged.
        """
        tree = _on_device(read_arrays(self.data, "remove it to simulate again"))
        validation = tree["validation"]
        dataset = Dataset(
            Trajectories(**tree["train"]),
            None if validation is None else Trajectories(**validation),
            tree["truth"],
        )
        return dataset, tree["seconds"]

    def write_fit(self, fit: Fit, facts: dict[str, Any]) -> None:
        """Write the result of training.

        Parameters
        ----------
        fit : Fit
            The result.
        facts : dict
            Seconds, warnings and the like.
        """
        learned, preconditioner = fit.learned, fit.learned.preconditioner
        tree = {
            "variables": learned.variables,
            "preconditioner": None if preconditioner is None else _fields(preconditioner),
            "correction": None,
            "history": fit.history,
            "step_miss": fit.step_miss,
            **facts,
        }
        if isinstance(learned, StepCorrection):
            tree["correction"] = {"ts": learned.ts, "noise_level": learned.noise_level}
        write_arrays(self.fit, tree)

    def read_fit(self, model: Any) -> tuple[Fit, dict[str, Any]]:
        """Read the result of training.

        Parameters
        ----------
        model : flax.linen.Module
            The network that was trained.

        Returns
        -------
        tuple (Fit, dict)
            The result, and what else was written.

        Raises
        ------
        ExperimentError
            If the file is damaged.
        """
        tree = read_arrays(self.fit, "remove it to take the result from the last checkpoint")
        preconditioner, correction = tree.pop("preconditioner"), tree.pop("correction")
        if preconditioner is not None:
            preconditioner = Preconditioner(**_on_device(preconditioner))
        variables = _on_device(tree.pop("variables"))
        if correction is None:
            learned = LearnedScore(model, variables, preconditioner)
        else:
            learned = StepCorrection(model, variables, preconditioner, **_on_device(correction))
        return Fit(learned, tree.pop("history"), tree.pop("step_miss")), tree


def _fields(record: Any) -> dict[str, Any]:
    return {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}


def _on_device(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, tree)
