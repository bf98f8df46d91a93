"""Noisy looks at a scalar process at some times, against the filter on a grid, for observations."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import Row, Target

import smdp_jax as smdp
from smdp_jax import physics


def scalar(
    options: Any, name: str, places: tuple[float, ...], values: tuple[float, ...]
) -> tuple[list[Row], list[Target]]:
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
    row = {
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
    return [row], [
        Target("error of P(+1)", abs(share - plus), 0.01),
        Target("|CRPS / grid's - 1|", abs(own / crps - 1), 0.01),
    ]


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
