"""Evaluation of a flow that is solved backward, against the truth and against its physics alone.

Three parts, as an experiment needs them: ``sample`` reverses the physics in all ways that do
without a score and simulates every estimate forward, ``evaluate`` compares, ``figures`` draws.
States are one field on a periodic square, the vorticity.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from smdp_jax import evaluate as metrics
from smdp_jax.evaluate import Metric, ReportFigure
from smdp_jax.evaluate.arrays import AnyArray
from smdp_jax.physics.spectral import vorticity
from smdp_jax.sde import FlowMap
from smdp_jax.studies.noise_free import best_negated_starts, negated_walk, walk

_NAMES = {
    "sample": "a sample",
    "mean": "mean of samples",
    "noise_free": "noise-free path, as in the windows of training",
    "negated": "physics alone, negated steps",
    "backward": "physics alone, simulator run backward",
    "inverse": "physics alone, learned inverse",
    "end": "the end state itself",
}
_PHYSICS_ALONE = ("negated", "backward", "inverse")


def energy_spectrum(w: Float[Array, "size size"]) -> Float[Array, "shells"]:
    """Kinetic energy of the flow in every shell of wavenumbers."""
    u, v = (metrics.power_spectrum(part) for part in vorticity.velocity(w))
    return (u + v) / 2


def sample(
    step: FlowMap,
    inverse: FlowMap,
    ts: Float[Array, "times"],
    paths: Float[Array, "fields times size size"],
    samples: Float[Array, "fields samples size size"],
    noise_free: Float[Array, "fields times size size"],
) -> dict[str, Any]:
    """Reverse the physics alone in three ways, and simulate all estimates of the start forward."""
    x_end = paths[:, -1]

    def batched(f: Callable[[Array], Array]) -> Callable[[Array], Array]:
        return jax.jit(jax.vmap(f))

    forward = batched(lambda x: walk(step, x, ts))
    negated, stride = best_negated_starts(step, x_end, ts)
    estimates = {
        "true": paths[:, 0],
        "mean": samples.mean(axis=1),
        "noise_free": noise_free[:, 0],
        "negated": negated,
        "backward": batched(lambda x: walk(step, x, ts[::-1]))(x_end),
        "inverse": batched(lambda x: walk(inverse, x, ts[::-1]))(x_end),
        "end": x_end,
    }
    ends = {name: forward(x) for name, x in estimates.items()}
    ends["sample"] = jax.lax.map(forward, samples.swapaxes(0, 1)).swapaxes(0, 1)
    return {
        "estimates": estimates | {"sample": samples},
        "ends": ends,
        "negated_path": jax.jit(lambda x: negated_walk(step, x, ts, stride=1))(x_end[0]),
        "negated_stride": stride,
    }


def evaluate(
    arrays: Mapping[str, Any],
    observed: Float[AnyArray, "fields size size"],
    *,
    dt: float,
    kmax: int,
) -> list[Metric]:
    """Compare the estimates with the truth, and where they lead with what was observed."""
    estimates = arrays["estimates"]
    truth, samples = estimates["true"], estimates["sample"]
    error = {name: metrics.ensemble_mse(end, observed) for name, end in arrays["ends"].items()}
    spectra = {
        "vorticity": lambda w: metrics.amplitude_spectrum(w, kmax),
        "energy": lambda w: energy_spectrum(w)[: kmax + 1],
    }
    spectral = {
        field: {name: _distance(spectrum, estimates[name], truth) for name in _NAMES}
        for field, spectrum in spectra.items()
    }
    unlike = _distance(spectra["vorticity"], np.roll(truth, 1, axis=0), truth)
    spread = np.sqrt(samples.var(axis=1, ddof=1).mean() * (1 + 1 / samples.shape[1]))
    length = arrays["negated_stride"] * dt
    notes = {
        "sample": f"the true start has {error['true']:.3g} = 1",
        "negated": f"steps of {length:g}: of all lengths the one that ends nearest",
    }
    alone = min(error[name] for name in _PHYSICS_ALONE) / error["sample"]
    found, wanted = spectral["vorticity"]["sample"], spectral["vorticity"]["noise_free"]
    note = f"that of the noise-free path; two unrelated states: {unlike:.3f}"
    ratio = spread / metrics.ensemble_mse(estimates["mean"], truth) ** 0.5
    calibrated = "1 where the posterior is calibrated"
    rows = [
        Metric("reconstruction MSE, best physics alone / a sample", alone, 3.0, bound="at least"),
        Metric("spectral error of a sample", found, wanted, note=note, bound="at most"),
        Metric("spread / error of the mean of samples", ratio, 1.0, note=calibrated),
    ]
    for name, what in _NAMES.items():
        label, floor = f"reconstruction MSE / noise floor: {what}", error["true"]
        rows.append(Metric(label, error[name] / floor, note=notes.get(name, "")))
    for name, what in _NAMES.items():
        missed = metrics.ensemble_mse(estimates[name], truth)
        rows.append(Metric(f"MSE of the start: {what}", missed))
    for field, errors in spectral.items():
        for name, what in _NAMES.items():
            rows.append(Metric(f"spectral error of the {field}: {what}", errors[name]))
    return rows


def figures(
    arrays: Mapping[str, Any],
    ts: Float[np.ndarray, "times"],
    paths: Float[np.ndarray, "fields times size size"],
    shown: Mapping[str, Float[np.ndarray, "times size size"]],
    *,
    kmax: int,
) -> dict[str, ReportFigure]:
    """Draw the first field, its way backward in time, and the spectra of all."""
    estimates, power = arrays["estimates"], jax.jit(jax.vmap(metrics.power_spectrum))
    samples = estimates["sample"]
    moving = {"Truth": paths[0], **shown, "Physics alone": arrays["negated_path"]}
    # What leaves the range of the truth, or is not finite, is shown as its limit.
    limit = 1.2 * np.abs(paths[0]).max()
    moving = {
        title: np.clip(np.nan_to_num(path, nan=limit), -limit, limit)[::-1]
        for title, path in moving.items()
    }
    moving = {"Truth": moving.pop("Truth"), "Observed": paths[0, -1], **moving}
    spectra = {
        "truth": power(paths[:, 0]),
        "samples": power(samples[:, 0]),
        "noise-free path": np.median(power(estimates["noise_free"]), axis=0),
        "mean of samples": np.median(power(estimates["mean"]), axis=0),
        "end states": np.median(power(paths[:, -1]), axis=0),
    }
    # Truth's modes that the simulator empties fall out of single precision: nothing to be seen.
    spectra = {
        name: np.where(values > 1e-9 * spectra["truth"].max(), values, np.nan)
        for name, values in spectra.items()
    }
    plots, count, drawn = metrics.plots, samples.shape[1], samples[0]
    moments = drawn.mean(axis=0), drawn.std(axis=0, ddof=1)
    shells = np.arange(spectra["truth"].shape[1], dtype=float)
    return {
        "fields": ReportFigure(
            plots.field_panel(paths[0, 0], paths[0, -1], drawn, *moments, field_unit="1/time"),
            f"Vorticity at t = {ts[0]:g}, observed at t = {ts[-1]:g}, and samples of what may have "
            f"been; below, mean and spread of {count} samples.",
        ),
        "backward": ReportFigure(
            plots.field_animation(ts[::-1], moving),
            "Vorticity backward in time, from the observed state. The physics alone, walked back "
            "by negated steps, leaves the range of the colours.",
        ),
        "spectra": ReportFigure(
            plots.power_spectra(shells, spectra, kmax=kmax),
            f"Power of the vorticity over wavenumber in {len(paths)} fields: median, and for truth "
            "and samples the band of 90 %.",
        ),
    }


def _distance(spectrum: Callable[[Any], Any], w: Any, truth: Any) -> float:
    """Mean distance of log spectra from the truth's; samples on the second axis of ``w``."""
    several = w if w.ndim > truth.ndim else w[:, None]
    logs = [jnp.log(jax.jit(jax.vmap(jax.vmap(spectrum)))(x)) for x in (several, truth[:, None])]
    return float(jnp.abs(logs[0] - logs[1])[..., 1:].mean())
