"""What a config file fills in (``Experiment``), and what a finished run holds (``Run``)."""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
from jaxtyping import PRNGKeyArray

from smdp_jax.evaluate import Metric, ReportFigure
from smdp_jax.experiment.fields import Seed
from smdp_jax.posterior import Posterior, sample_posterior
from smdp_jax.scores.learned import LearnedScore, StepCorrection
from smdp_jax.sde import SDE, State
from smdp_jax.training.fit import Fit
from smdp_jax.trajectories import Trajectories

__all__ = ["Dataset", "Experiment", "Run"]


@dataclass(frozen=True)
class Dataset:
    """What the first stage makes.

    Parameters
    ----------
    train : Trajectories
        Paths to learn from.
    validation : Trajectories, optional
        Paths that are not learned from: validation loss, and the miss of one step.
    truth : dict
        Known answers to be compared with (arrays, or dicts of them): tables of a reference
        solution, test states and what was observed of them.
    """

    train: Trajectories
    validation: Trajectories | None = None
    truth: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment(abc.ABC):
    """One experiment: its fields are the configuration, its methods build what is run.

    A config file defines a frozen dataclass ``Config(Experiment)`` with documented fields
    (numbers, strings, bools, None, or tuples of these) and a dict ``PRESETS`` of its instances by
    name. Methods are pure: the same fields and key give the same result.

    Parameters
    ----------
    seed : int
        Root of all random numbers.
    """

    seed: Seed = 0

    def check(self) -> None:  # noqa: B027 nothing to check by default
        """Check what fields mean together, before anything is computed; types are checked already.

        Raises
        ------
        ValueError
            By default never.
        """

    @abc.abstractmethod
    def sde(self) -> SDE:
        """Return the forward process.

        Returns
        -------
        SDE
            What the data follow, and what is solved backward.
        """

    @abc.abstractmethod
    def simulate(self, key: PRNGKeyArray) -> Dataset:
        """Make the data.

        Parameters
        ----------
        key : PRNG key
            Randomness of this stage.

        Returns
        -------
        Dataset
            Paths and known answers.
        """

    @abc.abstractmethod
    def model(self, data: Trajectories) -> nn.Module:
        """Return the network.

        Parameters
        ----------
        data : Trajectories
            Training paths, for scales and spectra that the network is built with.

        Returns
        -------
        flax.linen.Module
            Called as ``model(t, x, args)``, see ``smdp_jax.fit``.
        """

    @abc.abstractmethod
    def fit(self, dataset: Dataset, key: PRNGKeyArray, **resume: Any) -> Fit:
        """Learn the score.

        Parameters
        ----------
        dataset : Dataset
            What ``simulate`` returned.
        key : PRNG key
            Randomness of this stage.
        **resume
            Hand these on to ``smdp_jax.fit``: they say where checkpoints are kept.

        Returns
        -------
        Fit
            Of the network ``self.model(dataset.train)``.
        """

    @abc.abstractmethod
    def sample(self, run: "Run", key: PRNGKeyArray) -> dict[str, Any]:
        """Compute all that needs the learned term: posterior samples, scores on grids.

        Parameters
        ----------
        run : Run
            The trained run.
        key : PRNG key
            Randomness of this stage.

        Returns
        -------
        dict
            Arrays by name; all that ``evaluate`` and ``figures`` need.
        """

    @abc.abstractmethod
    def evaluate(self, run: "Run", arrays: Mapping[str, Any]) -> Sequence[Metric]:
        """Compare with the truth.

        Parameters
        ----------
        run : Run
            The trained run.
        arrays : dict
            What ``sample`` returned.

        Returns
        -------
        sequence of Metric
            Each with a name of its own, and the target where there is one.
        """

    @abc.abstractmethod
    def figures(self, run: "Run", arrays: Mapping[str, Any]) -> Mapping[str, ReportFigure]:
        """Draw; nothing is computed here.

        Parameters
        ----------
        run : Run
            The trained run.
        arrays : dict
            What ``sample`` returned.

        Returns
        -------
        dict
            Figures with captions by file name, in the order of the report. The training curve and
            the miss of one step are added to them.
        """

    def posterior(
        self, run: "Run", x_end: State, *, num_samples: int, key: PRNGKeyArray, args: Any = None
    ) -> Posterior:
        """Sample the past of end states: what ``python -m smdp_jax sample`` does.

        Parameters
        ----------
        run : Run
            The trained run.
        x_end : pytree
            End states, leaves (n, *state).
        num_samples : int
            Samples per end state.
        key : PRNG key
            Randomness.
        args : pytree, optional
            Conditions, leaves (n, ...).

        Returns
        -------
        Posterior
            By default ``sample_posterior`` on the time grid of the data.
        """
        return sample_posterior(
            run.sde,
            run.learned,
            x_end,
            run.data.ts,
            num_samples=num_samples,
            key=key,
            args=args,
            args_axes=None if args is None else 0,
            batch_axes=1,
        )


@dataclass(frozen=True)
class Run:
    """A trained run.

    Parameters
    ----------
    config : Experiment
        The resolved configuration.
    sde : SDE
        The forward process.
    dataset : Dataset
        Simulated paths and known answers.
    learned : LearnedScore or StepCorrection
        What training returned, EMA parameters.
    history : dict of arrays
        Training by epoch, see ``smdp_jax.Fit``.
    step_miss : array (times - 1,)
        Squared miss of one backward step over its noise variance, by time.
    directory : Path
        Where it lies.
    """

    config: Experiment
    sde: SDE
    dataset: Dataset
    learned: LearnedScore | StepCorrection
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
        """The learned score.

        Raises
        ------
        TypeError
            If training learned a step correction.
        """
        return Fit(self.learned, dict(self.history), self.step_miss).score

    @property
    def correction(self) -> StepCorrection:
        """The learned step correction.

        Raises
        ------
        TypeError
            If training learned a score.
        """
        return Fit(self.learned, dict(self.history), self.step_miss).correction
