"""A run on disk: whose run it is, and what of it is kept."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smdp_jax.experiment.config_file import ConfigFile, load_config_file
from smdp_jax.experiment.definition import Experiment
from smdp_jax.experiment.fields import ExperimentError, as_json, from_json
from smdp_jax.experiment.run import Dataset
from smdp_jax.experiment.slices import Slice, slice_of_stage
from smdp_jax.experiment.storage import (
    check_kept,
    json_text,
    read_arrays,
    read_json,
    read_part,
    write_arrays,
)
from smdp_jax.files import write_atomically
from smdp_jax.scores.sharing import decoded, encoded
from smdp_jax.training.fit import Fit
from smdp_jax.trajectories import Trajectories

REMEDIES = {
    "data.npz": "remove it to simulate again",
    "fit.npz": "remove it to take the result from the last checkpoint",
    "samples.npz": "remove it to sample again",
    "metrics.json": "remove it to evaluate again",
}
"""What to do where a file cannot be read."""


class _In:
    """A file in the folder of a run."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: "RunContents", kind: Any = None) -> Path:
        return run.directory / self.name


@dataclass(frozen=True)
class RunContents:
    """What the stages of a run leave in its folder; a damaged file is an ExperimentError."""

    directory: Path

    config = _In("config.json")
    """Resolved configuration."""
    source = _In("config.py")
    """Copy of the config file."""
    data = _In("data.npz")
    """Trajectories and known answers."""
    training = _In("training")
    """Folder of checkpoints and metrics by epoch."""
    fit = _In("training/fit.npz")
    """Learned parameters; there once training has ended."""
    samples = _In("samples.npz")
    """Whatever was computed with the learned term."""
    metrics = _In("metrics.json")
    """Metrics, targets, seconds by stage, environment."""
    report = _In("report.html")
    """The report."""
    drawn = _In("figures/origin.json")
    """What the report was drawn from."""

    @property
    def has_checkpoints(self) -> bool:
        """Whether training can go on from somewhere: an empty folder is no checkpoint."""
        folders = self.training.glob("**/checkpoints/*")
        return any(f.name.isdecimal() and any(f.iterdir()) for f in folders if f.is_dir())

    def origin(self, file: Path) -> Slice:
        """Read what a result was made from: settings, and digests of code and input."""
        remedy = REMEDIES.get(file.name, "remove it")
        try:
            if file.suffix == ".npz":
                record = read_part(file, "origin", remedy)
            else:
                record = read_json(file, remedy)["origin"]
            return Slice(record["settings"], record["code"])
        except (TypeError, KeyError):
            said = f"{file} must say what it was made from, as this version of smdp_jax writes it"
            raise ExperimentError(f"{said}; {remedy}") from None

    def write_data(self, dataset: Dataset, **facts: Any) -> None:
        """Write the data; the facts are seconds, origin and the like."""
        paths = {"train": dataset.train, "validation": dataset.validation}
        tree = {name: None if data is None else vars(data) for name, data in paths.items()}
        write_arrays(self.data, tree | {"truth": dict(dataset.truth), **facts})

    def read_data(self) -> tuple[Dataset, float]:
        """Read the data, and how many seconds they took."""
        tree = read_arrays(self.data, REMEDIES["data.npz"])
        tree = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, tree)
        paths = (tree["train"], tree["validation"])
        train, validation = (fields and Trajectories(**fields) for fields in paths)
        return Dataset(train, validation, tree["truth"]), tree["seconds"]

    def write_fit(self, fit: Fit, **facts: Any) -> None:
        """Write the result of training; the facts are seconds, warnings and the like."""
        result = {"learned": encoded(fit.learned), "history": fit.history}
        write_arrays(self.fit, result | {"step_miss": fit.step_miss, **facts})

    def read_fit(self, model: Any) -> tuple[Fit, dict[str, Any]]:
        """Read the result of training the network ``model``, and what else was written."""
        tree = read_arrays(self.fit, REMEDIES["fit.npz"])
        written = tree.pop("learned", None)
        if written is None:
            remedy = REMEDIES["fit.npz"]
            raise ExperimentError(f"{self.fit} was written by another smdp_jax; {remedy}")
        learned = decoded(written, model)
        return Fit(learned, tree.pop("history"), tree.pop("step_miss")), tree

    def read_samples(self) -> tuple[dict[str, Any], float]:
        """Read what was computed with the learned term, and how many seconds it took."""
        remedy = REMEDIES["samples.npz"]
        tree = read_arrays(self.samples, remedy)
        found = tree if isinstance(tree, dict) else {}
        check_kept(self.samples, found.get("digest"), found.get("arrays"), remedy)
        return tree["arrays"], tree["seconds"]

    def read_warnings(self) -> list[str]:
        """Read what was warned of while samples were computed; none of another smdp_jax."""
        return list(read_arrays(self.samples, REMEDIES["samples.npz"]).get("warnings", ()))


@dataclass(frozen=True)
class RunFiles(RunContents):
    """The files of one run directory.

    Parameters
    ----------
    directory : Path
        The folder.
    """

    def open(
        self,
        file: ConfigFile,
        preset: str,
        config: Experiment,
        shown: str,
        begun: Mapping[str, str] | None = None,
    ) -> None:
        """Begin a run here, or check that finished stages belong to this configuration.

        What a stage does not depend on may change: data are kept when training is set up anew, and
        both are when evaluation is.

        Parameters
        ----------
        file, preset, config, shown
            The config file, its preset that was started from, the resolved configuration, and the
            file's path for the reader.
        begun : dict, optional
            Digest of the parameters that training starts from, where they are given.

        Raises
        ------
        ExperimentError
            If data or training of another configuration lie here; nothing is changed then.
        """
        source = file.source
        self._check_origin(self.data, slice_of_stage(source, config, "simulate"))
        self._check_origin(self.fit, slice_of_stage(source, config, "train", **begun or {}))
        # Training that has not ended is recognised by ``smdp_jax.fit``, from what it computes.
        if self.training.exists() and not (self.fit.exists() or self.has_checkpoints):
            shutil.rmtree(self.training)
        record = {
            "experiment": file.name,
            "preset": preset,
            "config_file": shown,
            "precision": str(jnp.result_type(float)),
            "config": as_json(config),
        }
        for path, text in ((self.source, source), (self.config, json_text(record))):
            if not path.exists() or path.read_bytes() != text.encode():
                write_atomically(path, text)

    def _check_origin(self, file: Path, now: Slice) -> None:
        if file.exists() and (changes := self.origin(file).changes(now)):
            said = f"{self.directory} holds a run of another configuration: {'; '.join(changes)}"
            remedy = "choose another --runs-dir, or remove that directory to run anew"
            raise ExperimentError(f"{said}; {remedy}")

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
        record = read_json(self.config, "run the experiment again: its stages are kept")
        missing = {"experiment", "preset", "precision", "config"} - set(record)
        if missing:
            lacks = ", ".join(sorted(missing))
            raise ExperimentError(f"{self.config} is no configuration of a run: it lacks {lacks}")
        return record

    def check_precision(self) -> None:
        """Check that this session computes in the precision of the run.

        Raises
        ------
        ExperimentError
            If the run is in double precision, and double precision is off.
        """
        if self.read_config()["precision"] == "float64" and jnp.result_type(float) != "float64":
            said = f"{self.directory} holds a run in double precision, which would be lost here"
            how = "set JAX_ENABLE_X64=1, or call jax.config.update('jax_enable_x64', True)"
            raise ExperimentError(f"{said}: {how}")

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
