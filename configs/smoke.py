"""Smoke that rises past unseen obstacles: what was it like before it got there?

Buoyant smoke in a closed box, driven by noise (``physics.Smoke``), obstacles as conditions. The end
state is observed, and reconstructed back to a time after the inflow has ended. The simulator run
backward with a negative step is stable but blurs what it carries; a network that was trained on
windows of steps (Holzschuh, Vegetti, Thuerey 2023, section 3.3) corrects each of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

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
    Share,
    calibrated,
)
from smdp_jax.objectives import Objective
from smdp_jax.studies import noise_free


@dataclass(frozen=True)
class Config(Experiment):
    """Smoke with obstacles. Fields are the configuration, methods build what is run."""

    size: Count = 32
    """Cells per side of the box, whose side is 100."""
    noise: Positive = 0.1
    """Noise amplitude g of smoke and air, in units of these / sqrt(time)."""
    end_time: Positive = 0.65
    time_steps: Count = 65
    """Simulator steps from rest to the end state."""
    first_step: Count = 35
    """After how many of them learning begins: the time to be reconstructed."""
    trajectories: Count = 240
    """Simulated paths to learn from, each with obstacles of its own."""
    network: Literal["resnet", "unet"] = "unet"
    """Dilated residual network, or U-Net."""
    channels: tuple[Count, ...] = (16, 32, 48)
    """Channels of the residual network, or of the U-Net at each resolution, finest first."""
    blocks: Count = 1
    """Blocks of the residual network, or of the U-Net per resolution."""
    windows: tuple[Count, ...] = (2, 4, 8, 16, 30, 30)
    """Steps per window, trained one after the other for equal shares of the updates; best when the
    last are as long as the way back."""
    gradient_cut: Count | None = None
    """Cut the gradient every that many steps, in longer windows. Must divide them."""
    rematerialise: bool = False
    """Compute a step's intermediate values again for its gradient, instead of storing them."""
    steps: Count = 1350
    batch_size: Count = 4
    learning_rate: Positive = 2e-3
    ema: Share = 0.98
    test_cases: Count = 20
    """End states whose past is sampled, behind obstacles that training did not see."""
    posterior_samples: Count = 9
    chunk: Count = 8
    """Paths solved at once: the fewer, the less memory."""

    def system(self) -> physics.Smoke:
        return physics.Smoke(self.size, noise=self.noise, end_time=self.end_time)

    def sde(self) -> smdp.SDE:
        return self.system().sde()

    def simulate(self, key: PRNGKeyArray) -> Dataset:
        k_obstacles, k_noise = jax.random.split(key)
        system, validation = self.system(), max(1, self.trajectories // 8)
        number = self.trajectories + validation + self.test_cases
        whole = smdp.simulate(
            self.sde(),
            system.prior(key, number),
            smdp.linear_grid(0.0, self.end_time, self.time_steps),
            key=k_noise,
            substeps=self.substeps,
            args=system.geometries(k_obstacles, number),
            args_axes=0,
            chunk_size=self.chunk,
        )
        system.check_step(self.end_time / self.time_steps, whole.xs)

        def part(first: int, last: int) -> smdp.Trajectories:
            return smdp.Trajectories(
                whole.ts[self.first_step :],
                jax.tree.map(lambda x: x[first:last, self.first_step :], whole.xs),
                jax.tree.map(lambda a: a[first:last], whole.args),
                args_axes=0,
            )

        test = part(self.trajectories + validation, number)
        return Dataset(
            train=part(0, self.trajectories),
            validation=part(self.trajectories, self.trajectories + validation),
            truth={"paths": test.xs, "args": test.args},
        )

    def model(self, data: smdp.Trajectories) -> nn.Module:
        if self.network == "resnet":
            net = models.smoke_resnet(channels=self.channels[0], blocks=self.blocks)
        else:
            net = models.smoke_unet(channels=self.channels, blocks=self.blocks)
        sizes = tuple(float(np.std(leaf)) for leaf in jax.tree.leaves(data.xs))
        # In units of a step's noise, which is the loss that windows start from.
        noise = self.noise * float(np.sqrt(self.end_time / self.time_steps))
        return models.Rescaled(net, sizes, noise)

    def loss(self) -> Objective:
        return smdp.MultiStep(
            self.windows, gradient_cut=self.gradient_cut, rematerialise=self.rematerialise
        )

    def fit(self, dataset: Dataset, key: PRNGKeyArray, **resume: Any) -> smdp.Fit:
        return super().fit(dataset, key, precondition=False, epoch_steps=50, **resume)

    def posterior(
        self, run, x_end, *, num_samples, key, args=None, save: Literal["all", "last"] = "last"
    ) -> smdp.Posterior:
        for mask in () if args is None else args["obstacles"]:
            self.system().check_obstacles(mask)
        return smdp.sample_posterior(
            run.sde,
            run.correction,
            x_end,
            run.data.ts,
            num_samples=num_samples,
            key=key,
            args=args,
            args_axes=None if args is None else 0,
            batch_axes=1,
            chunk_size=self.chunk,
            save=save,
        )

    def sample(self, run: Run, key: PRNGKeyArray) -> dict[str, Any]:
        k_past, k_ranks = jax.random.split(key)
        system, ts = self.system(), run.data.ts
        paths, args = run.truth["paths"], run.truth["args"]
        x_end = jax.tree.map(lambda x: x[:, -1], paths)
        past = self.posterior(
            run, x_end, num_samples=self.posterior_samples, key=k_past, args=args, save="all"
        )
        starts = jax.tree.map(lambda x: x[:, :, 0], past.samples)
        # A correction trained at noise level 1 belongs to its own step, so the probability flow,
        # whose weight is 1/2, is not to be had of it. Its path without noise is what windows train.
        corrected = smdp.reverse_sde(run.sde, run.correction).step
        assert corrected is not None  # that of a flow map
        back = jax.jit(jax.vmap(lambda x, a: noise_free.walk(corrected, x, -ts[::-1], a)))
        walk = jax.jit(
            jax.vmap(lambda x, grid, a: noise_free.walk(system.step, x, grid, a), (0, None, 0))
        )
        estimates = {
            "mean": jax.tree.map(lambda x: x.mean(axis=1), starts),
            "noise_free": back(x_end, args),
            "physics": walk(x_end, ts[::-1], args),
            "true": jax.tree.map(lambda x: x[:, 0], paths),
        }
        ends = {name: walk(x, ts, args)["marker"] for name, x in estimates.items()}

        def sample(i: int) -> Any:
            return jax.tree.map(lambda x: x[:, i], starts)

        # One sample of every case at a time: a function that is compiled already, little memory.
        ends["sample"] = jnp.stack(
            [walk(sample(i), ts, args)["marker"] for i in range(self.posterior_samples)], axis=1
        )

        @jax.jit
        @jax.vmap
        def violations(x: Any, a: Any) -> Any:
            x = system.project(x, a)
            return jnp.abs(system.divergence(x, a)).max(), system.obstacle_flow(x, a)

        divergence, leak = violations(sample(0), args)
        ranks = calibrated(
            run.sde,
            run.learned,
            smdp.Trajectories(ts, paths, args, args_axes=0),
            key=k_ranks,
            drawn=replace(past, samples=starts),
        )
        return {
            **ranks,
            "estimates": estimates | {"sample": starts},
            "ends": ends,
            "path": past.samples["marker"][0],
            "finite": past.info.finite,
            "divergence": divergence.max(),
            "obstacle_flow": leak.max(),
        }

    def evaluate(self, run: Run, arrays: Mapping[str, Any]) -> Sequence[Metric]:
        observed = run.truth["paths"]["marker"][:, -1]
        error = {name: evaluate.ensemble_mse(end, observed) for name, end in arrays["ends"].items()}
        return [
            Metric(
                "reconstruction MSE, reversed physics alone / sample",
                error["physics"] / error["sample"],
                3.0,
                bound="at least",
            ),
            Metric(
                "reconstruction MSE of a sample",
                error["sample"],
                error["true"],
                note="noise floor: the true state, simulated without noise",
            ),
            *(
                Metric(f"reconstruction MSE, {_NAMES[name]}", error[name])
                for name in ("mean", "noise_free", "physics")
            ),
            *_distances_of_starts(arrays["estimates"]),
            Metric(
                "largest divergence of a projected sample",
                arrays["divergence"],
                1e-5,
                bound="at most",
            ),
            Metric(
                "largest flow into obstacles of a projected sample", arrays["obstacle_flow"], 0.0
            ),
            Metric("share of samples that are finite", arrays["finite"].mean(), 1.0),
        ]

    def figures(self, run: Run, arrays: Mapping[str, Any]) -> Mapping[str, ReportFigure]:
        marker, estimates = np.asarray(run.truth["paths"]["marker"]), arrays["estimates"]
        samples, power = estimates["sample"]["marker"], jax.jit(jax.vmap(evaluate.power_spectrum))
        solid = np.asarray(run.truth["args"]["obstacles"])
        spectra = {
            "truth": power(marker[:, 0]),
            "samples": power(samples[:, 0]),
            "noise-free path": np.median(power(estimates["noise_free"]["marker"]), axis=0),
            "physics alone": np.median(power(estimates["physics"]["marker"]), axis=0),
        }
        path = arrays["path"]
        moving = {"Truth": _upright(marker[0])[::-1], "Observed": _upright(marker[0, -1])}
        moving |= {f"Sample {i + 1}": _upright(p)[::-1] for i, p in enumerate(path[:3])}
        start, end = run.data.ts[0], run.data.ts[-1]
        return {
            "fields": ReportFigure(
                evaluate.plots.field_panel(
                    _upright(marker[0, 0]),
                    _upright(marker[0, -1]),
                    _upright(samples[0]),
                    _upright(samples[0].mean(axis=0)),
                    _upright(samples[0].std(axis=0, ddof=1)),
                ),
                f"Smoke at t = {start:.2f}, observed at t = {end:.2f}, and samples of what may "
                f"have been; below, mean and spread of {samples.shape[1]} samples.",
            ),
            "backward": ReportFigure(
                evaluate.plots.field_animation(
                    np.asarray(run.data.ts)[::-1], moving, solid=_upright(solid[0]), signed=False
                ),
                "Smoke backward in time, from the observed state around the obstacles.",
            ),
            "spectra": ReportFigure(
                evaluate.plots.power_spectra(
                    np.arange(self.size // 2 + 1, dtype=float), spectra, kmax=10
                ),
                f"Power over wavenumber of the smoke in {len(marker)} cases: median, and for truth "
                "and samples the band of 90 %.",
            ),
        }


_NAMES = {
    "sample": "sample",
    "mean": "mean of samples",
    "noise_free": "noise-free path, as in the windows of training",
    "physics": "reversed physics alone",
}


def _distances_of_starts(estimates: Mapping[str, Any]) -> list[Metric]:
    """Squared and spectral distances of the estimates from the true state."""
    truth, spectral = estimates["true"], jax.jit(jax.vmap(evaluate.spectral_error))
    rows = []
    for what, keys in (("marker", ["marker"]), ("air", ["velocity_x", "velocity_y"])):
        for name, label in _NAMES.items():
            errors = [evaluate.ensemble_mse(estimates[name][key], truth[key]) for key in keys]
            rows.append(Metric(f"MSE of the {what}, {label}", np.mean(errors)))
    markers = {name: estimates[name]["marker"] for name in _NAMES}
    markers["sample"] = markers["sample"][:, 0]
    spectra = {name: float(spectral(m, truth["marker"]).mean()) for name, m in markers.items()}
    unlike = float(spectral(truth["marker"], np.roll(truth["marker"], 1, axis=0)).mean())
    note = f"that of the noise-free path; two unrelated states: {unlike:.3f}"
    target = spectra["noise_free"]
    return [
        *rows,
        Metric("spectral error of a sample", spectra["sample"], target, note=note, bound="at most"),
        *(
            Metric(f"spectral error, {_NAMES[name]}", spectra[name])
            for name in ("mean", "noise_free", "physics")
        ),
    ]


def _upright(field: Any) -> np.ndarray:
    """From [x, y] to rows of y, as images have them."""
    return np.swapaxes(np.asarray(field), -1, -2)


PRESETS = {
    "small": Config(),
    "paper": Config(
        size=64,
        trajectories=200,
        network="resnet",
        channels=(48,),
        blocks=4,
        windows=(*range(2, 23, 2), 30),
        rematerialise=True,
        steps=20_000,
        batch_size=8,
        learning_rate=5e-4,
        ema=0.999,
        posterior_samples=16,
    ),
}
