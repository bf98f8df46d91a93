"""All stages in a moment: nothing is learned."""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import smdp_jax as smdp
from smdp_jax.evaluate import Metric
from smdp_jax.experiment import Count, Dataset, Experiment, Positive

SHIFT = 1.0


def shifted(x):
    """Move."""
    return x + SHIFT


@dataclass(frozen=True)
class Config(Experiment):
    """Quickest experiment."""

    noise: Positive = 0.5
    """Noise."""
    updates: Count = 3
    """Updates."""
    draws: Count = 4
    """Samples."""
    times: tuple[Positive, ...] = (0.5, 1.0)
    """Times after 0."""

    def sde(self):
        return smdp.SDE(lambda t, x, args: -x, diffusion=self.noise)

    def simulate(self, key):
        xs = shifted(jax.random.normal(key, (4, 1 + len(self.times), 1)))
        return Dataset(smdp.Trajectories(jnp.array([0.0, *self.times]), xs))

    def model(self, data):
        return smdp.models.MLP((2,))

    def fit(self, dataset, key, **resume):
        checkpoint = Path(resume["directory"]) / "checkpoints" / str(self.updates)
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / "state").write_text("")
        data, model = dataset.train, self.model(dataset.train)
        variables = model.init(key, data.ts[0], data.at(0, 0), None)
        history = {name: np.ones(1) for name in ("step", "loss", "validation_loss", "window")}
        return smdp.Fit(
            smdp.LearnedScore(model, variables, None), history, np.ones(data.ts.size - 1)
        )

    def sample(self, run, key):
        return {"samples": np.full(self.draws, self.noise)}

    def evaluate(self, run, arrays):
        return [Metric("draws", arrays["samples"].size), Metric("lost", jnp.nan)]

    def figures(self, run, arrays):
        return {}


PRESETS = {"small": Config(), "more": Config(updates=5)}
