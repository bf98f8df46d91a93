"""Partial, noisy observations at one time and at several, against exact answers.

Heat, 32 x 32, Gaussian-exact steps: every fourth point in each direction, noise of 5 % of the
field's std, once at T, and at T, T/2 and T/4; the posterior is a dense Gaussian, solved in float64.
With the exact score, and beside it guidance (baselines without weights); with the learned score
that is shipped (or a run's) over many cases. Affine and quadratic: noisy y at one and at three
times, bimodal; the posterior of the start from the transition densities on a grid. Log densities
and the gradient of the evidence: ``log_densities.py``. Seconds are processor seconds over two:
those of two idle cores. Each table is kept as soon as it is measured.

    python benchmarks/observations.py
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import log_densities
import numpy as np
import observed_scalars
from harness import Cell, Row, Settings, Target, parse, publish_cells, say
from linear_gaussian import ExactHeatSteps, exact_heat_paths

import smdp_jax as smdp
from smdp_jax import evaluate, physics
from smdp_jax.physics.exact.sensors import covariance_between, sensor_posterior

END = 0.2


@dataclass(frozen=True)
class Options(Settings):
    """Settings of this benchmark."""

    size: int = 32
    """Points per side of the heat equation."""
    paths: int = 2048
    """Simulated paths."""
    particles: int = 2048
    """Particles of the heat equation."""
    scalar_particles: int = 65536
    """Particles of the scalar processes: the error of a probability is about 0.5 / their root."""
    scalar_steps: int = 400
    """Euler steps of the scalar processes."""
    guided: int = 64
    """Samples of the guided baselines."""
    run: str = "pretrained"
    """A trained run of the heat equation, or the weights that are shipped; empty: none."""
    cases: int = 200
    """Truths that the learned score is tried on."""
    case_particles: int = 32
    """Particles for each of them."""
    case_steps: int = 12
    """Gaussian-exact steps back: as many as there are need one evaluation each."""
    draws: int = 15
    """Samples of each that are compared by rank."""
    evidence_paths: int = 2048
    """Backward paths of each evidence whose gradient is taken."""
    ends: int = 8
    """End states that tell the diffusivity."""
    only: tuple[str, ...] = ()
    """Tables to measure again, by words of their names."""
    seed: int = 0
    """Root of all random numbers."""


@dataclass(frozen=True)
class Sensors:
    """Sensors of the heat equation at some of its times, and what is exact about them."""

    options: Options
    indices: tuple[int, ...]
    """Of 32."""
    steps: int = 32

    @property
    def system(self) -> physics.Heat:
        """The heat equation."""
        return physics.Heat(size=self.options.size)

    @property
    def ts(self) -> Any:
        """Times of the backward steps."""
        return smdp.linear_grid(0.0, END, self.steps)

    def paths(self, key: Any, count: int) -> smdp.Trajectories:
        """Paths of the continuous process."""
        return exact_heat_paths(self.system, self.ts, key, count)

    def look(self, truth: Any, key: Any) -> list[smdp.LinearObservation]:
        """What noisy sensors show of a path."""
        sensors, variance = np.s_[::4, ::4], float((0.05 * truth[-1].std()) ** 2)
        seen = []
        for i in (i * self.steps // 32 for i in self.indices):
            shown = truth[i][sensors]
            noise = jax.random.normal(jax.random.fold_in(key, i), shown.shape)
            value = shown + variance**0.5 * noise
            seen.append(smdp.LinearObservation(float(self.ts[i]), sensors, value, variance))
        return seen

    def posterior(self, seen: list, like: Any) -> tuple[Any, Any, float]:
        """Exact mean and std per point, and log evidence."""
        looks, times = [o.matrix(like) for o in seen], [o.time for o in seen]
        values, variance = [o.value for o in seen], seen[0].covariance
        mean, covariance, evidence = sensor_posterior(self.system, looks, times, values, variance)
        return mean, np.sqrt(np.diag(covariance)), evidence


def heat(options: Options, indices: tuple[int, ...]) -> tuple[list[Row], list[Target]]:
    """The exact score: mean, spread and evidence, and what guidance makes of the same sensors."""
    sensors = Sensors(options, indices)
    system, ts = sensors.system, sensors.ts
    k_data, k_noise, k_run, k_guided = jax.random.split(jax.random.key(options.seed), 4)
    data = sensors.paths(k_data, options.paths + 1)
    truth, data = data.xs[-1], smdp.Trajectories(ts, data.xs[:-1])
    seen = sensors.look(truth, k_noise)
    mean, spread, evidence = sensors.posterior(seen, truth[0])

    compare = partial(_compare, mean, spread)
    began = time.process_time()
    found = smdp.condition(
        system.continuous_sde(), system.score, seen, ts, num_particles=options.particles,
        key=k_run, data=data, solver=ExactHeatSteps(system),
    )  # fmt: skip
    jax.block_until_ready(found.samples)
    row = compare("particles", found.samples, (time.process_time() - began) / 2)
    unknown = {"log evidence": None, "exact": None, "stated error": None, "least ESS": None}
    rows: list[Row] = [
        row
        | {
            "log evidence": float(found.log_evidence),
            "exact": evidence,
            "stated error": float(found.log_evidence_error),
            "least ESS": float(found.info.ess.min()),
        }
    ]
    for name, (score, ends) in _guided(sensors, seen, data).items():
        began = time.process_time()
        past = smdp.sample_posterior(
            system.sde(), score, ends, smdp.linear_grid(0.0, END, 256), num_samples=1,
            key=k_guided, batch_axes=1,
        )  # fmt: skip  # splitting steps of fewer are unstable here
        jax.block_until_ready(past.samples)
        own = compare(name, past.samples[:, 0], (time.process_time() - began) / 2)
        rows.append(own | unknown)
    off = abs(rows[0]["log evidence"] - evidence)
    reached = [
        Target("distance of mean / exact RMSE", row["mean: distance / RMSE"], 0.03),
        Target("RMS of std / exact - 1", row["std: RMS of ratio - 1"], 0.05),
        Target("|log evidence - exact|", off, 2.0),
        Target("|log evidence - exact|, in stated errors", off / rows[0]["stated error"], 3.0),
        Target("s", row["s"], 60.0),
    ]
    for own in rows[1:]:
        reached.append(Target(f"|std / exact - 1|, {own['by']}", abs(own["std / exact"] - 1)))
        reached.append(Target(f"distance of mean, {own['by']}", own["mean: distance / RMSE"]))
    return rows, reached


def _compare(mean: Any, spread: Any, name: str, samples: Any, seconds: float) -> dict[str, Any]:
    """Mean and spread of samples against the exact ones."""
    flat = np.asarray(samples, np.float64).reshape(len(samples), -1)
    miss = np.sqrt(np.mean((flat.mean(axis=0) - mean) ** 2) / np.mean(spread**2))
    ratio = flat.std(axis=0) / spread
    return {
        "by": name,
        "samples": len(flat),
        "mean: distance / RMSE": float(miss),
        "std: RMS of ratio - 1": float(np.sqrt(np.mean((ratio - 1) ** 2))),
        "std / exact": float(ratio.mean()),
        "s": seconds,
    }


def _guided(sensors: Sensors, seen: list, data: smdp.Trajectories) -> dict[str, Any]:
    """Scores of the baselines, and where they start.

    DPS starts from unconditioned end states; the moments are matched at the end, too: end states
    corrected by what the sensors there show of them (Matheron's rule, exact here).
    """
    system, options = sensors.system, sensors.options
    ends = data.xs[: options.guided, -1]
    last = seen[-1]
    look, flat = np.asarray(last.matrix(ends[0]), np.float64), np.asarray(ends, np.float64)
    flat = flat.reshape(len(flat), -1)
    noise = np.random.default_rng(options.seed).normal(size=(len(flat), len(look)))
    noise *= last.covariance**0.5
    cross = covariance_between(system, END, END) @ look.T
    total = look @ cross + last.covariance * np.eye(len(look))
    missing = np.asarray(last.value, np.float64).reshape(-1) + noise - flat @ look.T
    told = flat + np.linalg.solve(total, missing.T).T @ cross.T
    sde, score, twist = system.sde(), system.score, smdp.LinearTwist.of(data, seen)
    return {
        "DPS-style guidance": (smdp.dps_guidance(sde, score, seen), ends),
        "moment-matched guidance": (
            smdp.moment_matched_guidance(score, seen, twist),
            jnp.asarray(told.reshape(ends.shape), ends.dtype),
        ),
    }


def learned(options: Options, indices: tuple[int, ...]) -> tuple[list[Row], list[Target]]:
    """A learned score over many cases: error of the mean, spread, and ranks of the truths."""
    sensors = Sensors(options, indices, options.case_steps)
    score = (
        smdp.pretrained("heat").score
        if options.run == "pretrained"
        else smdp.load(options.run).score
    )
    system, ts, half = sensors.system, sensors.ts, options.size // 2 + 1
    transform = (partial(jnp.fft.rfft2, norm="ortho"), partial(jnp.fft.irfft2, norm="ortho"))
    solver = smdp.GaussianStep(
        1, smdp.LinearPart(system.decay_rates()[:, :half], transform), score.model.variance
    )
    k_data, k_truth, k_noise, k_run, k_rank = jax.random.split(jax.random.key(options.seed), 5)
    data, truths = sensors.paths(k_data, options.paths), sensors.paths(k_truth, options.cases)
    twist = smdp.LinearTwist.of(data, sensors.look(truths.xs[0], k_noise))
    kept, rows = [], []
    began = time.process_time()
    for i, truth in enumerate(truths.xs):
        seen = sensors.look(truth, jax.random.fold_in(k_noise, i))
        mean, spread, _ = sensors.posterior(seen, truth[0])
        found = smdp.condition(
            system.continuous_sde(), score, seen, ts, num_particles=options.case_particles,
            key=jax.random.fold_in(k_run, i), data=data, twist=twist, solver=solver,
            tempering=smdp.Tempering(ess=0.3, moves=1, final_moves=2, nodes=2),
        )  # fmt: skip
        samples = np.asarray(found.samples)
        kept.append(samples[:: max(len(samples) // options.draws, 1)][: options.draws])
        rows.append(
            {
                "mean": np.mean((samples.mean(axis=0) - np.asarray(truth[0])) ** 2),
                "exact mean": np.mean((mean.reshape(truth[0].shape) - np.asarray(truth[0])) ** 2),
                "variance": samples.var(axis=0, ddof=1).mean(),
                "exact variance": np.mean(spread**2),
                "ess": float(found.info.ess.min()),
                "acceptance": float(np.nanmean(found.info.acceptance)),
            }
        )
        if i % 10 == 0:
            say(f"{i} of {options.cases}, {(time.process_time() - began) / 2:.0f} s: {rows[-1]}")
    total = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    band = evaluate.rank_band(options.cases, options.draws, level=0.99)
    ranks = np.asarray(evaluate.tarp_ranks(truths.xs[:, 0], np.stack(kept), key=k_rank))
    shares = np.mean(ranks[:, None] <= np.arange(options.draws), axis=0)
    outside = np.maximum(band.low - shares, shares - band.high).max()
    row = {
        "cases": options.cases,
        "RMSE of the mean / exact": (total["mean"] / total["exact mean"]) ** 0.5,
        "std / exact": (total["variance"] / total["exact variance"]) ** 0.5,
        "TARP: largest excess over its band": float(outside),
        "TARP p": float(evaluate.uniformity_test(jnp.asarray(ranks), options.draws).p_value),
        "least ESS, mean": total["ess"],
        "acceptance": total["acceptance"],
        "s per case": (time.process_time() - began) / 2 / options.cases,
    }
    return [row], [
        Target("RMSE of the mean / exact", row["RMSE of the mean / exact"], 1.10),
        Target("|std / exact - 1|", abs(row["std / exact"] - 1), 0.10),
        Target("TARP: largest excess over its 99 % band", float(outside), 0.0),
    ]


def cells(options: Options) -> dict[str, Cell]:
    """All tables by name."""
    times = {"at T": (32,), "at T, T/2 and T/4": (8, 16, 32)}
    found: dict[str, Cell] = {
        f"heat, exact score, {name}": partial(heat, options, indices)
        for name, indices in times.items()
    }
    for name, places, values in (
        ("affine", (2.0,), (0.05,)),
        ("affine", (0.5, 1.0, 2.0), (0.1, -0.05, 0.1)),
        ("quadratic", (2.0,), (0.01,)),
        ("quadratic", (0.5, 1.0, 2.0), (0.06, 0.0, 0.03)),
    ):
        number = {1: "one time", 3: "three times"}[len(places)]
        found[f"{name}, {number}"] = partial(observed_scalars.scalar, options, name, places, values)
    found["log density"] = partial(log_densities.log_densities, options)
    found["diffusivity"] = partial(log_densities.diffusivity, options)
    if options.run:
        for name, indices in times.items():
            found[f"heat, learned score, {name}"] = partial(learned, options, indices)
    return found


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Measure what is missing, and publish."""
    quick = {
        "size": 8, "paths": 64, "particles": 64, "scalar_particles": 64, "scalar_steps": 20,
        "guided": 2, "run": "", "evidence_paths": 8, "ends": 2,
    }  # fmt: skip
    options = parse(Options(), quick, __doc__, given)
    return publish_cells(options, __file__, cells(options), options.only)


if __name__ == "__main__":
    main()
