r"""The default route on problems that nobody tuned it to: is the answer right the first time?

``fit(sde, models.for_fields(data), data, steps=..., key=...)`` and ``sample_posterior`` with
``fit.kernel``, nothing chosen beside the number of updates, over seeds. Compared with the exact
posterior where there is one (CRPS of its draws, its spread), with weighted particles for Lorenz's
system, and for all with the true starts of unseen paths: coverage, ranks (SBC, TARP), the end
states that the samples lead to, and lost paths. ``estimated`` is the kernel without a network.

    python benchmarks/newcomer.py
    python benchmarks/newcomer.py --cases gray_scott --seeds 0 1 2
"""

import json
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import Row, Settings, Target, parse, publish, say
from jax.flatten_util import ravel_pytree
from jaxtyping import Array
from newcomer_case import Case
from newcomer_problems import CASES

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
    test_paths: int = 0
    """Unseen paths, whose ends are observed; 0: as many as the problem says."""
    samples: int = 99
    """Posterior draws of each."""
    particles: int = 300_000
    """Of the reference for Lorenz's system."""
    estimated: bool = True
    """Also the kernels without a network, where the posterior is known."""


def flat(states: Any, axes: int) -> Array:
    """Entries of all leaves along one axis, behind some leading axes."""
    leaves = jax.tree.leaves(states)
    return jnp.concatenate([leaf.reshape(*leaf.shape[:axes], -1) for leaf in leaves], axis=-1)


def exact_draws(case: Case, test: smdp.Trajectories, number: int, seed: int) -> tuple[Array, Any]:
    """Draws of Gaussian posteriors, entry by entry, and their standard deviations."""
    assert case.exact is not None
    ends = np.asarray(flat(test.xs, 2)[:, -1])
    moments = [case.exact(x, test.args_of(i)) for i, x in enumerate(ends)]
    mean = np.stack([m for m, _ in moments])
    std = np.stack([np.broadcast_to(s, m.shape) for m, s in moments])
    white = np.random.default_rng(seed).normal(size=(number, *mean.shape))
    draws = np.moveaxis(mean + std * white, 0, 1)
    return jnp.asarray(draws, jnp.float32), std


def particle_draws(case: Case, test: smdp.Trajectories, number: int, particles: int) -> Array:
    """Starts of particles, weighed by the density of the end given them shortly before it.

    Over the last steps the flow is linearised about each particle's own noise-free path.
    """
    assert case.sde.drift is not None
    x, restore = ravel_pytree(test.at(0, 0))
    first = test.at(0, 0)
    amplitudes = case.sde.g(test.ts[0], first)
    size = x.size
    g = ravel_pytree(jax.tree.map(lambda g, x: jnp.broadcast_to(g, x.shape), amplitudes, first))[0]
    short = 40 if size > 2 else 10
    dt = (test.ts[-1] - test.ts[0]) / 400

    def slope(i: Any, x: Any) -> Any:
        return ravel_pytree(case.sde.drift(test.ts[0] + i * dt, restore(x), None))[0]  # type: ignore[misc]

    def heun(i: Any, x: Any, noise: Any) -> Any:
        first = slope(i, x)
        return x + dt * (first + slope(i + 1, x + dt * first + noise)) / 2 + noise

    @jax.jit
    def forward(key: Any, x: Any) -> Any:
        def step(x: Any, i: Any) -> tuple[Any, None]:
            noise = g * jnp.sqrt(dt) * jax.random.normal(jax.random.fold_in(key, i), x.shape)
            return jax.vmap(lambda x, n: heun(i, x, n))(x, noise), None

        return jax.lax.scan(step, x, jnp.arange(400 - short))[0]

    def spread(state: Any, i: Any) -> tuple[Any, None]:
        x, covariance = state
        flow = jax.jacfwd(lambda x: heun(i, x, jnp.zeros(size)))(x)
        grown = flow @ covariance @ flow.T + jnp.diag(g**2) * dt
        return (heun(i, x, jnp.zeros(size)), grown), None

    @jax.jit
    @jax.vmap
    def ended(x: Any) -> Any:
        last = jnp.arange(400 - short, 400)
        (end, covariance), _ = jax.lax.scan(spread, (x, jnp.zeros((size, size))), last)
        return end, covariance

    k_start, k_path = jax.random.split(jax.random.key(12345))
    starts = jax.vmap(lambda x: ravel_pytree(x)[0])(case.prior(k_start, particles))
    means, covariances = (np.asarray(v, float) for v in ended(forward(k_path, starts)))
    good = np.isfinite(means).all(axis=1) & np.isfinite(covariances).all(axis=(1, 2))
    means, covariances, starts = means[good], covariances[good], np.asarray(starts)[good]
    # In numpy: XLA's own decompositions of so many matrices never end on few cores.
    sizes, axes = np.linalg.eigh((covariances + np.swapaxes(covariances, 1, 2)) / 2)
    sizes = np.maximum(sizes, 1e-6 * sizes[:, -1:])
    roots = np.swapaxes(axes / np.sqrt(sizes)[:, None], 1, 2)
    logs = -np.log(sizes).sum(axis=1) / 2
    generator, found = np.random.default_rng(12345), []
    for x_end in np.asarray(flat(test.xs, 2)[:, -1]):
        white = np.einsum("nij,nj->ni", roots, x_end - means)
        log = logs - (white**2).sum(axis=1) / 2
        total = np.cumsum(np.exp(log - log.max()))
        found.append(starts[np.searchsorted(total, generator.random(number) * total[-1])])
    return jnp.asarray(np.stack(found))


def crps_of(draws: Array, truths: Array) -> float:
    """Mean over unseen paths and entries, each in units of its own spread among the truths."""
    size = truths.std(axis=0)
    return float(jax.vmap(crps_ensemble)(draws / size, truths / size).mean())


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
        int((jnp.abs(x).reshape(*x.shape[:2], -1) > 5 * size).any(axis=-1).sum())
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
        "of": report.observables[int(np.argmin(report.sbc_p))],
        "SBC tests": len(report.sbc_p),
        "CRPS / prior's": max(r.value / r.reference for r in report.crps.values()),
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
    test = case.simulate(k_test, options.test_paths or case.ends)
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
    reference, std, truths = None, None, flat(test.xs, 2)[:, 0]
    if case.exact is not None:
        reference, std = exact_draws(case, test, options.samples, seed)
    elif case.particles:
        reference = particle_draws(case, test, options.samples, options.particles)
    found = []
    for route, kernel in kernels.items():
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            row = dict(measured(case, kernel, test, options, seed))
        for said in warned:
            say(f"warned: {said.message}")
        draws = flat(row.pop("draws"), 2)
        ratio = spread = None
        if reference is not None:
            ratio = crps_of(draws, truths) / crps_of(reference, truths)
        if std is not None:
            spread = float(np.sqrt((draws.var(axis=1, ddof=1)).mean() / (std**2).mean()))
        first = {"problem": name, "route": route, "seed": seed, "CRPS / reference": ratio}
        blocks = type(kernel.tables.transform).__name__
        times = {"simulation s": simulated, "training s": trained, "processor s": busy}
        last = {"blocks": blocks, "warnings": len(warned), "optimiser": "Muon"}
        found.append({**first, "std / exact": spread, **row, **times, **last})
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
            bound = 1.03 if CASES[name]().particles else 1.05
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
    """Run all cases that the file of figures lacks, and publish."""
    quick = {"cases": ("oscillator",), "seeds": (0,), "paths": 60, "steps": 4, "test_paths": 20}
    options = parse(Options(), quick | {"samples": 9, "particles": 1000}, __doc__, given)
    started = time.perf_counter()
    rows = kept(options)
    for seed in options.seeds:
        for name in options.cases:
            if not any(row["problem"] == name and row["seed"] == seed for row in rows):
                rows = rows + rows_of(name, options, seed)
                keep(options, rows)
                # Each shape has programs of its own, and Linux lets a process map only so many.
                jax.clear_caches()
    order = {name: i for i, name in enumerate(CASES)}
    rows = sorted(rows, key=lambda row: (order[row["problem"]], row["seed"]))
    return publish(options, __file__, {"newcomer": rows}, targets(rows), started)


def sizes(options: Options) -> dict[str, Any]:
    """All that figures depend on, beside the problem and the seed."""
    return {name: getattr(options, name) for name in ("paths", "steps", "test_paths", "samples")}


def kept(options: Options) -> list[Row]:
    """Figures of an earlier run of the same sizes."""
    path = cells(options)
    found = json.loads(path.read_text()) if path and path.exists() else {}
    return found["rows"] if found.get("sizes") == sizes(options) else []


def keep(options: Options, rows: list[Row]) -> None:
    """Write what there is, so that a run that is stopped goes on from there."""
    if path := cells(options):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"sizes": sizes(options), "rows": rows}))


def cells(options: Options) -> Path | None:
    """Where unfinished figures are kept; removed to measure anew."""
    return (
        Path(options.output.replace("NAME", "newcomer")).with_suffix(".part")
        if (options.output)
        else None
    )


if __name__ == "__main__":
    main()
