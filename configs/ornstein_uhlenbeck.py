"""Ornstein-Uhlenbeck process in two dimensions: the smallest experiment, to be copied for your own.

A process, a prior and a network are all that it says; data, training, held-out end states, and the
tests of their posteriors are those that every experiment gets.
"""

from dataclasses import dataclass

import jax

import smdp_jax as smdp
from smdp_jax.experiment import Experiment, Positive


@dataclass(frozen=True)
class Config(Experiment):
    """The Ornstein-Uhlenbeck process."""

    noise: Positive = 0.5
    """Noise amplitude g, in state / sqrt(time)."""

    def sde(self):
        return smdp.SDE(lambda t, x, args: -x, diffusion=self.noise)

    def prior(self, key, number):
        return jax.random.normal(key, (number, 2))

    def model(self, data):
        return smdp.models.MLP()


PRESETS = {"small": Config(), "paper": Config(trajectories=20_000, steps=20_000)}
