"""The files of a run: which one holds what, written whole and read or refused."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smdp_jax.experiment.fields import ExperimentError
from smdp_jax.experiment.run import Dataset
from smdp_jax.experiment.slices import Slice
from smdp_jax.experiment.storage import check_kept, read_arrays, read_json, read_part, write_arrays
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
        validation = dataset.validation
        tree = {
            "train": vars(dataset.train),
            "validation": None if validation is None else vars(validation),
            "truth": dict(dataset.truth),
            **facts,
        }
        write_arrays(self.data, tree)

    def read_data(self) -> tuple[Dataset, float]:
        """Read the data, and how many seconds they took."""
        tree = read_arrays(self.data, REMEDIES["data.npz"])
        tree = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, tree)
        validation = tree["validation"]
        dataset = Dataset(
            Trajectories(**tree["train"]),
            None if validation is None else Trajectories(**validation),
            tree["truth"],
        )
        return dataset, tree["seconds"]

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
