"""Partial, noisy observations: fields of which a few sensors tell, at one time and at three.

Burgers' equation with a learned score: every few points a noisy sensor, once at the end, and at a
quarter, half and the end of the time; particles sample the smooth field that it came from. Beside
it the heat equation with its exact score, where the posterior and the evidence of the same kind of
sensors are known as a dense Gaussian.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

import smdp_jax as smdp
from smdp_jax import evaluate, physics
from smdp_jax.evaluate import Metric, ReportFigure
from smdp_jax.experiment import Count, Dataset, Positive, Run
from smdp_jax.objectives import Objective
from smdp_jax.physics.exact.sensors import sensor_posterior
from smdp_jax.studies.shocks import Shocks

SHARES = {"one time": (1.0,), "three times": (0.25, 0.5, 1.0)}


@dataclass(frozen=True)
class Config(Shocks):
    """Sensors of two fields. Fields are the configuration, methods build what is run."""

    size: Count = 64
    noise: Positive = 0.25
    end_time: Positive = 0.1
    """When the last sensors look."""
    time_steps: Count = 64
    """Stored steps of the paths, a multiple of 4; the backward solves take the same ones."""
    substeps: Count = 4
    trajectories: Count = 4096
    channels: Count = 24
    blocks: Count = 3
    steps: Count = 8000
    batch_size: Count = 64
    learning_rate: Positive = 2e-3
    spacing: Count = 8
    """Points from one sensor to the next, in each direction."""
    sensor_noise: Positive = 0.2
    """Standard deviation of the sensors' noise, over that of the field."""
    moves: Count = 4
    """Langevin moves of the end state at each temperature, and twice as many more at the last."""
    test_cases: Count = 20
    """Fields whose past is sampled."""
    particles: Count = 192
    """Particles for each of them."""
    heat_size: Count = 16
    """Grid points per side of the heat equation, on a square of side 2 pi."""
    heat_particles: Count = 512
    """Particles of the heat equation."""

    def check(self) -> None:
        super().check()
        if self.time_steps % 4 or self.size % self.spacing or self.heat_size % 4:
            raise ValueError(
                "time_steps and heat_size must be multiples of 4, and size of spacing, got "
                f"{self.time_steps}, {self.heat_size} and {self.size} of {self.spacing}"
            )

    def sde(self) -> smdp.SDE:
        system = self.system()
        linear = smdp.LinearPart(system.decay_rates(), (_to_modes_1d, _to_field_1d))
        return smdp.SDE(system.drift, diffusion=self.noise, linear=linear)

    def loss(self) -> Objective:
        return smdp.PathScore(transform=jnp.fft.rfft)

    def fit(self, dataset: Dataset, key: PRNGKeyArray, **resume: Any) -> smdp.Fit:
        return super().fit(dataset, key, precondition=False, epoch_steps=50, **resume)

    def look(
        self, ts: Any, path: Any, shares: Sequence[float], sensors: Any, key: PRNGKeyArray
    ) -> list[smdp.LinearObservation]:
        """Return what noisy sensors show of a path."""
        std, last = self.sensor_noise * float(path[-1].std()), len(ts) - 1
        seen = []
        for index in (round(share * last) for share in shares):
            shown = path[index][sensors]
            noise = jax.random.normal(jax.random.fold_in(key, index), shown.shape)
            seen.append(
                smdp.LinearObservation(float(ts[index]), sensors, shown + std * noise, std**2)
            )
        return seen

    def sample(self, run: Run, key: PRNGKeyArray) -> dict[str, Any]:
        k_burgers, k_heat = jax.random.split(key)
        return {
            "burgers": {n: self._burgers(run, s, k_burgers) for n, s in SHARES.items()},
            "heat": self._heat(k_heat),
        }

    def _burgers(self, run: Run, shares: Sequence[float], key: PRNGKeyArray) -> dict[str, Any]:
        """All cases, one after the other: compiled once."""
        ts, sensors, found = run.data.ts, np.s_[:: self.spacing], []
        for i, path in enumerate(run.truth["paths"]):
            k_noise, k_run = jax.random.split(jax.random.fold_in(key, i))
            seen = self.look(ts, jnp.asarray(path), shares, sensors, k_noise)
            past = smdp.condition(
                run.sde, run.score, seen, ts, num_particles=self.particles, key=k_run,
                data=run.data, solver=smdp.GaussianStep(1),
                tempering=smdp.Tempering(moves=self.moves, final_moves=2 * self.moves, nodes=2),
            )  # fmt: skip
            found.append(_record(past) | {"readings": seen[-1].value})
        return jax.tree.map(lambda *leaves: np.stack(leaves), *found)

    def _heat(self, key: PRNGKeyArray) -> dict[str, Any]:
        """One field, with what is exact beside what the particles say."""
        system = physics.Heat(self.heat_size)
        half = self.heat_size // 2 + 1
        linear = smdp.LinearPart(system.decay_rates()[:, :half], (_to_modes_2d, _to_field_2d))
        sde = smdp.SDE(system.drift, diffusion=system.noise, linear=linear)
        solver = smdp.GaussianStep(reference=lambda t: system.marginal_variance(t)[:, :half])
        ts = smdp.linear_grid(0.0, system.end_time, 32)
        k_prior, k_paths, k_noise, k_run = jax.random.split(key, 4)
        paths = smdp.simulate(sde, system.prior(k_prior, self.heat_particles + 1), ts, key=k_paths)
        truth, data = paths.xs[-1], smdp.Trajectories(ts, paths.xs[:-1])
        found: dict[str, Any] = {"truth": truth[0], "end": truth[-1]}
        for name, shares in SHARES.items():
            seen = self.look(ts, truth, shares, np.s_[::4, ::4], k_noise)
            past = smdp.condition(
                sde, system.score, seen, ts, num_particles=self.heat_particles, key=k_run,
                data=data, solver=solver,
            )  # fmt: skip
            mean, covariance, evidence = sensor_posterior(
                system,
                [o.matrix(truth[0]) for o in seen],
                [o.time for o in seen],
                [o.value for o in seen],
                seen[0].covariance,
            )
            found[name] = _record(past) | {
                "exact_mean": mean.reshape(truth[0].shape),
                "exact_std": np.sqrt(np.diag(covariance)).reshape(truth[0].shape),
                "exact_log_evidence": np.asarray(evidence),
            }
        return found

    def evaluate(self, run: Run, arrays: Mapping[str, Any]) -> Sequence[Metric]:
        truth = np.asarray(run.truth["paths"])[:, 0]
        found: list[Metric] = []
        misses = []
        for name in SHARES:
            record = arrays["burgers"][name]
            misses.append(evaluate.ensemble_mse(record["samples"].mean(axis=1), truth) ** 0.5)
            modes = jax.vmap(self.system().leading_modes)
            covered = evaluate.marginal_coverage(
                modes(jnp.asarray(truth)), jax.vmap(modes)(record["samples"]), jnp.array([0.8])
            )
            least = record["ess"].min(axis=1) / self.particles
            found += [
                Metric(
                    f"Burgers, {name}: RMSE of the mean / of the prior's", misses[-1] / truth.std()
                ),
                Metric(
                    f"Burgers, {name}: coverage of the modes' 80 % intervals",
                    np.mean(covered),
                    0.8,
                    note=f"{len(truth)} fields of {np.size(covered)} coefficients: "
                    f"± {0.4 / (len(truth) * np.size(covered)) ** 0.5:.2g}, were they independent",
                    tolerance=0.15,
                ),
                Metric(f"Burgers, {name}: least share of particles that count", np.median(least)),
                Metric(
                    f"Burgers, {name}: independent draws that they are worth",
                    np.median(record["independent"]),
                ),
                Metric(
                    f"Burgers, {name}: log evidence of the first field",
                    f"{record['log_evidence'][0]:.4g} ± {record['log_evidence_error'][0]:.2g}",
                    unit="nats",
                ),
            ]
        found.append(
            Metric(
                "Burgers: RMSE with three times / with one", misses[1] / misses[0], 1.0,
                bound="at most",
            )
        )  # fmt: skip
        for name in SHARES:
            found += _against_exact(name, arrays["heat"][name])
        return found

    def figures(self, run: Run, arrays: Mapping[str, Any]) -> Mapping[str, ReportFigure]:
        paths, burgers, heat = np.asarray(run.truth["paths"]), arrays["burgers"], arrays["heat"]
        points = np.arange(self.size) / self.size
        exact = heat["three times"]
        std = self.sensor_noise * float(paths[0, -1].std())
        found = {
            "burgers": ReportFigure(
                evaluate.plots.sensor_profiles(
                    points,
                    paths[0, 0],
                    paths[0, -1],
                    points[:: self.spacing],
                    burgers["one time"]["readings"][0],
                    {name: burgers[name]["samples"][0, :40] for name in SHARES},
                    reading_error=std,
                ),
                "Burgers' equation: what a few noisy sensors showed of the end state, and samples "
                "of the initial field, from the end alone and from three times.",
            ),
            "heat": ReportFigure(
                evaluate.plots.field_panel(
                    heat["truth"],
                    heat["end"],
                    exact["samples"],
                    exact["samples"].mean(axis=0),
                    exact["samples"].std(axis=0),
                    exact["exact_mean"],
                    exact["exact_std"],
                ),
                "Heat equation, seen by every fourth point in each direction at three times: "
                "samples, their mean and spread, and the exact ones.",
            ),
        }
        for name in SHARES:
            record = {k: v[0] for k, v in burgers[name].items()}
            found[f"particles_{name.split()[0]}"] = ReportFigure(
                evaluate.plots.particles(
                    run.data.ts,
                    *(record[k] for k in ("ess", "resampled", "temperatures")),
                    *(record[k] for k in ("acceptance", "step_sizes")),
                    num_particles=self.particles,
                    log_evidence=float(record["log_evidence"]),
                    log_evidence_error=float(record["log_evidence_error"]),
                ),
                f"Burgers' equation, {name}: share of the particles that count on the way back, "
                "and how the end state was tempered.",
            )
        return found


_to_modes_1d, _to_field_1d = (partial(f, norm="ortho") for f in (jnp.fft.rfft, jnp.fft.irfft))
_to_modes_2d, _to_field_2d = (partial(f, norm="ortho") for f in (jnp.fft.rfft2, jnp.fft.irfft2))


def _record(past: smdp.Conditioned) -> dict[str, Any]:
    """What is kept of a posterior."""
    info = past.info
    return {
        "samples": np.asarray(past.samples),
        "log_evidence": np.asarray(past.log_evidence),
        "log_evidence_error": np.asarray(past.log_evidence_error),
        "independent": np.asarray(info.independent),
        **{
            name: np.asarray(getattr(info, name))
            for name in ("ess", "resampled", "temperatures", "acceptance", "step_sizes")
        },
    }


def _against_exact(name: str, record: Mapping[str, Any]) -> list[Metric]:
    """The heat equation, where all is known."""
    samples, spread = record["samples"], record["exact_std"]
    miss = np.sqrt(np.mean((samples.mean(axis=0) - record["exact_mean"]) ** 2))
    off = abs(record["log_evidence"] - record["exact_log_evidence"])
    count = f"{len(samples)} particles; least effective size {record['ess'].min():.0f}"
    return [
        Metric(
            f"heat, {name}: distance of the mean / exact RMSE",
            miss / np.sqrt(np.mean(spread**2)),
            0.15,
            note=count,
            bound="at most",
        ),
        Metric(
            f"heat, {name}: std / exact", (samples.std(axis=0) / spread).mean(), 1.0, tolerance=0.1
        ),
        Metric(
            f"heat, {name}: |log evidence - exact|",
            off,
            max(5 * float(record["log_evidence_error"]), 0.1),
            unit="nats",
            note=f"exact: {record['exact_log_evidence']:.4g}; wanted: 5 stated errors",
            bound="at most",
        ),
    ]


PRESETS = {
    "small": Config(),
    "paper": Config(
        size=128, time_steps=256, channels=32, blocks=4,
        test_cases=50, particles=2048, heat_size=32, heat_particles=2048,
    ),
}  # fmt: skip
