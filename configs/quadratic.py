"""Quadratic drift from two starting points: the paper's scalar experiment, with an exact reference.

dx = -rate sign(x) x² dt + noise dW starts at +1 or -1 and forgets where: at t = 10 both starts lie
within one standard deviation of each other. Density, score and posterior come from a
Fokker-Planck solve. Small: 250 paths (10 % of the paper's data); paper: 2500.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import jax
import optax
from jaxtyping import PRNGKeyArray

import smdp_jax as smdp
from smdp_jax import physics
from smdp_jax.evaluate import Metric, ReportFigure
from smdp_jax.experiment import Count, Dataset, Experiment, NotNegative, Positive, Run, Share
from smdp_jax.objectives import Objective
from smdp_jax.studies import two_starts


@dataclass(frozen=True)
class Config(Experiment):
    """The quadratic SDE. Fields are the configuration, methods build what is run."""

    rate: Positive = 7.0
    """Coefficient of the drift, in 1 / (time state)."""
    noise: Positive = 0.03
    """Noise amplitude g, in state / sqrt(time)."""
    end_time: Positive = 10.0
    time_steps: Count = 500
    time_offset: NotNegative = 1.0
    """Steps grow with t beyond this time: the paths start from two points, and early states say
    most about where the others come from."""
    substeps: Count = 20
    trajectories: Count = 250
    """Simulated paths to learn from, half of them from each start."""
    objective: Literal["path_score", "one_step", "multi_step"] = "multi_step"
    """What is minimised: regression on score targets, or the paper's losses on windows of steps."""
    windows: tuple[Count, ...] = (1, 2, 4, 10)
    """Steps per window of multi_step, trained one after the other."""
    form: Literal["backward", "bidirectional", "penalised"] = "backward"
    """Form of the losses on windows, see MultiStep."""
    precondition: bool = True
    """Start from the score of the Gaussian with the data's mean and variance, or from 0."""
    steps: Count = 40_000
    learning_rate: Positive = 1e-2
    ema: Share = 0.999
    test_cases: Count = 1000
    """End states whose past is sampled, equally spaced; a multiple of 20."""
    posterior_samples: Count = 40

    def system(self) -> physics.Quadratic:
        return physics.Quadratic(self.rate, self.noise)

    def check(self) -> None:
        super().check()
        two_starts.check_end_points(self.test_cases)

    def sde(self) -> smdp.SDE:
        return self.system().sde()

    def simulate(self, key: PRNGKeyArray) -> Dataset:
        k_train, k_validation = jax.random.split(key)
        reference = physics.reference(self.system(), end_time=self.end_time)
        table = {f.name: getattr(reference.plus, f.name) for f in fields(reference.plus)}
        return Dataset(
            train=self.paths(k_train, self.trajectories),
            validation=self.paths(k_validation, 200),
            truth={"density_from_plus_one": table},
        )

    def paths(self, key: PRNGKeyArray, number: int) -> smdp.Trajectories:
        k_prior, k_noise = jax.random.split(key)
        return smdp.simulate(
            self.sde(),
            self.system().prior(k_prior, number),
            smdp.log_grid(0.0, self.end_time, self.time_steps, offset=self.time_offset),
            key=k_noise,
            substeps=self.substeps,
            score_targets=self.objective == "path_score",
        )

    def model(self, data: smdp.Trajectories) -> smdp.models.MLP:
        return smdp.models.MLP()

    def loss(self) -> Objective:
        objectives = {
            "path_score": smdp.PathScore(),
            "one_step": smdp.OneStep(form=self.form),
            "multi_step": smdp.MultiStep(self.windows, form=self.form, rematerialise=False),
        }
        return objectives[self.objective]

    def optimizer(self, *given: Any, **adam: Any) -> optax.GradientTransformation:
        return super().optimizer(*given, b2=0.99, **adam)

    def fit(self, dataset: Dataset, key: PRNGKeyArray, **resume: Any) -> smdp.Fit:
        return super().fit(dataset, key, precondition=self.precondition, **resume)

    def sample(self, run: Run, key: PRNGKeyArray) -> dict[str, Any]:
        from_plus = physics.Transition(**run.truth["density_from_plus_one"])
        exact = physics.Reference(from_plus)

        def path_density(t, x, x_end):
            # Exact up to 1e-3 at early times: x_T tells the start, and hardly the path from there.
            plus = exact.posterior_plus(self.end_time, x_end)
            return plus * from_plus.density(t, x) + (1 - plus) * from_plus.density(t, -x)

        return two_starts.sample(
            run,
            exact,
            path_density,
            key,
            middle=0.5,
            end_points=self.test_cases,
            num_samples=self.posterior_samples,
            field_reach=0.4,
        )

    def evaluate(self, run: Run, arrays: Mapping[str, Any]) -> Sequence[Metric]:
        many = self.trajectories >= 2500
        if self.objective == "path_score":
            score_error = 0.05 if many else 0.10
        else:
            score_error = 0.12 if many else 0.25
        targets = two_starts.Targets(
            score_error,
            flow_hits=0.98 if many else 0.95,
            sde_hits=0.99 if many else 0.97,
            probability_error=0.03,
        )
        return two_starts.evaluate(arrays, targets)

    def figures(self, run: Run, arrays: Mapping[str, Any]) -> Mapping[str, ReportFigure]:
        return two_starts.figures(arrays)


PRESETS = {
    "small": Config(),
    "paper": Config(trajectories=2500, windows=(1, 1, 1, 2, 4, 10), steps=60_000, batch_size=1024),
}
