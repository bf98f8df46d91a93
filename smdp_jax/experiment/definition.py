"""What a config file fills in."""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jaxtyping import PRNGKeyArray

from smdp_jax.evaluate import Metric, ReportFigure
from smdp_jax.experiment.calibrated import calibrated
from smdp_jax.experiment.fields import Count, Positive, Seed, Share
from smdp_jax.experiment.run import Dataset, Run
from smdp_jax.objectives import MultiStep, PathScore
from smdp_jax.posterior.sampling import Posterior, sample_posterior
from smdp_jax.sde import SDE, State
from smdp_jax.simulate import simulate
from smdp_jax.solve.time_grids import linear_grid
from smdp_jax.training.fit import Fit, fit
from smdp_jax.trajectories import Trajectories


@dataclass(frozen=True)
class Experiment(abc.ABC):
    """One experiment: its fields are the configuration, its methods build what is run.

    A config file defines a frozen dataclass ``Config(Experiment)`` with documented fields
    (numbers, strings, bools, None, or tuples of these; ``Count``, ``Positive`` and the like have
    bounds) and a dict ``PRESETS`` of its instances by name. ``sde``, ``prior`` and ``model`` are
    enough; whatever else is defined replaces a default. Methods are pure: the same fields and key
    give the same result.
    """

    seed: Seed = 0
    """Root of all random numbers."""
    end_time: Positive = 1.0
    """When the end state is observed."""
    time_steps: Count = 50
    """Stored steps of the paths; the backward solves take these, or some of them."""
    substeps: Count = 1
    """Simulator steps in each of them."""
    trajectories: Count = 2000
    """Simulated paths to learn from."""
    steps: Count = 3000
    """Updates of the network."""
    batch_size: Count = 256
    """Windows per update."""
    learning_rate: Positive = 3e-3
    """Learning rate of Adam at the start; it falls to 0 as a cosine."""
    clip: Positive = 1.0
    """Largest norm of the gradient."""
    ema: Share = 0.99
    """Decay of the averaged parameters, which are the ones used."""
    test_cases: Count = 200
    """Held-out end states whose past is sampled."""
    posterior_samples: Count = 99
    """Posterior samples for each of them."""

    def check(self) -> None:
        """Check what fields mean together, before anything is computed; types are checked already.

        Raises
        ------
        ValueError
            If a window of the objective is longer than the paths.
        """
        windows = getattr(self.loss(), "windows", ())
        if max(windows, default=0) > self.time_steps:
            raise ValueError(f"windows must fit into {self.time_steps} time_steps, got {windows}")

    @abc.abstractmethod
    def sde(self) -> SDE:
        """Return the process that the data follow, and that is solved backward.

        Returns
        -------
        SDE
            Of one unbatched state.
        """

    def prior(self, key: PRNGKeyArray, number: int) -> State:
        """Draw states at the start.

        Parameters
        ----------
        key, number
            Randomness, and how many.

        Returns
        -------
        pytree
            Leaves (number, *state).

        Raises
        ------
        NotImplementedError
            By default: define it, or ``simulate``.
        """
        raise NotImplementedError("define Config.prior(key, number), or Config.simulate")

    def conditions(self, key: PRNGKeyArray, number: int) -> Any:
        """Draw conditions of the paths, such as parameters of the simulator.

        Parameters
        ----------
        key, number
            Randomness, and how many.

        Returns
        -------
        pytree or None
            Leaves (number, ...): ``args`` of every path. None by default.
        """
        return None

    def paths(self, key: PRNGKeyArray, number: int) -> Trajectories:
        """Simulate paths from the prior.

        Parameters
        ----------
        key, number
            Randomness, and how many.

        Returns
        -------
        Trajectories
            On equal steps, with score targets where the objective asks for them.
        """
        k_prior, k_noise, k_conditions = jax.random.split(key, 3)
        args = self.conditions(k_conditions, number)
        how = {"args": args, "args_axes": None if args is None else 0, "substeps": self.substeps}
        how["score_targets"] = isinstance(self.loss(), PathScore)
        ts = linear_grid(0.0, self.end_time, self.time_steps)
        return simulate(self.sde(), self.prior(k_prior, number), ts, key=k_noise, **how)

    def simulate(self, key: PRNGKeyArray) -> Dataset:
        """Make the data.

        Parameters
        ----------
        key : PRNG key
            Randomness of this stage.

        Returns
        -------
        Dataset
            Paths and known answers. By default ``test_cases`` of the held-out paths are both
            validation and truth.
        """
        k_train, k_held_out = jax.random.split(key)
        return Dataset(
            self.paths(k_train, self.trajectories), self.paths(k_held_out, self.test_cases)
        )

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

    def loss(self) -> Any:
        """Return what is minimised.

        Returns
        -------
        Objective
            By default windows of 1, 2 and 4 steps.
        """
        return MultiStep((1, 2, 4))

    def optimizer(
        self, steps: int | None = None, learning_rate: float | None = None, **adam: Any
    ) -> optax.GradientTransformation:
        """Return the optimiser: Adam with clipped gradients, its rate falling to 0 as a cosine.

        Parameters
        ----------
        steps, learning_rate : optional
            Updates, and the rate at the start; default the fields of the configuration.
        **adam
            Other options of ``optax.adam``.

        Returns
        -------
        optax.GradientTransformation
            The chain.
        """
        rate = optax.cosine_decay_schedule(learning_rate or self.learning_rate, steps or self.steps)
        return optax.chain(optax.clip_by_global_norm(self.clip), optax.adam(rate, **adam))

    def fit(self, dataset: Dataset, key: PRNGKeyArray, **options: Any) -> Fit:
        """Learn the score.

        Parameters
        ----------
        dataset, key
            What ``simulate`` returned, and randomness of this stage.
        **options
            Of ``smdp_jax.fit``, in place of what the other methods and fields say. A method of
            your own hands them on: they say where checkpoints are kept.

        Returns
        -------
        Fit
            Of the network ``self.model(dataset.train)``.
        """
        given = {
            "sde": self.sde(),
            "data": dataset.train,
            "objective": self.loss(),
            "optimizer": self.optimizer(),
            "steps": self.steps,
            "batch_size": self.batch_size,
            "ema": self.ema,
            "validation": dataset.validation,
        }
        model = options.pop("model", None) or self.model(dataset.train)
        return fit(model=model, key=key, **(given | options))

    def sample(self, run: Run, key: PRNGKeyArray) -> dict[str, Any]:
        """Compute all that needs the learned term: posterior samples, scores on grids.

        Parameters
        ----------
        run, key
            The trained run, and randomness of this stage.

        Returns
        -------
        dict
            Arrays by name; all that ``evaluate`` and ``figures`` need. By default samples of the
            past of held-out end states, and as "calibration" ``dataclasses.asdict`` of a
            ``calibration_report`` on them.
        """
        k_past, k_ranks = jax.random.split(key)
        held_out = run.dataset.validation or run.data
        x_end = jax.tree.map(lambda x: x[:, -1], held_out.xs)
        how = {"num_samples": self.posterior_samples, "key": k_past, "args": held_out.args}
        past = self.posterior(run, x_end, **how)
        ranks = calibrated(run.sde, run.learned, held_out, key=k_ranks, drawn=past)
        return {"samples": past.samples, **ranks}

    def evaluate(self, run: Run, arrays: Mapping[str, Any]) -> Sequence[Metric]:
        """Compare with the truth.

        Parameters
        ----------
        run, arrays
            The trained run, and what ``sample`` returned.

        Returns
        -------
        sequence of Metric
            Each with a name of its own, and the target where there is one. By default the miss of
            one step. The rows of ``arrays["calibration"]`` are added to them.
        """
        name = "squared miss of a backward step / its noise, median over time"
        return [Metric(name, np.median(run.step_miss), 1.0, note="the optimum")]

    def figures(self, run: Run, arrays: Mapping[str, Any]) -> Mapping[str, ReportFigure]:
        """Draw; nothing is computed here.

        Parameters
        ----------
        run, arrays
            The trained run, and what ``sample`` returned.

        Returns
        -------
        dict
            Figures with captions by file name, in the order of the report. By default none. Those
            of ``arrays["calibration"]``, of training and of the miss of one step are added.
        """
        return {}

    def posterior(
        self, run: Run, x_end: State, *, num_samples: int, key: PRNGKeyArray, args: Any = None
    ) -> Posterior:
        """Sample the past of end states: what ``python -m smdp_jax sample`` does.

        Parameters
        ----------
        run : Run
            The trained run.
        x_end, num_samples, key, args
            End states, leaves (n, *state), samples per end state, randomness, and conditions,
            leaves (n, ...).

        Returns
        -------
        Posterior
            By default ``sample_posterior`` on the time grid of the data.
        """
        how = {"args": args, "args_axes": None if args is None else 0, "batch_axes": 1}
        given = (run.sde, run.learned, x_end, run.data.ts)
        return sample_posterior(*given, num_samples=num_samples, key=key, **how)
