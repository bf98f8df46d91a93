"""Log densities along the flow, and what the evidence tells of a physical parameter.

Parts of ``observations.py``.
"""

import time
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from harness import Row, Target
from linear_gaussian import ExactHeatSteps

import smdp_jax as smdp
from smdp_jax import physics

START, END, TRUE = 0.02, 0.2, 1.0


def log_densities(options: Any) -> tuple[list[Row], list[Target]]:
    """Affine and heat by the exact trace, heat by Hutchinson's estimate."""
    affine, heat = physics.Affine(rate=0.5, noise=0.3), physics.Heat(size=options.size)
    xs = jnp.array([[0.01], [-0.3], [0.9], [1.6]])
    rows: list[Row] = [
        _row(
            "affine, exact trace", affine.sde(), affine, xs, jnp.geomspace(START, 3.0, 61),
            jax.vmap(lambda x: affine.log_density(3.0, x))(xs), diffrax.Dopri8(),
        )
    ]  # fmt: skip
    k_prior, k_noise, k_probe = jax.random.split(jax.random.key(options.seed + 5), 3)
    x0 = heat.prior(k_prior, 3)
    fields = jax.vmap(heat.transition, (0, None, None, 0))(
        jax.random.split(k_noise, 3), 0.0, END, x0
    )
    known = jax.vmap(heat.log_evidence)(fields)
    given = (heat.continuous_sde(), heat, fields, smdp.linear_grid(START, END, 48), known)
    rows.append(_row("heat, exact trace", *given, diffrax.Dopri5(), chunk_size=256))
    more = {"trace": "hutchinson", "probes": 64, "key": k_probe}
    rows.append(_row("heat, 64 probes", *given, diffrax.Dopri5(), **more))
    return rows, [
        Target("affine, relative error", rows[0]["largest relative error"], 1e-4),
        Target("heat, relative error", rows[1]["largest relative error"], 1e-4),
        Target("heat, 64 probes, error in its own", rows[2]["largest error / stated"], 3.0),
    ]


def _row(
    name: str, sde: Any, system: Any, x: Any, ts: Any, known: Any, solver: Any, **more: Any
) -> dict[str, Any]:
    began = time.process_time()
    prior = lambda x, args: system.log_density(START, x)
    found = smdp.log_prob(sde, system.score, x, ts, prior, solver=solver, batch_axes=1, **more)
    off = np.abs(np.asarray(found.log_prob - known))
    error = np.asarray(found.standard_error)
    return {
        "of": name,
        "states": len(off),
        "log p, first": float(found.log_prob[0]),
        "exact": float(known[0]),
        "largest relative error": float((off / np.abs(np.asarray(known))).max()),
        "stated error": float(error.max()),
        "largest error / stated": float((off / error).max()) if error.all() else None,
        "s": (time.process_time() - began) / 2,
    }


def _closed_form(modes: Any, kappa: Any, prior: Any, noise: float, share: float) -> float:
    """Log p_T of one field, the diffusivity ``share`` times that of ``kappa``."""
    rates = kappa * share
    rate = np.where(rates > 0, rates, 1)
    grown = np.where(rates > 0, (1 - np.exp(-2 * rates * END)) / (2 * rate), END)
    total = prior * np.exp(-2 * rates * END) + noise**2 * grown
    return float(-0.5 * np.sum(modes / total + np.log(2 * np.pi * total)))


def diffusivity(options: Any) -> tuple[list[Row], list[Target]]:
    """Gradient of the log evidence of end states, and the diffusivity that maximises it."""
    truth = physics.Heat(size=options.size, diffusivity=TRUE)
    k_prior, k_noise, k_paths = jax.random.split(jax.random.key(options.seed + 6), 3)
    x0 = truth.prior(k_prior, options.ends)
    ends = jax.vmap(truth.transition, (0, None, None, 0))(
        jax.random.split(k_noise, options.ends), 0.0, END, x0
    )
    modes = np.abs(np.fft.fft2(np.asarray(ends, np.float64), norm="ortho")) ** 2
    kappa = np.asarray(truth.decay_rates(), np.float64) / TRUE
    first = np.asarray(truth.prior_variance(), np.float64)

    def exact(value: float) -> float:
        return sum(_closed_form(m, kappa, first, truth.noise, value) for m in modes)

    def slope_of(value: float) -> tuple[float, float]:
        """By ``certify``, with the sampler of that diffusivity; and by finite differences."""
        found = float(_slope(physics.Heat(options.size, value), ends, k_paths, options) / value)
        step = 1e-3 * value
        return found, (exact(value + step) - exact(value - step)) / (2 * step)

    rows, values, slopes = [], [0.8, 1.3], []
    for i in range(7):  # Regula falsi on the gradient of the sampled evidence.
        found, finite = slope_of(values[i])
        slopes.append(found)
        rows.append({"diffusivity": values[i], "gradient": found, "finite differences": finite})
        if i:
            (a, b), (fa, fb) = values[i - 1 : i + 1], slopes[i - 1 : i + 1]
            values.append(float(np.clip(b - fb * (b - a) / (fb - fa), 0.5, 2.0)))
            if abs(values[-1] - b) < 1e-3:
                break
    best = values[-1]
    curvature = (exact(best + 1e-2) - 2 * exact(best) + exact(best - 1e-2)) / 1e-4
    error = (-curvature) ** -0.5
    off = [abs(r["gradient"] / r["finite differences"] - 1) for r in rows[:2]]
    return rows, [
        Target("gradient / finite differences - 1, largest", max(off), 0.01),
        Target(
            "|most likely - true diffusivity|, in standard errors", abs(best - TRUE) / error, 2.0
        ),
        Target("most likely diffusivity", best),
        Target("its standard error", error),
    ]


def _slope(system: physics.Heat, ends: Any, key: Any, options: Any) -> Any:
    """d log p(ends) / d log diffusivity, by the gradient of the evidence of sampled paths."""
    # Exact whatever the steps; the fewer, the less the paths' own noise says of the diffusivity.
    ts, steps = smdp.linear_grid(START, END, 4), ExactHeatSteps(system)

    def prior(x: Any, share: Any) -> Any:
        return steps.log_density(START, x, share)

    def evidence(share: Any, end: Any, key: Any) -> Any:
        return smdp.certify(
            system.continuous_sde(), system.score, end, ts, prior,
            num_paths=options.evidence_paths, key=key, solver=steps, args=share,
        ).log_evidence  # fmt: skip

    keys = jax.random.split(key, len(ends))
    slopes = jax.lax.map(lambda pair: jax.grad(evidence)(jnp.ones(()), *pair), (ends, keys))
    return slopes.sum()
