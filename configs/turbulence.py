"""Forced turbulence: back in time by a learned inverse of the physics and a learned correction.

dw = (-u . grad w + viscosity Laplace w - drag w + F) dt + noise dW, the vorticity w on the unit
torus. Viscosity forgets the small scales, and no simulator walks back over the window. First a
network that does not see the time learns the inverse of one stored step, from noise-free steps of
the simulator; then another one learns, on windows of backward steps through that inverse, what the
score has to add. Small: a statistically stationary flow. Paper: the growing flow of Li et al.
(2021), simulated on a finer grid than it is stored on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

import smdp_jax as smdp
from smdp_jax import evaluate, models, physics
from smdp_jax.evaluate import Metric, ReportFigure
from smdp_jax.experiment import Count, Dataset, Experiment, NotNegative, Positive, Run, calibrated
from smdp_jax.scores.step import carried_by, carrying
from smdp_jax.studies import noise_free, reversed_flow


@dataclass(frozen=True)
class Config(Experiment):
    """Forced turbulence. Fields are the configuration, methods build what is run."""

    size: Count = 32
    """Grid points per side of the stored fields."""
    simulated_size: Count = 32
    """Grid points per side of the simulation, at least as many."""
    viscosity: Positive = 1e-3
    """Viscosity, in length² / time."""
    drag: NotNegative = 0.2
    """Drag on all scales, in 1 / time."""
    forcing: Literal["none", "diagonal", "kolmogorov"] = "kolmogorov"
    """Kind of forcing."""
    forcing_amplitude: NotNegative = 0.4
    """Amplitude of the forcing."""
    forcing_wavenumber: Count = 2
    """Periods of the forcing per side."""
    noise: Positive = 0.6
    """Noise amplitude g per stored grid point, in units of vorticity / sqrt(time)."""
    spin_up: NotNegative = 16.0
    """Time for which draws of the prior flow, without noise, before the first stored time."""
    end_time: Positive = 2.0
    reconstructed_time: NotNegative = 0.0
    """Stored time that paths are solved back to."""
    time_steps: Count = 20
    substeps: Count = 4
    """Simulator steps with noise in each of them."""
    trajectories: Count = 384
    network: Literal["fno", "dilated_resnet"] = "fno"
    """Kind of both networks."""
    modes: Count = 11
    """Fourier modes that layers of the operator keep along each axis."""
    width: Count = 20
    """Channels of both networks."""
    layers: Count = 4
    """Layers of the operator, or blocks of the residual network."""
    inverse_steps: Count = 3000
    """Updates of the learned inverse."""
    steps: Count = 2000
    """Updates of the correction."""
    windows: tuple[Count, ...] = (1, 1, 2, 4, 8)
    """Steps per window, trained one after the other."""
    batch_size: Count = 8
    learning_rate: Positive = 2e-3
    test_cases: Count = 20
    """End states whose past is sampled."""
    posterior_samples: Count = 13
    chunk: Count = 64
    """Paths simulated or solved at once: the fewer, the less memory."""

    def system(self) -> physics.Turbulence:
        return self.simulator(self.size, self.substeps)

    def simulator(self, size: int, inner_steps: int) -> physics.Turbulence:
        return physics.Turbulence(
            size,
            self.viscosity,
            self.drag,
            self.forcing,
            self.forcing_amplitude,
            self.forcing_wavenumber,
            # White noise loses power when the grid becomes coarser: stored, it is self.noise.
            self.noise * size / self.size,
            self.end_time,
            inner_steps,
        )

    def step(self, t0: Any, t1: Any, x: Any, args: Any = None) -> Any:
        fine = self.simulator(self.simulated_size, self.substeps)
        x = fine.step(t0, t1, physics.refine(x, self.simulated_size), args)
        return physics.coarsen(x, self.size)

    def sde(self) -> smdp.SDE:
        whole = self.simulated_size == self.size
        return smdp.SDE(step=self.system().step if whole else self.step, diffusion=self.noise)

    def simulate(self, key: PRNGKeyArray) -> Dataset:
        ts = smdp.linear_grid(0.0, self.end_time, self.time_steps)
        train, unseen = self.trajectories, min(32, self.trajectories)
        xs = self.states(key, ts, train + unseen + self.test_cases)
        first = int(np.abs(np.asarray(ts) - self.reconstructed_time).argmin())
        return Dataset(
            train=smdp.Trajectories(ts, xs[:train]),
            validation=smdp.Trajectories(ts, xs[train : train + unseen]),
            truth={"paths": xs[train + unseen :, first:]},
        )

    def states(self, key: PRNGKeyArray, ts: jax.Array, number: int) -> jax.Array:
        system = self.simulator(self.simulated_size, 1)
        sde, length = system.sde(), self.end_time / self.time_steps / self.substeps
        calls = max(1, math.ceil(self.spin_up / length - 1e-6))
        chunk = min(self.chunk, number)

        @jax.jit
        def starts(key: PRNGKeyArray) -> jax.Array:
            x = system.prior(key, chunk)
            return physics.spin_up(system.step, x, time=self.spin_up, calls=calls)

        parts = []
        # In chunks, of which only the stored grid is kept.
        for i in range(math.ceil(number / chunk)):
            k_prior, k_noise = jax.random.split(jax.random.fold_in(key, i))
            xs = smdp.simulate(sde, starts(k_prior), ts, key=k_noise, substeps=self.substeps).xs
            system.check_step(length, xs[:, -1])
            if self.simulated_size != self.size:
                xs = jax.vmap(jax.vmap(lambda x: physics.coarsen(x, self.size)))(xs)
            parts.append(np.asarray(xs))
        return jnp.asarray(np.concatenate(parts)[:number])

    def net(self, **options: Any) -> nn.Module:
        if self.network == "dilated_resnet":
            return models.DilatedResNet(channels=self.width, blocks=self.layers, **options)
        return models.FNO(
            modes=self.modes, width=self.width, layers=self.layers, projection=64, **options
        )

    def model(self, data: smdp.Trajectories) -> nn.Module:
        net = self.net(time_features=models.Fourier(3, self.end_time / 2, 4 * self.end_time))
        # Per mode, not per wavenumber: the 2/3 rule advects only part of a shell. Below,
        # the noise of one step, which the sampler adds also to modes that the data lack.
        variance = jax.vmap(models.mode_variance, in_axes=1)(data.xs)
        least = 0.6 * self.noise**2 * self.end_time / self.time_steps
        spectrum = models.Spectrum(data.ts, jnp.maximum(variance, least))
        return models.SpectralPreconditioned(net, spectrum, spectral_gain=True)

    def loss(self) -> smdp.MultiStep:
        return smdp.MultiStep(self.windows, rematerialise=False)

    def fit(self, dataset: Dataset, key: PRNGKeyArray, **resume: Any) -> smdp.Fit:
        k_inverse, k_init, k_correction = jax.random.split(key, 3)
        model, history = self.model(dataset.train), {}
        initial = resume.pop("initial", None)
        if initial is None:
            # Noise-free steps, so that what the noise asks for is left to the correction.
            alone = self._fit(
                "inverse",
                dataset,
                k_inverse,
                self.inverse_steps,
                sde=self.sde(),
                model=self.net(time_features="raw"),
                objective=smdp.InverseStep(noise_free=True),
                **resume,
            )
            first = dataset.train.at(0, -1)
            fresh = jax.jit(model.init)(k_init, dataset.train.ts[-1], first, None)
            initial = carrying(smdp.LearnedScore(model, fresh), alone.step)
            history = {f"inverse_{name}": v for name, v in alone.history.items()}
        sde = replace(self.sde(), inverse=self.inverse(initial))
        fit = self._fit(
            "correction",
            dataset,
            k_correction,
            self.steps,
            sde=sde,
            model=model,
            objective=self.loss(),
            initial=initial,
            **resume,
        )
        return replace(fit, history={**fit.history, **history})

    def _fit(
        self, part: str, dataset: Dataset, key: PRNGKeyArray, steps: int, **options: Any
    ) -> smdp.Fit:
        folder = options.pop("directory", None)
        where = {"directory": folder and Path(folder) / part, "optimizer": self.optimizer(steps)}
        how = {"steps": steps, "precondition": False, "epoch_steps": 50}
        return super().fit(dataset, key, **where, **how, **options)

    def inverse(self, learned: Any) -> smdp.LearnedStep:
        return carried_by(learned, self.net(time_features="raw"))

    def backward(self, run: Run) -> tuple[smdp.SDE, jax.Array]:
        # The process as the correction knows it, and the times that paths are solved on.
        first = run.data.num_times - run.truth["paths"].shape[1]
        return replace(run.sde, inverse=self.inverse(run.learned)), run.data.ts[first:]

    def posterior(
        self, run, x_end, *, num_samples, key, args=None, save: Any = "last"
    ) -> smdp.Posterior:
        sde, ts = self.backward(run)
        return smdp.sample_posterior(
            sde,
            run.correction,
            x_end,
            ts,
            num_samples=num_samples,
            key=key,
            # Noise of the last step would be all there is at the smallest scales.
            denoise_last=True,
            save=save,
            batch_axes=1,
            chunk_size=self.chunk,
        )

    def noise_free(self, run: Run, x_end: Any) -> Any:
        # The probability flow takes half of the score, which steps as long as these don't let a
        # correction have; windows train the path without noise.
        sde, ts = self.backward(run)
        step: Any = smdp.reverse_sde(sde, run.correction).step
        walk = jax.vmap(lambda x: noise_free.walk(step, x, -ts[::-1], save="all")[::-1])
        return jax.jit(walk)(x_end)

    def sample(self, run: Run, key: PRNGKeyArray) -> dict[str, Any]:
        k_past, k_ranks = jax.random.split(key)
        inverse, ts = self.inverse(run.learned), self.backward(run)[1]
        paths = run.truth["paths"]
        x_end = paths[:, -1]
        past = self.posterior(run, x_end, num_samples=self.posterior_samples, key=k_past)
        # Sample i of the first end state has the key that it had among all of them.
        shown = self.posterior(run, x_end[:1], num_samples=2, key=k_past, save="all").samples[0]
        alone = self.noise_free(run, x_end)
        walk: Any = run.sde.step
        arrays = reversed_flow.sample(walk, inverse, ts, paths, past.samples, alone)
        ranks = calibrated(
            run.sde,
            run.learned,
            smdp.Trajectories(ts, paths),
            key=k_ranks,
            drawn=past,
        )
        return arrays | {
            **ranks,
            "shown": {"Sample 1": shown[0], "Sample 2": shown[1], "Without noise": alone[0]},
            "step_miss": self.step_miss(run, inverse),
            "finite": past.info.finite,
        }

    def step_miss(self, run: Run, inverse: Any) -> dict[str, Any]:
        xs, (t0, t1) = run.data.xs[:32], run.data.ts[:2]
        walk: Any = run.sde.step
        if run.dataset.validation is not None:
            xs = run.dataset.validation.xs
        x = xs[:, xs.shape[1] // 2]
        step = jax.jit(jax.vmap(lambda x: walk(t0, t1, x, None)))
        learned = jax.jit(jax.vmap(lambda x: inverse(t1, t0, x, None)))
        later = step(x)
        size = jnp.mean((later - x) ** 2)
        return {
            "learned inverse": jnp.mean((learned(later) - x) ** 2) / size,
            "negated step": jnp.mean((2 * later - step(later) - x) ** 2) / size,
        }

    def evaluate(self, run: Run, arrays: Mapping[str, Any]) -> Sequence[Metric]:
        energy, slope = self.stationarity(run)
        stationary = partial(Metric, note="the flow grows")
        if self.spin_up:
            stationary = partial(Metric, target=0.1, bound="at most")
        dt = self.end_time / self.time_steps
        return [
            *reversed_flow.evaluate(
                arrays, run.truth["paths"][:, -1], dt=dt, kmax=min(10, self.size // 3)
            ),
            *(
                Metric(f"squared miss of a {what} / mean squared step", miss)
                for what, miss in arrays["step_miss"].items()
            ),
            stationary("energy over time, largest distance from mean", energy),
            stationary("slope over time, largest distance from mean", slope),
            Metric("share of samples that are finite", arrays["finite"].mean(), 1.0),
        ]

    def stationarity(self, run: Run) -> tuple[float, float]:
        spectra = jax.jit(jax.vmap(jax.vmap(reversed_flow.energy_spectrum)))(run.data.xs)
        spectra = np.asarray(spectra, np.float64).mean(axis=0)
        shells = np.arange(self.forcing_wavenumber + 1, self.size // 3)
        slopes = np.polyfit(np.log(shells), np.log(spectra[:, shells]).T, 1)[0]
        energy, slope = (
            float(np.abs(v / v.mean() - 1).max()) for v in (spectra.sum(axis=1), slopes)
        )
        return energy, slope

    def figures(self, run: Run, arrays: Mapping[str, Any]) -> Mapping[str, ReportFigure]:
        paths = np.asarray(run.truth["paths"])
        ts = np.asarray(run.data.ts)[-paths.shape[1] :]
        history = {n: run.history[f"inverse_{n}"] for n in ("step", "loss", "validation_loss")}
        fields = reversed_flow.figures(
            arrays, ts, paths, arrays["shown"], kmax=min(10, self.size // 3)
        )
        return fields | {
            "inverse": ReportFigure(
                evaluate.plots.training_curve(history),
                "Loss of the learned inverse: squared miss of a step back over the mean squared "
                "step. 1 is a step that changes nothing, 0 the exact inverse.",
            ),
        }


PRESETS = {
    "small": Config(),
    "paper": Config(
        size=64,
        simulated_size=256,
        viscosity=1e-5,
        drag=0.0,
        forcing="diagonal",
        forcing_amplitude=0.1,
        forcing_wavenumber=1,
        noise=0.03,
        spin_up=0.0,
        end_time=20.0,
        reconstructed_time=10.0,
        substeps=128,
        trajectories=1000,
        modes=24,
        width=32,
        inverse_steps=20_000,
        steps=20_000,
        windows=(1, 1, 2, 4, 8, 10),
        batch_size=16,
        learning_rate=1e-3,
        ema=0.999,
        test_cases=200,
    ),
}
