"""What a run holds: its data, and all of it once it is trained."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from smdp_jax.scores.kernel import LearnedKernel
from smdp_jax.scores.learned import LearnedScore, StepCorrection
from smdp_jax.sde import SDE
from smdp_jax.training.fit import Fit
from smdp_jax.trajectories import Trajectories


@dataclass(frozen=True)
class Dataset:
    """What the first stage makes.

    Parameters
    ----------
    train, validation : Trajectories
        Paths to learn from, and, optional, others for the validation loss and the miss of a step.
    truth : dict
        Known answers to be compared with (arrays, or dicts of them): tables of a reference
        solution, test states and what was observed of them.
    """

    train: Trajectories
    validation: Trajectories | None = None
    truth: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A trained run.

    Parameters
    ----------
    config, sde, dataset : Experiment, SDE, Dataset
        The resolved configuration, the forward process, simulated paths and known answers.
    learned : LearnedScore, StepCorrection or LearnedKernel
        What training returned, EMA parameters.
    history : dict of arrays
        Training by epoch, see ``smdp_jax.Fit``.
    step_miss, directory : array (times - 1,), Path
        Squared miss of one backward step over its noise variance, by time; where all lies.
    """

    config: Any
    sde: SDE
    dataset: Dataset
    learned: LearnedScore | StepCorrection | LearnedKernel
    history: Mapping[str, np.ndarray]
    step_miss: np.ndarray
    directory: Path

    @property
    def data(self) -> Trajectories:
        """Training paths."""
        return self.dataset.train

    @property
    def truth(self) -> Mapping[str, Any]:
        """Known answers."""
        return self.dataset.truth

    @property
    def score(self) -> LearnedScore:
        """The learned score; a TypeError where training learned something else."""
        return self._fit.score

    @property
    def correction(self) -> StepCorrection:
        """The learned step correction; a TypeError where training learned something else."""
        return self._fit.correction

    @property
    def kernel(self) -> LearnedKernel:
        """The learned backward kernel; a TypeError where training learned something else."""
        return self._fit.kernel

    @property
    def _fit(self) -> Fit:
        return Fit(self.learned, dict(self.history), self.step_miss)
