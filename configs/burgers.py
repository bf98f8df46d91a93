"""Burgers' equation driven by noise: back through shocks to the smooth field they came from.

du = (-u u_x + viscosity u_xx) dt + noise dW on a periodic interval. Shocks forget the past, and
small errors of a backward path grow into states that the data never showed. Small: a time at which
shocks have formed and the five modes of the initial field can still be told. Paper: the hard case,
where a score that is right on the data does not suffice for a whole path.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

import smdp_jax as smdp
from smdp_jax import evaluate
from smdp_jax.evaluate import Metric, ReportFigure
from smdp_jax.experiment import Count, Dataset, Positive, Run, calibrated
from smdp_jax.objectives import Objective
from smdp_jax.studies import noise_free
from smdp_jax.studies.shocks import Shocks


@dataclass(frozen=True)
class Config(Shocks):
    """Burgers' equation. Fields are the configuration, methods build what is run."""

    time_steps: Count = 256
    substeps: Count = 4
    trajectories: Count = 2048
    """Simulated paths to learn from; of 512, one unseen end state in 50 sends paths astray."""
    objective: Literal["path_score", "one_step", "multi_step", "path_then_windows"] = "path_score"
    """A score by regression on score targets, by the paper's windows, or by one after the other."""
    windows: tuple[Count, ...] = (1, 2, 4, 8)
    """Steps per window of multi_step, trained one after the other."""
    later_windows: tuple[Count, ...] = (4, 8, 16)
    """Those of path_then_windows; 32 gave a loss of NaN after a short training on score targets."""
    steps: Count = 4500
    window_steps: Count = 150
    """Updates on windows after those on score targets, in path_then_windows."""
    batch_size: Count = 32
    learning_rate: Positive = 2e-3
    window_learning_rate: Positive = 3e-4
    """The same for windows after score targets."""
    test_cases: Count = 50
    """End states whose past is sampled."""
    posterior_samples: Count = 16
    backward_steps: Count = 24
    """Steps back, each exact for Gaussians; Euler's at all stored times stand beside them."""
    euler_samples: Count = 4
    """Samples of each end state by Euler's steps."""
    chunk: Count = 128
    """Paths solved at once: the fewer, the less memory."""

    def sde(self) -> smdp.SDE:
        return self.system().continuous_sde()

    def paths(
        self, key: PRNGKeyArray, number: int, targets: bool = True, **how: Any
    ) -> smdp.Trajectories:
        how = {"sde": self.system().sde(), "chunk_size": self.chunk, **how}
        return super().paths(key, number, targets, **how)

    def loss(self) -> Objective:
        if self.objective == "one_step":
            return smdp.OneStep()
        if self.objective == "multi_step":
            return smdp.MultiStep(self.windows)
        return smdp.PathScore(transform=jnp.fft.rfft)

    def fit(self, dataset: Dataset, key: PRNGKeyArray, **resume: Any) -> smdp.Fit:
        k_first, k_then = jax.random.split(key)
        if self.objective != "path_then_windows":
            return self._fit(dataset, k_first, self.steps, objective=self.loss(), **resume)
        folder = resume.pop("directory", None)
        first, then = (Path(folder) / n if folder else None for n in ("path_score", "windows"))
        resumed = {"objective": self.loss(), "directory": first, **resume}
        learned = self._fit(dataset, k_first, self.steps, **resumed).score
        return self.fit_windows(dataset, learned, k_then, directory=then, **resume)

    def fit_windows(
        self, dataset: Dataset, learned: smdp.LearnedScore, key: PRNGKeyArray, **resume: Any
    ) -> smdp.Fit:
        rate, windows = self.window_learning_rate, smdp.MultiStep(self.later_windows)
        how = {"objective": windows, "initial": learned, **resume}
        return self._fit(dataset, key, self.window_steps, rate, **how)

    def _fit(
        self,
        dataset: Dataset,
        key: PRNGKeyArray,
        steps: int,
        rate: float | None = None,
        **options: Any,
    ) -> smdp.Fit:
        how = {"optimizer": self.optimizer(steps, rate), "precondition": False, "epoch_steps": 50}
        return super().fit(dataset, key, steps=steps, **how, **options)

    def sample(self, run: Run, key: PRNGKeyArray) -> dict[str, Any]:
        k_past, k_prior, k_ranks, k_euler = jax.random.split(key, 4)
        system, paths, ts = self.system(), run.truth["paths"], run.data.ts
        x_end = paths[:, -1]
        sample = partial(
            smdp.sample_posterior, run.sde, run.score, x_end, batch_axes=1, chunk_size=self.chunk
        )
        past = sample(
            ts[self.stops(ts)],
            num_samples=self.posterior_samples,
            key=k_past,
            save="all",
            solver=smdp.GaussianStep(),
        )
        euler = sample(ts, num_samples=self.euler_samples, key=k_euler).samples
        ranks = calibrated(
            system.sde(),
            run.score,
            smdp.Trajectories(ts, paths),
            key=k_ranks,
            drawn=replace(past, samples=past.samples[:, :, 0]),
            observables=lambda x: {
                f"coefficient {i}": c for i, c in enumerate(system.leading_modes(x))
            },
        )
        walk = jax.jit(
            jax.vmap(lambda x: smdp.probability_flow(run.sde, self.flow_score(run), x, ts).xs)
        )
        forward = jax.jit(jax.vmap(lambda x: noise_free.walk(system.step, x, ts)))
        starts, flows = past.samples[:, :, 0], walk(x_end)
        physics_only, stride = noise_free.best_negated_starts(system.step, x_end, ts)
        modes = jax.vmap(system.leading_modes)
        return {
            **ranks,
            "paths": past.samples,
            "flows": flows,
            "physics": physics_only,
            "physics_stride": stride,
            "sample_ends": jax.vmap(forward)(starts),
            "flow_ends": forward(flows[:, 0]),
            "physics_ends": forward(physics_only),
            "true_ends": forward(paths[:, 0]),
            "modes": jax.vmap(modes)(starts),
            "euler_modes": jax.vmap(modes)(euler),
            "true_modes": modes(paths[:, 0]),
            "prior_modes": modes(system.prior(k_prior, 200)),
            "limits": 1.5 * jnp.abs(run.data.xs).max(axis=(0, 2)),
        }

    def stops(self, ts: Any) -> np.ndarray:
        """Which of the stored times the steps of the samples end at."""
        last = len(ts) - 1
        count = min(self.backward_steps, last)
        return np.linspace(0, last, count + 1).round().astype(int)

    def flow_score(self, run: Run) -> Any:
        """The score, times how much more noise the simulated modes seem to get."""
        gain = self.system().noise_gain(self.end_time / self.time_steps / self.substeps)

        def score(t: Any, x: Any, args: Any) -> Any:
            modes = jnp.fft.rfft(run.score(t, x, args))
            return jnp.fft.irfft(gain.astype(modes.dtype) * modes)

        return score

    def evaluate(self, run: Run, arrays: Mapping[str, Any]) -> Sequence[Metric]:
        return [
            *self._reached(run, arrays),
            *self._reconstructed(run, arrays),
            *self._starts(run, arrays),
            *self._spectra(run, arrays),
        ]

    def _times(self, run: Run, arrays: Mapping[str, Any], which: str) -> np.ndarray:
        at = self.stops(run.data.ts) if which == "paths" else slice(None)
        limits = arrays["limits"][at]
        return np.asarray(evaluate.reached_times(run.data.ts[at], arrays[which], limits))

    def _returning(self, run: Run, arrays: Mapping[str, Any], which: str) -> np.ndarray:
        return self._times(run, arrays, which) == np.asarray(run.data.ts)[0]

    def _reached(self, run: Run, arrays: Mapping[str, Any]) -> Sequence[Metric]:
        reached, paths = self._times(run, arrays, "paths"), self._returning(run, arrays, "paths")
        flows = self._returning(run, arrays, "flows")
        return [
            Metric("time reached backward, median", np.median(reached), 0.0, bound="at most"),
            Metric("time reached backward, worst", reached.max(), 0.0, bound="at most"),
            Metric("share of paths that reach the start", paths.mean(), 1.0, bound="at least"),
            Metric("share of end states that a path returns from", paths.any(axis=1).mean()),
            Metric("share of flows that reach the start", flows.mean()),
        ]

    def _reconstructed(self, run: Run, arrays: Mapping[str, Any]) -> Sequence[Metric]:
        ends = run.truth["paths"][:, -1]
        error = {
            name: evaluate.ensemble_mse(arrays[f"{name}_ends"], ends)
            for name in ("sample", "physics", "true")
        }
        floor = error["true"]
        returned = {
            name: _mean_over(self._returning(run, arrays, which), jnp.square(miss).mean(axis=-1))
            for name, which, miss in (
                ("sample", "paths", arrays["sample_ends"] - ends[:, None]),
                ("flow", "flows", arrays["flow_ends"] - ends),
            )
        }
        step = arrays["physics_stride"] * self.end_time / self.time_steps
        return [
            Metric(
                "reconstruction MSE of a sample / noise floor",
                error["sample"] / floor,
                3.0,
                note=f"the true start has {floor:.3g} = 1",
                bound="at most",
            ),
            *(
                Metric(
                    f"reconstruction MSE of {what} / noise floor",
                    returned[name] / floor,
                    note=f"of the {name}s that reach the start",
                )
                for name, what in (("sample", "a returned sample"), ("flow", "the flow"))
            ),
            Metric(
                "reconstruction MSE, reversed physics alone / sample",
                error["physics"] / error["sample"],
                3.0,
                note=f"alone in negated steps of {step:.3g}, which do best",
                bound="at least",
            ),
        ]

    def _starts(self, run: Run, arrays: Mapping[str, Any]) -> Sequence[Metric]:
        starts, truth = arrays["paths"][:, :, 0], run.truth["paths"][:, 0]
        true = arrays["true_modes"]
        crps, euler = (
            jax.vmap(evaluate.crps_ensemble)(arrays[name], true).mean()
            for name in ("modes", "euler_modes")
        )
        prior = jax.vmap(evaluate.crps_ensemble, (None, 0))(arrays["prior_modes"], true)
        gain = float(prior.mean() / crps)
        spread = starts.std(axis=1, ddof=1)
        miss = starts.mean(axis=1) - truth
        return [
            Metric("CRPS of the initial modes, prior / posterior", gain, 3.0, bound="at least"),
            Metric("CRPS of the initial modes", crps, unit="length/time"),
            Metric("CRPS of the initial modes, Euler's steps", euler, unit="length/time"),
            Metric(
                "spread / error of the posterior mean",
                np.sqrt(np.mean(spread**2) * (1 + 1 / starts.shape[1]) / np.mean(miss**2)),
                1.0,
                note="1 where the posterior is calibrated",
            ),
        ]

    def _spectra(self, run: Run, arrays: Mapping[str, Any]) -> Sequence[Metric]:
        starts, truth = arrays["paths"][:, :, 0], run.truth["paths"][:, 0]
        # Higher modes of the initial field are empty.
        kmax = self.system().modes
        power = partial(evaluate.power_spectrum, kmax=kmax)
        spectral = jax.vmap(partial(evaluate.spectral_error, kmax=kmax))
        mean, true = jax.vmap(jax.vmap(power))(starts).mean(axis=1), jax.vmap(power)(truth)
        whole = self._returning(run, arrays, "flows")
        of_flows = _mean_over(whole, spectral(arrays["flows"][:, 0], truth))
        of_samples = spectral(starts[:, 0], truth).mean()
        of_mean = jnp.abs(jnp.log(mean / true)[:, 1:] / 2).mean()
        return [
            Metric(
                "spectral error of a sample / of the flow",
                of_samples / of_flows,
                np.sqrt(2) if whole.any() else np.nan,
                note="exact: sqrt(1 + rho^2) for Gaussian modes that correlate by rho with the "
                "end state, see tests/test_power_of_samples.py",
                bound="at most",
            ),
            Metric("spectral error of a sample", of_samples),
            Metric(
                "spectral error of the flow", of_flows, note="of the flows that reach the start"
            ),
            Metric(
                "spectral error of the samples' mean power",
                of_mean,
                note="of what the posterior as a whole says",
            ),
        ]

    def figures(self, run: Run, arrays: Mapping[str, Any]) -> Mapping[str, ReportFigure]:
        truth, ts = np.asarray(run.truth["paths"]), np.asarray(run.data.ts)
        at = self.stops(ts)
        points = np.arange(self.size) / self.size
        whole = self._returning(run, arrays, "flows")
        flows = arrays["flows"][whole if whole.any() else slice(None), 0]
        power = jax.vmap(evaluate.power_spectrum)
        shown = {
            "truth": power(truth[:, 0]),
            "samples": power(arrays["paths"][:, 0, 0]),
            "flow (ODE)": np.median(power(flows), axis=0),
            "end states": np.median(power(truth[:, -1]), axis=0),
        }
        plots = evaluate.plots
        return {
            "profiles": ReportFigure(
                plots.profiles(
                    points,
                    truth[0, 0],
                    truth[0, -1],
                    arrays["paths"][0, :, 0],
                    arrays["sample_ends"][0],
                    arrays["flows"][0, 0],
                    field_unit="length/time",
                ),
                "Samples of what may have been, and where the simulator takes each without noise.",
            ),
            "paths": ReportFigure(
                plots.space_time(ts[at], points, truth[0, at], arrays["paths"][0]),
                "A simulated path with its shocks, and paths of the reverse-time SDE from its end.",
            ),
            "spectra": ReportFigure(
                plots.power_spectra(
                    np.arange(self.size // 2 + 1, dtype=float), shown, kmax=self.system().modes
                ),
                f"Power over wavenumber in {len(truth)} fields: median, and for truth and samples "
                f"the band of 90 %; {whole.sum()} flows reach the start.",
            ),
        }


def _mean_over(chosen: np.ndarray, values: Any) -> float:
    return float(np.asarray(values)[chosen].mean()) if chosen.any() else float("nan")


PRESETS = {
    "small": Config(),
    "paper": Config(
        amplitude=1.0,
        end_time=1.0,
        time_steps=1024,
        substeps=2,
        trajectories=2500,
        objective="path_then_windows",
        later_windows=(4, 8, 16),
        steps=20_000,
        window_steps=8000,
        backward_steps=256,
    ),
}
