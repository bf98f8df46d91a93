"""Partial, noisy observations at one time and at several, against exact answers.

Heat, 32 x 32, exact score, Gaussian-exact steps: every fourth point in each direction, noise of
5 % of the field's std, once at T, and at T, T/2 and T/4; the posterior is a dense Gaussian, solved
in float64. Beside it DPS-style guidance (a baseline without weights). Affine and quadratic: noisy
y at one and at three times, bimodal; the posterior of the start from the transition densities on a
grid. Seconds are processor seconds over two: those of two idle cores.

    python benchmarks/observations.py
"""

import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import Row, Settings, Target, parse, publish, say
from linear_gaussian import ExactHeatSteps, exact_heat_paths, heat_posterior

import smdp_jax as smdp
from smdp_jax import physics
from smdp_jax.scores.guidance import dps_guidance


@dataclass(frozen=True)
class Options(Settings):
    """Settings of this benchmark."""

    size: int = 32
    """Points per side of the heat equation."""
    paths: int = 2048
    """Simulated paths."""
    particles: int = 2048
    """Particles of the heat equation."""
    scalar_particles: int = 8192
    """Particles of the scalar processes."""
    scalar_steps: int = 400
    """Euler steps of the scalar processes."""
    guided: int = 64
    """Samples of the guided baseline."""
    seed: int = 0
    """Root of all random numbers."""


def heat(options: Options, indices: tuple[int, ...]) -> Row:
    """Sensors of the heat equation at some times of 32 steps."""
    system, ts = physics.Heat(size=options.size), smdp.linear_grid(0.0, 0.2, 32)
    k_data, k_noise, k_run, k_guided = jax.random.split(jax.random.key(options.seed), 4)
    data = exact_heat_paths(system, ts, k_data, options.paths + 1)
    truth, sensors = data.xs[-1], np.s_[::4, ::4]
    data = smdp.Trajectories(ts, data.xs[:-1])
    variance = float((0.05 * truth[-1].std()) ** 2)
    times = [float(ts[i]) for i in indices]
    values = [
        truth[i][sensors]
        + variance**0.5 * jax.random.normal(jax.random.fold_in(k_noise, i), truth[i][sensors].shape)
        for i in indices
    ]
    seen = [
        smdp.LinearObservation(t, sensors, v, variance) for t, v in zip(times, values, strict=True)
    ]
    started = time.process_time()
    found = smdp.condition(
        system.continuous_sde(),
        system.score,
        seen,
        ts,
        num_particles=options.particles,
        key=k_run,
        data=data,
        solver=ExactHeatSteps(system),
    )
    jax.block_until_ready(found.samples)
    seconds = (time.process_time() - started) / 2
    looks = [o.matrix(truth[0]) for o in seen]
    mean, covariance, evidence = heat_posterior(system, looks, times, values, variance)
    spread = np.sqrt(np.diag(covariance))
    score = dps_guidance(system.sde(), system.score, seen, scale=1.0)
    guided = smdp.sample_posterior(
        system.sde(),
        score,
        data.at(0, -1),
        smdp.linear_grid(0.0, 0.2, 256),  # splitting steps of fewer are unstable here
        num_samples=options.guided,
        key=k_guided,
    ).samples

    def compare(samples: Any) -> tuple[float, float, float]:
        flat = np.asarray(samples, np.float64).reshape(len(samples), -1)
        miss = np.sqrt(np.mean((flat.mean(axis=0) - mean) ** 2) / np.mean(spread**2))
        ratio = flat.std(axis=0) / spread
        return float(miss), float(np.sqrt(np.mean((ratio - 1) ** 2))), float(ratio.mean())

    miss, off, ratio = compare(found.samples)
    guided_miss, _, guided_ratio = compare(guided)
    return {
        "sensors at": ", ".join(f"{t:g}" for t in times),
        "mean: distance / RMSE": miss,
        "std: RMS of ratio - 1": off,
        "std / exact": ratio,
        "log evidence": float(found.log_evidence),
        "exact": evidence,
        "stated error": float(found.log_evidence_error),
        "least ESS": float(found.info.ess.min()),
        "s": seconds,
        "DPS: mean": guided_miss,
        "DPS: std / exact": guided_ratio,
    }


def scalar(
    options: Options, name: str, places: tuple[float, ...], values: tuple[float, ...]
) -> Row:
    """P(+1) and CRPS of the start of a scalar process from noisy values at some times."""
    system = physics.Affine(0.5, 0.3) if name == "affine" else physics.Quadratic(7.0, 0.1)
    end, variance = 2.0, 0.05**2 if name == "quadratic" else 0.2**2
    exact = (
        system if isinstance(system, physics.Affine) else physics.reference(system, end_time=end)
    )
    ts = jnp.geomspace(2e-3, end, options.scalar_steps + 1)
    places = tuple(float(ts[int(jnp.abs(ts - t).argmin())]) for t in places)
    k_prior, k_paths, k_run = jax.random.split(jax.random.key(options.seed), 3)
    x0 = system.prior(k_prior, options.paths)
    grid = jnp.concatenate([jnp.zeros(1), ts])
    data = smdp.simulate(system.sde(), x0, grid, key=k_paths)
    data = smdp.Trajectories(ts, data.xs[:, 1:])
    seen = [
        smdp.LinearObservation(t, 0, jnp.asarray(v), variance)
        for t, v in zip(places, values, strict=True)
    ]
    started = time.process_time()
    found = smdp.condition(
        system.sde(), exact.score, seen, ts, num_particles=options.scalar_particles, key=k_run,
        data=data, resample=False,
    )  # fmt: skip
    seconds = (time.process_time() - started) / 2
    share = float(found.mean(lambda x: (x[0] > 0).astype(x.dtype)))
    evidence, plus = _filtered(system, places, values, variance)
    # The CRPS of a start that is +1 or -1 is 2 (1 - p)^2, p the chance given to the true one.
    crps = 2 * plus * (1 - plus)
    own = 2 * (plus * (1 - share) ** 2 + (1 - plus) * share**2)
    return {
        "process": name,
        "times": ", ".join(f"{t:.3g}" for t in places),
        "P(+1)": share,
        "grid": plus,
        "CRPS / grid's": own / crps,
        "log evidence": float(found.log_evidence),
        "of the grid": evidence,
        "stated error": float(found.log_evidence_error),
        "least ESS": float(found.info.ess.min()),
        "s": seconds,
    }


def _filtered(
    system: Any, places: tuple[float, ...], values: tuple[float, ...], variance: float
) -> tuple[float, float]:
    """Log evidence and P(+1) by filtering each start on a grid, in steps of a small Gaussian."""
    points, inner = np.linspace(-1.6, 1.6, 1601), 300
    width, logs = points[1] - points[0], []
    with jax.enable_x64(True):
        drift = np.asarray(jax.vmap(lambda x: system.drift(0.0, x[None])[0])(jnp.asarray(points)))
    for sign in (1.0, -1.0):
        last, total, mass = 0.0, np.log(0.5), None
        for t, y in zip(places, values, strict=True):
            dt = (t - last) / inner
            kernel = _kernel(points, drift, dt, system.noise) * width
            if mass is None:
                first = sign + dt * float(system.drift(0.0, jnp.array([sign]))[0])
                scale = system.noise * np.sqrt(dt)
                mass = np.exp(-0.5 * ((points - first) / scale) ** 2)
                mass = mass / mass.sum()
            for _ in range(inner - (last == 0)):
                mass = kernel @ mass
            density = np.exp(-0.5 * (y - points) ** 2 / variance)
            density = density / np.sqrt(2 * np.pi * variance)
            mass = mass * density
            total, mass, last = total + np.log(mass.sum()), mass / mass.sum(), t
        logs.append(total)
    evidence = np.logaddexp(*logs)
    return float(evidence), float(np.exp(logs[0] - evidence))


def _kernel(points: np.ndarray, drift: np.ndarray, dt: float, noise: float) -> np.ndarray:
    means = points + dt * drift
    scale = noise * np.sqrt(dt)
    return np.exp(-0.5 * ((points[:, None] - means[None]) / scale) ** 2) / (
        scale * np.sqrt(2 * np.pi)
    )


def main() -> None:
    """Run all cases and publish."""
    quick = {
        "size": 8, "paths": 64, "particles": 64, "scalar_particles": 64, "scalar_steps": 20,
        "guided": 2,
    }  # fmt: skip
    options = parse(Options(), quick, __doc__)
    started = time.perf_counter()
    fields: list[Row] = []
    reached: list[Target] = []
    for indices in ((32,), (8, 16, 32)):
        row = heat(options, indices)
        fields.append(row)
        say(str(row))
        name, off = f"heat, {len(indices)} times", abs(row["log evidence"] - row["exact"])
        reached += [
            Target(f"{name}: distance of mean / exact RMSE", row["mean: distance / RMSE"], 0.03),
            Target(f"{name}: RMS of std / exact - 1", row["std: RMS of ratio - 1"], 0.05),
            Target(f"{name}: |log evidence - exact|", off, 2.0),
            Target(f"{name}: ... in stated errors", off / row["stated error"], 3.0),
            Target(f"{name}: s", row["s"], 60.0),
            Target(f"{name}: |std / exact - 1| of DPS", abs(row["DPS: std / exact"] - 1)),
        ]
    scalars: list[Row] = []
    cases = (
        ("affine", (2.0,), (0.05,)),
        ("affine", (0.5, 1.0, 2.0), (0.1, -0.05, 0.1)),
        ("quadratic", (2.0,), (0.01,)),
        ("quadratic", (0.5, 1.0, 2.0), (0.06, 0.0, 0.03)),
    )
    for case in cases:
        row = scalar(options, *case)
        scalars.append(row)
        say(str(row))
        name = f"{case[0]}, {len(case[1])} times"
        reached += [
            Target(f"{name}: error of P(+1)", abs(row["P(+1)"] - row["grid"]), 0.01),
            Target(f"{name}: |CRPS / grid's - 1|", abs(row["CRPS / grid's"] - 1), 0.01),
        ]
    publish(options, __file__, {"heat": fields, "scalar": scalars}, reached, started)


if __name__ == "__main__":
    main()
