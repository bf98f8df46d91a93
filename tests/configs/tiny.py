"""An Ornstein-Uhlenbeck process, small enough to be run in every test.

Gaussian, so that the posterior mean is known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray

import smdp_jax as smdp
from smdp_jax.evaluate import Metric, ReportFigure
from smdp_jax.experiment import Dataset, Experiment, Run


@dataclass(frozen=True)
class Config(Experiment):
    """Smallest experiment."""

    seed: int = 0
    """Root of all random numbers."""
    steps: int = 40
    """Updates of the network."""
    learning_rate: float = 1e-2
    """Learning rate of Adam."""
    widths: tuple[int, ...] = (8,)
    """Hidden layers."""
    as_flow_map: bool = False
    """Learn a step correction instead of a score."""
    kind: Literal["a", "b"] = "a"
    """Nothing."""

    def sde(self) -> smdp.SDE:
        if self.as_flow_map:
            return smdp.SDE(step=lambda t0, t1, x, args: x * jnp.exp(t0 - t1), diffusion=0.5)
        return smdp.SDE(lambda t, x, args: -x, diffusion=0.5)

    def simulate(self, key: PRNGKeyArray) -> Dataset:
        k_prior, k_noise, k_truth = jax.random.split(key, 3)
        x0 = jax.random.normal(k_prior, (16, 1))
        ts = smdp.linear_grid(0.0, 1.0, 8)
        data = smdp.simulate(self.sde(), x0, ts, key=k_noise)
        return Dataset(data, truth={"x_end": jax.random.normal(k_truth, (3, 1))})

    def model(self, data: smdp.Trajectories) -> smdp.models.MLP:
        return smdp.models.MLP(self.widths)

    def fit(self, dataset: Dataset, key: PRNGKeyArray, **resume: Any) -> smdp.Fit:
        return smdp.fit(
            self.sde(),
            self.model(dataset.train),
            dataset.train,
            smdp.OneStep(),
            optax.adam(self.learning_rate),
            steps=self.steps,
            batch_size=16,
            epoch_steps=10,
            key=key,
            **resume,
        )

    def sample(self, run: Run, key: PRNGKeyArray) -> dict[str, Any]:
        past = self.posterior(run, run.truth["x_end"], num_samples=4, key=key)
        return {"samples": past.samples}

    def evaluate(self, run: Run, arrays: Mapping[str, Any]) -> Sequence[Metric]:
        return [Metric("mean", arrays["samples"].mean(), 0.0), Metric("lost", jnp.nan)]

    def figures(self, run: Run, arrays: Mapping[str, Any]) -> Mapping[str, ReportFigure]:
        return {}


PRESETS = {"small": Config(), "paper": Config(steps=80, kind="b")}
