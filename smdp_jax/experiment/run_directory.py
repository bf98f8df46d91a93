"""A run on disk: which file holds what, and whose run it is."""

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smdp_jax.experiment.config_file import ConfigFile, load_config_file
from smdp_jax.experiment.definition import Dataset, Experiment
from smdp_jax.experiment.fields import ExperimentError, as_json, from_json
from smdp_jax.experiment.slices import Slice, slice_of_stage
from smdp_jax.experiment.storage import (
    json_text,
    read_arrays,
    read_json,
    read_part,
    write_arrays,
)
from smdp_jax.files import digest_of, write_atomically
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

    @property
    def drawn(self) -> Path:
        """What the report was drawn from."""
        return self.directory / "figures" / "origin.json"

    @property
    def has_checkpoints(self) -> bool:
        """Whether training can go on from somewhere: an empty folder is no checkpoint."""
        folders = self.training.glob("**/checkpoints/*")
        return any(f.name.isdecimal() and any(f.iterdir()) for f in folders if f.is_dir())

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
        file, preset, config
            The config file, its preset that was started from, and the resolved configuration.
        shown : str
            The config file's path for the reader.
        begun : dict, optional
            Digest of the parameters that training starts from, where they are given.

        Raises
        ------
        ExperimentError
            If data or training of another configuration lie here; nothing is changed then.
        """
        source = file.source
        self._check_origin("simulate", self.data, source, config)
        self._check_origin("train", self.fit, source, config, begun)
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
        if not self.source.exists() or self.source.read_bytes() != source.encode():
            write_atomically(self.source, source)
        text = json_text(record)
        if not self.config.exists() or self.config.read_bytes() != text.encode():
            write_atomically(self.config, text)

    def _check_origin(
        self,
        stage: str,
        file: Path,
        source: str,
        config: Experiment,
        inputs: Mapping[str, str] | None = None,
    ) -> None:
        if not file.exists():
            return
        now = slice_of_stage(source, config, stage)
        now = Slice(now.settings, {**now.code, **(inputs or {})})
        changes = self.origin(file).changes(now)
        if changes:
            raise ExperimentError(
                f"{self.directory} holds a run of another configuration: {'; '.join(changes)}; "
                "choose another --runs-dir, or remove that directory to run anew"
            )

    def origin(self, file: Path) -> Slice:
        """Read what a result was made from.

        Parameters
        ----------
        file : Path
            ``data``, ``fit``, ``samples`` or ``metrics``.

        Returns
        -------
        Slice
            Settings, and digests of code and input.

        Raises
        ------
        ExperimentError
            If the file is damaged, or does not say.
        """
        remedy = REMEDIES.get(file.name, "remove it")
        if file.suffix == ".npz":
            record = read_part(file, "origin", remedy)
        else:
            record = read_json(file, remedy)
            record = record.get("origin") if isinstance(record, dict) else None
        record = record or {}
        try:
            return Slice(record["settings"], record["code"])
        except (TypeError, KeyError):
            raise ExperimentError(
                f"{file} must say what it was made from, as this version of smdp_jax writes it; "
                f"{remedy}"
            ) from None

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
            raise ExperimentError(
                f"{self.config} is no configuration of a run: it lacks {', '.join(sorted(missing))}"
            )
        return record

    def check_precision(self) -> None:
        """Check that this session computes in the precision of the run.

        Raises
        ------
        ExperimentError
            If the run is in double precision, and double precision is off.
        """
        if self.read_config()["precision"] == "float64" and jnp.result_type(float) != "float64":
            raise ExperimentError(
                f"{self.directory} holds a run in double precision, which would be lost here: set "
                "JAX_ENABLE_X64=1, or call jax.config.update('jax_enable_x64', True)"
            )

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

    def write_data(self, dataset: Dataset, **facts: Any) -> None:
        """Write the data.

        Parameters
        ----------
        dataset, **facts
            What was simulated; seconds, origin and the like.
        """
        validation = dataset.validation
        tree = {
            "train": _fields(dataset.train),
            "validation": None if validation is None else _fields(validation),
            "truth": dict(dataset.truth),
            **facts,
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
        tree = _on_device(read_arrays(self.data, REMEDIES["data.npz"]))
        validation = tree["validation"]
        dataset = Dataset(
            Trajectories(**tree["train"]),
            None if validation is None else Trajectories(**validation),
            tree["truth"],
        )
        return dataset, tree["seconds"]

    def write_fit(self, fit: Fit, **facts: Any) -> None:
        """Write the result of training.

        Parameters
        ----------
        fit, **facts
            The result; seconds, warnings and the like.
        """
        result = {"learned": encoded(fit.learned), "history": fit.history}
        write_arrays(self.fit, result | {"step_miss": fit.step_miss, **facts})

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
        tree = read_arrays(self.fit, REMEDIES["fit.npz"])
        written = tree.pop("learned", None)
        if written is None:
            raise ExperimentError(
                f"{self.fit} was written by another smdp_jax; {REMEDIES['fit.npz']}"
            )
        learned = decoded(written, model)
        return Fit(learned, tree.pop("history"), tree.pop("step_miss")), tree

    def read_samples(self) -> tuple[dict[str, Any], float]:
        """Read what was computed with the learned term.

        Returns
        -------
        tuple (dict, float)
            Arrays by name, and how many seconds they took.

        Raises
        ------
        ExperimentError
            If the file is damaged, or was edited.
        """
        remedy = REMEDIES["samples.npz"]
        tree = read_arrays(self.samples, remedy)
        if not isinstance(tree, dict) or tree.get("digest") != digest_of(tree.get("arrays")):
            raise ExperimentError(
                f"{self.samples} must be as it was written, and has changed since; {remedy}"
            )
        return tree["arrays"], tree["seconds"]

    def read_warnings(self) -> list[str]:
        """Read what was warned of while samples were computed.

        Returns
        -------
        list of str
            Sentences; none where another smdp_jax wrote the file.
        """
        return list(read_arrays(self.samples, REMEDIES["samples.npz"]).get("warnings", ()))


def _fields(record: Any) -> dict[str, Any]:
    return {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}


def _on_device(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, tree)
