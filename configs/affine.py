"""Affine drift from two starting points: every answer is known in closed form.

dx = -rate x dt + noise dW starts at +1 or -1. Which one was it, given where the path ended? Score
and posterior have closed forms, so this is the first test of a solver or an objective, and the
shortest example of an experiment: copy it for your own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax
from jaxtyping import PRNGKeyArray

import smdp_jax as smdp
from smdp_jax import physics
from smdp_jax.evaluate import Metric, ReportFigure
from smdp_jax.experiment import Count, Dataset, Experiment, Positive, Run, Share
from smdp_jax.objectives import Objective
from smdp_jax.studies import two_starts


@dataclass(frozen=True)
class Config(Experiment):
    """The affine SDE. Fields are the configuration, methods build what is run."""

    rate: Positive = 0.5
    """Decay rate of the state, in 1 / time."""
    noise: Positive = 0.04
    """Noise amplitude g, in state / sqrt(time)."""
    end_time: Positive = 10.0
    time_steps: Count = 500
    substeps: Count = 10
    trajectories: Count = 16_000
    """Simulated paths to learn from, half of them from each start."""
    objective: Literal["path_score", "one_step", "multi_step"] = "path_score"
    """What is minimised: regression on score targets, or the paper's losses on windows of steps."""
    windows: tuple[Count, ...] = (1, 2, 4, 10)
    """Steps per window of multi_step, trained one after the other."""
    steps: Count = 15_000
    batch_size: Count = 512
    learning_rate: Positive = 1e-2
    ema: Share = 0.999
    test_cases: Count = 1000
    """End states whose past is sampled, equally spaced; a multiple of 20."""
    posterior_samples: Count = 40

    def system(self) -> physics.Affine:
        return physics.Affine(self.rate, self.noise)

    def check(self) -> None:
        super().check()
        two_starts.check_end_points(self.test_cases)

    def sde(self) -> smdp.SDE:
        return self.system().sde()

    def simulate(self, key: PRNGKeyArray) -> Dataset:
        k_train, k_validation = jax.random.split(key)
        return Dataset(
            train=self.paths(k_train, self.trajectories), validation=self.paths(k_validation, 200)
        )

    def prior(self, key: PRNGKeyArray, number: int) -> jax.Array:
        return self.system().prior(key, number)

    def model(self, data: smdp.Trajectories) -> smdp.models.MLP:
        return smdp.models.MLP()

    def loss(self) -> Objective:
        objectives = {
            "path_score": smdp.PathScore(),
            "one_step": smdp.OneStep(),
            "multi_step": smdp.MultiStep(self.windows),
        }
        return objectives[self.objective]

    def optimizer(self, *given: Any, **adam: Any) -> optax.GradientTransformation:
        return super().optimizer(*given, b2=0.99, **adam)

    def sample(self, run: Run, key: PRNGKeyArray) -> dict[str, Any]:
        system = self.system()

        def path_density(t, x, x_end):
            weights, means, variance = system.bridge_mixture(t, self.end_time, x_end)
            return weights @ jax.scipy.stats.norm.pdf(x, means, variance**0.5)

        return two_starts.sample(
            run,
            system,
            path_density,
            key,
            middle=2.0,
            end_points=self.test_cases,
            num_samples=self.posterior_samples,
        )

    def evaluate(self, run: Run, arrays: Mapping[str, Any]) -> Sequence[Metric]:
        targets = two_starts.Targets(score_error=0.05, probability_error=0.03)
        return two_starts.evaluate(arrays, targets)

    def figures(self, run: Run, arrays: Mapping[str, Any]) -> Mapping[str, ReportFigure]:
        return two_starts.figures(arrays)


PRESETS = {"small": Config(), "paper": Config(trajectories=10_000, steps=50_000)}
