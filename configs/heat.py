"""Stochastic heat equation on a periodic square: from a smoothed field back to what it was.

du = diffusivity Δu dt + noise dW, with a Gaussian random field as prior. Diffusion wipes out the
small scales, so a posterior sample has to invent them, and a point estimate stays smooth. All is
Gaussian: posterior mean and spread are known exactly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import diffrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

import smdp_jax as smdp
from smdp_jax import evaluate, models, physics
from smdp_jax.evaluate import Metric, ReportFigure
from smdp_jax.experiment import (
    Count,
    Dataset,
    Experiment,
    Positive,
    Run,
    calibrated,
    certified,
)
from smdp_jax.objectives import Objective


@dataclass(frozen=True)
class Config(Experiment):
    """The stochastic heat equation. Fields are the configuration, methods build what is run."""

    size: Count = 32
    """Grid points per side of the square, whose side is 2 pi."""
    diffusivity: Positive = 1.0
    """Diffusivity, in length² / time."""
    noise: Positive = 0.1
    """Noise amplitude g per grid point, in units of u / sqrt(time)."""
    end_time: Positive = 0.2
    time_steps: Count = 64
    substeps: Count = 16
    trajectories: Count = 256
    objective: Literal["path_score", "multi_step"] = "path_score"
    """A score by regression on score targets, or a step correction by the paper's windows."""
    windows: tuple[Count, ...] = (1, 2, 4, 8)
    """Steps per window of multi_step, trained one after the other."""
    preconditioning: Literal["spectral", "scalar", "none"] = "spectral"
    """Where the network starts: the score of the Gaussian with the data's spectrum, of the one with
    their variance, or 0."""
    channels: tuple[Count, ...] = (16, 32, 48)
    """Channels of the U-Net at each resolution, finest first."""
    steps: Count = 1000
    batch_size: Count = 16
    learning_rate: Positive = 1e-3
    test_cases: Count = 24
    """End states whose past is sampled."""
    posterior_samples: Count = 19
    backward_steps: Count = 8
    """Steps back by a score, each exact for Gaussians; Heun's at all stored times stand beside."""
    heun_samples: Count = 4
    """Samples of each end state by Heun's steps."""
    chunk: Count = 64
    """Paths solved at once: the fewer, the less memory."""

    def system(self) -> physics.Heat:
        return physics.Heat(self.size, self.diffusivity, self.noise, self.end_time)

    def sde(self) -> smdp.SDE:
        # A score serves any solver, so the drift; a step correction belongs to its flow map.
        system = self.system()
        return system.continuous_sde() if self.objective == "path_score" else system.sde()

    def simulate(self, key: PRNGKeyArray) -> Dataset:
        k_train, k_validation, k_truth, k_end = jax.random.split(key, 4)
        x0 = self.system().prior(k_truth, self.test_cases)
        x_end = jax.vmap(self.system().transition, (0, None, None, 0))(
            jax.random.split(k_end, self.test_cases), 0.0, self.end_time, x0
        )
        return Dataset(
            train=self.paths(k_train, self.trajectories),
            validation=self.paths(k_validation, 32),
            truth={"x0": x0, "x_end": x_end},
        )

    def paths(self, key: PRNGKeyArray, number: int) -> smdp.Trajectories:
        k_prior, k_noise = jax.random.split(key)
        system = self.system()
        # Physics linear and diagonal in Fourier space: this ramp has the least variance per mode.
        ramp = smdp.SinhRamp(
            system.decay_rates()[:, : self.size // 2 + 1], (jnp.fft.rfft2, jnp.fft.irfft2)
        )
        return smdp.simulate(
            system.sde(),
            system.prior(k_prior, number),
            smdp.linear_grid(0.0, self.end_time, self.time_steps),
            key=k_noise,
            substeps=self.substeps,
            score_targets=ramp if self.objective == "path_score" else False,
            chunk_size=self.chunk,
        )

    def model(self, data: smdp.Trajectories) -> nn.Module:
        # Smooth in t, so that it extends to t = 0, where there is nothing to learn from.
        time_features = models.Fourier(3, self.end_time / 2, 4 * self.end_time)
        net = models.UNet(self.channels, time_features=time_features)
        if self.preconditioning != "spectral":
            return net
        spectrum = models.Spectrum.from_trajectories(data.ts, data.xs, radial=True, floor=0.5)
        gain = self.objective == "multi_step"
        return models.SpectralPreconditioned(net, spectrum, spectral_gain=gain)

    def loss(self) -> Objective:
        if self.objective == "path_score":
            return smdp.PathScore(transform=jnp.fft.rfft2)
        return smdp.MultiStep(self.windows)

    def fit(self, dataset: Dataset, key: PRNGKeyArray, **resume: Any) -> smdp.Fit:
        scalar = self.preconditioning == "scalar"
        return super().fit(dataset, key, precondition=scalar, epoch_steps=50, **resume)

    def posterior(self, run, x_end, *, num_samples, key, args=None) -> smdp.Posterior:
        ts, solver = run.data.ts, None
        if self.objective == "path_score":
            # Without preconditioning no Gaussian is known.
            few = self.preconditioning != "none"
            ts, solver = (ts[self.stops(ts)], smdp.GaussianStep(1)) if few else (ts, diffrax.Heun())
        return self.walked(run, x_end, ts, solver, num_samples=num_samples, key=key)

    def walked(self, run: Run, x_end: Any, ts: Any, solver: Any, **how: Any) -> smdp.Posterior:
        how |= {"batch_axes": 1, "chunk_size": self.chunk}
        return smdp.sample_posterior(run.sde, run.learned, x_end, ts, solver=solver, **how)

    def stops(self, ts: Any) -> np.ndarray:
        """Which of the stored times the steps of the samples end at: dense near the first."""
        count = min(self.backward_steps, len(ts) - 1)
        found = np.geomspace(1, len(ts), count + 1).round().astype(int) - 1
        # Of the first ones, which round to the same, the next.
        return np.maximum.accumulate(np.maximum(found, np.arange(count + 1)))

    def certificate(self, run: Run, key: PRNGKeyArray) -> dict[str, Any]:
        """How far paths from one end state are from the truth, by steps exact for Gaussians."""
        system, ts, half = self.system(), run.data.ts[1:], self.size // 2 + 1
        modes = partial(jnp.fft.rfft2, norm="ortho"), partial(jnp.fft.irfft2, norm="ortho")
        solver = smdp.GaussianStep(
            1,
            smdp.LinearPart(system.decay_rates()[:, :half], modes),
            lambda t: system.marginal_variance(t)[:, :half],
        )
        found = smdp.certify(
            run.sde, run.score, jnp.asarray(run.truth["x_end"][0]), ts,
            lambda x, args: system.log_density(ts[0], x), num_paths=32, key=key, solver=solver,
        )  # fmt: skip
        return {"gap": found.gap, "line": str(found)}

    def sample(self, run: Run, key: PRNGKeyArray) -> dict[str, Any]:
        key, k_bound, k_ranks, k_heun = jax.random.split(key, 4)
        x_end = run.truth["x_end"]
        past = self.posterior(run, x_end, num_samples=self.posterior_samples, key=key)
        pairs = jnp.stack([run.truth["x0"], x_end], axis=1)
        held_out = smdp.Trajectories(run.data.ts[jnp.array([0, -1])], pairs)
        ranks = calibrated(self.system().sde(), run.learned, held_out, key=k_ranks, drawn=past)
        system, samples, mean = self.system(), past.samples, past.samples.mean(axis=1)
        forward = jax.vmap(lambda x: system.step(0.0, self.end_time, x))
        power = jax.vmap(evaluate.power_spectrum)
        exact_mean = jax.vmap(system.posterior_mean)(x_end)
        # A step correction belongs to its own flow map, whose noise comes in other amounts.
        found = {}
        if self.objective == "path_score":
            how = {"num_samples": self.heun_samples, "key": k_heun}
            heun = self.walked(run, x_end, run.data.ts, diffrax.Heun(), **how).samples
            found = {"certificate": self.certificate(run, k_bound), "heun_samples": heun}
        return found | {
            **ranks,
            "samples": samples,
            "finite": past.info.finite,
            "exact_mean": exact_mean,
            "exact_std": jnp.sqrt(system.posterior_point_variance()),
            "true_end": forward(run.truth["x0"]),
            "sample_end": forward(samples[:, 0]),
            "mean_end": forward(mean),
            "power": {
                "truth": power(run.truth["x0"]),
                "samples": power(samples[:, 0]),
                "mean of samples": power(mean),
                "exact mean": power(exact_mean),
            },
        }

    def evaluate(self, run: Run, arrays: Mapping[str, Any]) -> Sequence[Metric]:
        truth, samples, exact_mean = run.truth["x0"], arrays["samples"], arrays["exact_mean"]
        mean, count = samples.mean(axis=1), samples.shape[1]
        best, off = (evaluate.ensemble_mse(m, truth) ** 0.5 for m in (exact_mean, mean))
        std = np.sqrt(samples.var(axis=1, ddof=1).mean())
        exact = evaluate.crps_gaussian(exact_mean, arrays["exact_std"], truth).mean()
        crps = lambda draws: jax.vmap(evaluate.crps_ensemble)(draws, truth).mean() / exact
        spectral = jax.vmap(evaluate.spectral_error)
        unavoidable = np.sqrt(1 + 1 / count)
        return [
            Metric(
                "RMSE of the mean / exact",
                off / best,
                1.10,
                note=f"{count} exact samples would give about {unavoidable:.3f}",
                bound="at most",
            ),
            Metric("RMSE of the mean", off, best, note="exact mean's"),
            Metric(
                "distance of the mean from the exact mean",
                evaluate.ensemble_mse(mean, exact_mean) ** 0.5,
                arrays["exact_std"] / np.sqrt(count),
                note=f"that of {count} exact samples",
            ),
            Metric("std of the samples", std, arrays["exact_std"], note="exact"),
            Metric(
                "distance of std / exact from 1",
                np.abs(std / arrays["exact_std"] - 1),
                0.10,
                bound="at most",
            ),
            Metric("CRPS / exact", crps(samples), 1.03, bound="at most"),
            *(
                [Metric("CRPS / exact, Heun's steps", crps(arrays["heun_samples"]))]
                if "heun_samples" in arrays
                else []
            ),
            Metric(
                "spectral error of a sample",
                spectral(samples[:, 0], truth).mean(),
                0.27,
                note="two unrelated true fields: "
                f"{spectral(truth, np.roll(truth, 1, axis=0)).mean():.3f}",
                bound="at most",
            ),
            Metric("spectral error of the mean", spectral(mean, truth).mean()),
            Metric(
                "reconstruction MSE of a sample",
                evaluate.ensemble_mse(arrays["sample_end"], arrays["true_end"]),
            ),
            Metric(
                "reconstruction MSE of the mean",
                evaluate.ensemble_mse(arrays["mean_end"], arrays["true_end"]),
            ),
            Metric("share of samples that are finite", arrays["finite"].mean(), 1.0),
            *certified(arrays),
        ]

    def figures(self, run: Run, arrays: Mapping[str, Any]) -> Mapping[str, ReportFigure]:
        truth, x_end = (np.asarray(run.truth[name]) for name in ("x0", "x_end"))
        samples, power = arrays["samples"], dict(arrays["power"])
        panel = evaluate.plots.field_panel(
            truth[0],
            x_end[0],
            samples[0],
            samples[0].mean(axis=0),
            samples[0].std(axis=0, ddof=1),
            arrays["exact_mean"][0],
            np.full_like(truth[0], arrays["exact_std"]),
        )
        # A mean's power falls out of single precision; what is left there says nothing.
        largest = power["truth"].max()
        for name in ("mean of samples", "exact mean"):
            median = np.median(power[name], axis=0)
            power[name] = np.where(median > 1e-9 * largest, median, np.nan)
        spectra = evaluate.plots.power_spectra(
            np.arange(power["truth"].shape[1], dtype=float), power, kmax=10
        )
        return {
            "fields": ReportFigure(
                panel,
                "What was, what is observed, and samples of what may have been; below, mean and "
                f"spread of {samples.shape[1]} samples beside the exact ones.",
            ),
            "spectra": ReportFigure(
                spectra,
                f"Power over wavenumber in {len(truth)} fields: median, and for truth and "
                "samples the band of 90 %. Samples keep the power of the truth at small scales; "
                "means lose it.",
            ),
        }


PRESETS = {
    "small": Config(),
    "paper": Config(trajectories=2500, channels=(32, 64, 96), steps=20_000, batch_size=32),
}
