"""A run on disk: whose run it is, and what of it is kept."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from smdp_jax.experiment.config_file import ConfigFile, load_config_file
from smdp_jax.experiment.definition import Experiment
from smdp_jax.experiment.fields import ExperimentError, as_json, from_json
from smdp_jax.experiment.run_contents import RunContents
from smdp_jax.experiment.slices import Slice, slice_of_stage
from smdp_jax.experiment.storage import json_text, read_json
from smdp_jax.files import write_atomically


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
        if not self.source.exists() or self.source.read_bytes() != source.encode():
            write_atomically(self.source, source)
        text = json_text(record)
        if not self.config.exists() or self.config.read_bytes() != text.encode():
            write_atomically(self.config, text)

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
