r"""The default route on problems that nobody tuned it to: is the answer right the first time?

``fit(sde, models.for_fields(data), data, steps=..., key=...)`` and ``sample_posterior`` with
``fit.kernel``, nothing chosen beside the number of updates, over seeds. Compared with the exact
posterior where there is one (CRPS of its draws, its spread), with weighted particles for Lorenz's
system, and for all with the true starts of unseen paths: coverage, ranks (SBC, TARP), the end
states that the samples lead to, and lost paths. ``estimated`` is the kernel without a network.

    python benchmarks/newcomer.py
    python benchmarks/newcomer.py --cases gray_scott --seeds 0 1 2
"""

import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import Row, Settings, Target, parse, publish, say
from jaxtyping import Array
from newcomer_problems import CASES, Case

import smdp_jax as smdp
from smdp_jax.evaluate import crps_ensemble, default_observables


@dataclass(frozen=True)
class Options(Settings):
    """Settings of this benchmark."""

    cases: tuple[str, ...] = tuple(CASES)
    """Problems, by name."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of paths, training and samples."""
    paths: int = 0
    """Training paths; 0: as many as the problem says."""
    steps: int = 0
    """Updates; 0: as many as the problem says."""
    test_paths: int = 400
    """Unseen paths, whose ends are observed."""
    samples: int = 99
    """Posterior draws of each."""
    particles: int = 500_000
    """Of the reference for Lorenz's system."""
    estimated: bool = True
    """Also the kernels without a network, where the posterior is known."""


def exact_draws(case: Case, test: smdp.Trajectories, number: int, seed: int) -> tuple[Array, Any]:
    """Draws of Gaussian posteriors, entry by entry, and their standard deviations."""
    assert case.exact is not None
    ends = np.asarray(test.xs[:, -1])
    moments = [case.exact(x, test.args_of(i)) for i, x in enumerate(ends)]
    mean = np.stack([m for m, _ in moments])
    std = np.stack([np.broadcast_to(s, m.shape) for m, s in moments])
    white = np.random.default_rng(seed).normal(size=(number, *mean.shape))
    draws = np.moveaxis(mean + std * white, 0, 1)
    return jnp.asarray(draws, test.xs.dtype), std


def particle_draws(case: Case, test: smdp.Trajectories, number: int, particles: int) -> Array:
    """Starts of particles, weighed by the density of the end given them shortly before it.

    Over the last 0.05 the flow is linearised about each particle's own noise-free path.
    """
    drift, g = case.sde.drift, float(case.sde.diffusion)
    assert drift is not None
    before, dt, short = 360, 0.00125, 40

    def heun(x: Any, noise: Any) -> Any:
        slope = drift(0.0, x, None)
        return x + dt * (slope + drift(0.0, x + dt * slope + noise, None)) / 2 + noise

    def path(key: Any, x: Any) -> Any:
        def step(x: Any, i: Any) -> tuple[Any, None]:
            noise = g * jnp.sqrt(dt) * jax.random.normal(jax.random.fold_in(key, i), x.shape)
            return heun(x, noise), None

        x = jax.lax.scan(step, x, jnp.arange(before))[0]

        def spread(state: Any, _: Any) -> tuple[Any, None]:
            x, covariance = state
            flow = jax.jacfwd(lambda x: heun(x, jnp.zeros(3)))(x)
            grown = flow @ covariance @ flow.T + g**2 * dt * jnp.eye(3)
            return (heun(x, jnp.zeros(3)), grown), None

        (end, covariance), _ = jax.lax.scan(spread, (x, jnp.zeros((3, 3))), None, length=short)
        return end, jnp.linalg.inv(covariance), jnp.linalg.slogdet(covariance)[1]

    k_start, k_path, k_draw = jax.random.split(jax.random.key(12345), 3)
    starts = case.prior(k_start, particles)
    keys = jax.random.split(k_path, particles)
    ends = jax.jit(lambda k, x: jax.lax.map(lambda a: path(*a), (k, x), batch_size=20_000))
    means, precisions, logs = ends(keys, starts)

    @jax.jit
    def draw(key: Any, x_end: Any) -> Any:
        away = x_end[None] - means
        weight = -0.5 * jnp.einsum("ni,nij,nj->n", away, precisions, away) - 0.5 * logs
        chosen = jax.random.categorical(key, weight, shape=(number,))
        return starts[chosen]

    return jax.lax.map(
        lambda a: draw(*a), (jax.random.split(k_draw, test.num_samples), test.xs[:, -1])
    )


def crps_of(draws: Array, truths: Array) -> float:
    """Mean over unseen paths and entries."""
    return float(jax.vmap(crps_ensemble)(draws, truths).mean())


def measured(
    case: Case, kernel: smdp.LearnedKernel, test: smdp.Trajectories, options: Options, seed: int
) -> Row:
    """Sample the pasts of unseen ends and judge them by their true starts."""
    k_sample, k_report = jax.random.split(jax.random.key(1000 + seed))
    ends = jax.tree.map(lambda x: x[:, -1], test.xs)
    began = time.perf_counter()
    past = smdp.sample_posterior(
        case.sde,
        kernel,
        ends,
        test.ts,
        num_samples=options.samples,
        key=k_sample,
        args=test.args,
        args_axes=test.args_axes,
        batch_axes=1,
        chunk_size=2000,
    )
    jax.block_until_ready(past)
    took = time.perf_counter() - began
    observed = case.observables or default_observables
    report = smdp.calibration_report(
        case.sde,
        kernel,
        test,
        key=k_report,
        drawn=past,
        num_samples=options.samples,
        observables=observed,
    )
    largest = jax.tree.map(lambda x: float(jnp.abs(x).max()), test.xs)
    out = sum(
        int((jnp.abs(x).reshape(*x.shape[:2], -1).max(axis=-1) > 5 * size).sum())
        for x, size in zip(jax.tree.leaves(past.samples), jax.tree.leaves(largest), strict=True)
    )
    miss = np.abs(report.coverage - report.nominal)
    reconstruction = [r.value / r.reference for r in report.reconstruction.values()]
    return {
        "lost": round(report.lost * test.num_samples * options.samples) + out,
        "coverage 50 %": float(report.coverage[0]),
        "coverage 90 %": float(report.coverage[1]),
        "coverage off": float(miss.max()),
        "TARP p": report.tarp_p,
        "SBC p, least": float(np.min(report.sbc_p)),
        "SBC tests": len(report.sbc_p),
        "reconstruction / floor": float(np.max(reconstruction)),
        "sampling s": took,
        "draws": past.samples,
    }


def rows_of(name: str, options: Options, seed: int) -> list[Row]:
    """Simulate, learn, sample and judge, with the network and without."""
    case = CASES[name]()
    k_paths, k_test, k_fit = jax.random.split(jax.random.key(seed), 3)
    began, busy = time.perf_counter(), time.process_time()
    data = case.simulate(k_paths, options.paths or case.paths)
    jax.block_until_ready(data.xs)
    simulated = time.perf_counter() - began
    test = case.simulate(k_test, options.test_paths)
    began = time.perf_counter()
    fit = smdp.fit(
        case.sde,
        smdp.models.for_fields(data),
        data,
        steps=options.steps or case.steps,
        key=k_fit,
        progress=False,
    )
    trained, busy = time.perf_counter() - began, time.process_time() - busy
    kernels = {"default": fit.kernel}
    if options.estimated and case.exact is not None:
        kernels["estimated"] = smdp.estimate_kernel(case.sde, data)
    reference, std = None, None
    if case.exact is not None:
        reference, std = exact_draws(case, test, options.samples, seed)
    elif name == "lorenz":
        reference = particle_draws(case, test, options.samples, options.particles)
    found = []
    for route, kernel in kernels.items():
        row = dict(measured(case, kernel, test, options, seed))
        draws = row.pop("draws")
        ratio = spread = None
        if reference is not None:
            ratio = crps_of(draws, test.xs[:, 0]) / crps_of(reference, test.xs[:, 0])
        if std is not None:
            spread = float(np.sqrt((draws.var(axis=1, ddof=1)).mean() / (std**2).mean()))
        first = {"problem": name, "route": route, "seed": seed, "CRPS / reference": ratio}
        blocks = type(kernel.tables.transform).__name__
        times = {"simulation s": simulated, "training s": trained, "processor s": busy}
        found.append({**first, "std / exact": spread, **row, **times, "blocks": blocks})
        say(str(found[-1]))
    return found


def targets(rows: list[Row]) -> list[Target]:
    """Worst over seeds, of the default route."""
    found = []
    for name in dict.fromkeys(row["problem"] for row in rows):
        own = [r for r in rows if r["problem"] == name and r["route"] == "default"]
        known = own[0]["CRPS / reference"] is not None

        def worst(what: str, least: bool = False, own: list[Row] = own) -> float:
            values = [float(row[what]) for row in own]
            return min(values) if least else max(values)

        found.append(Target(f"{name}: lost paths", worst("lost"), 0.0))
        if known:
            bound = 1.03 if name == "lorenz" else 1.05
            found.append(Target(f"{name}: CRPS / reference", worst("CRPS / reference"), bound))
        if name == "gray_scott":
            bound = worst("reconstruction / floor")
            found.append(Target(f"{name}: reconstruction / floor", bound, 1.5))
            found.append(Target(f"{name}: least SBC p", worst("SBC p, least", True), 0.01, True))
        found.append(Target(f"{name}: TARP p", worst("TARP p", True), 0.01, at_least=True))
        found.append(Target(f"{name}: coverage off by", worst("coverage off"), 0.03))
        minutes = worst("processor s") / 2 / 60
        found.append(Target(f"{name}: minutes of two cores", minutes, 3.0))
    return found


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Run all cases and publish."""
    quick = {"cases": ("oscillator",), "seeds": (0,), "paths": 60, "steps": 4, "test_paths": 20}
    options = parse(Options(), quick | {"samples": 9, "particles": 1000}, __doc__, given)
    started = time.perf_counter()
    jobs = [(name, seed) for name in options.cases for seed in options.seeds]
    rows = [row for name, seed in jobs for row in rows_of(name, options, seed)]
    return publish(options, __file__, {"newcomer": rows}, targets(rows), started)


if __name__ == "__main__":
    main()
