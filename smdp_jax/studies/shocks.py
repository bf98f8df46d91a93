"""Data and network of the experiments on Burgers' equation."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.experiment.definition import Experiment
from smdp_jax.experiment.fields import Count, Positive
from smdp_jax.experiment.run import Dataset
from smdp_jax.models.published import burgers_resnet
from smdp_jax.models.spectral import SpectralPreconditioned
from smdp_jax.models.spectrum import Spectrum
from smdp_jax.models.time_features import Fourier
from smdp_jax.objectives.path_score import PathScore
from smdp_jax.physics.burgers import Burgers
from smdp_jax.scores.targets import SinhRamp
from smdp_jax.simulate import simulate
from smdp_jax.solve.time_grids import linear_grid
from smdp_jax.trajectories import Trajectories


@dataclass(frozen=True)
class Shocks(Experiment):
    """Burgers' equation driven by noise, from a smooth field until after its shocks have formed."""

    size: Count = 128
    """Grid points of the unit interval."""
    viscosity: Positive = 0.01
    """Viscosity, in length² / time."""
    noise: Positive = 0.05
    """Noise amplitude g per grid point, in units of u / sqrt(time)."""
    amplitude: Positive = 0.4
    """Root mean square of the initial field, in length / time."""
    end_time: Positive = 0.1
    channels: Count = 32
    """Channels of the residual network."""
    blocks: Count = 4
    """Blocks of the residual network."""

    def system(self) -> Burgers:
        return Burgers(
            self.size, self.viscosity, self.noise, self.end_time, self.amplitude, inner_steps=1
        )

    def simulate(self, key: PRNGKeyArray) -> Dataset:
        k_train, k_validation, k_test = jax.random.split(key, 3)
        test = self.paths(k_test, self.test_cases, targets=False)
        return Dataset(
            self.paths(k_train, self.trajectories),
            self.paths(k_validation, 64),
            truth={"paths": test.xs},
        )

    def times(self) -> Array:
        """Stored times, and steps back."""
        return linear_grid(0.0, self.end_time, self.time_steps)

    def paths(
        self, key: PRNGKeyArray, number: int, targets: bool = True, **how: Any
    ) -> Trajectories:
        k_prior, k_noise = jax.random.split(key)
        system = self.system()
        # The shear of the flow spreads perturbations, too: a rate that viscosity does not know.
        ramp = SinhRamp(system.decay_rates() + 4.0, system.transform)
        return simulate(
            how.pop("sde", None) or self.sde(),
            system.prior(k_prior, number),
            self.times(),
            key=k_noise,
            substeps=self.substeps,
            score_targets=ramp if targets and isinstance(self.loss(), PathScore) else False,
            **how,
        )

    def model(self, data: Trajectories) -> nn.Module:
        # Smooth in t, so that it extends to t = 0, where there is nothing to learn from.
        time_features = Fourier(3, self.end_time / 2, 4 * self.end_time)
        net = burgers_resnet(
            channels=self.channels, blocks=self.blocks, time_features=time_features
        )
        spectrum = Spectrum.from_trajectories(data.ts, data.xs, floor=0.5)
        return SpectralPreconditioned(net, spectrum)
