r"""Does a backward kernel return from Burgers' hard case, where shocks have forgotten their past?

``configs/burgers.py``, preset ``paper`` (T = 1, amplitude 1, g = 0.05), in 32 backward steps: a
``BackwardKernel`` whose inputs get noise of sigma g sqrt(dt) in training, and in sampling as much,
more or less. As much as in training, and the kernel is that of a process with (1 + sigma^2) times
the noise; less keeps some of its robustness and is closer to the data, more widens it. Training
sees each path and its mirror image, u(x) to -u(-x), which is as likely. From unseen end states: the
share of paths that reach t = 0 within the range of the data, reconstruction against the noise
floor, CRPS of the initial modes against that of draws from the prior, and the coverage of central
intervals, by ranks among the samples (what exact samples reach is in the columns' names).

    python benchmarks/burgers_kernel.py
    python benchmarks/burgers_kernel.py --time-steps 128 --substeps 16 --input-noise 2
"""

import dataclasses
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from harness import Row, Settings, Target, parse, publish_cells, say

import smdp_jax as smdp
from smdp_jax import evaluate, models
from smdp_jax.studies import noise_free

sys.path.insert(0, str(Path(__file__).parent.parent))
from configs.burgers import PRESETS, Config


@dataclass(frozen=True)
class Options(Settings):
    """Settings of this benchmark."""

    seeds: tuple[int, ...] = (0, 1, 2)
    trajectories: int = 4800
    time_steps: int = 32
    """Stored times, which are the backward steps."""
    substeps: int = 64
    """Simulator steps between them."""
    base: Literal["state", "inverse"] = "state"
    """What the regression starts from."""
    input_noise: float = 1.0
    """Sigma in training."""
    sampled_noise: tuple[float, ...] = (1.5, 1.0)
    """Sigma in sampling."""
    channels: int = 32
    blocks: int = 4
    steps: int = 12_000
    """Updates."""
    test_cases: int = 50
    """End states."""
    posterior_samples: int = 16
    """Paths from each of them."""


def learn(config: Config, options: Options, data: Any, key: Any) -> smdp.Fit:
    """Train a kernel on the paths; the noise of its steps is measured on the validation paths."""
    net = models.DilatedResNet(
        dims=1,
        channels=options.channels,
        blocks=options.blocks,
        padding="periodic",
        coordinates=False,
    )
    ts, xs = data.train.ts, data.train.xs
    return smdp.fit(
        config.sde(),
        net,
        smdp.Trajectories(ts, jnp.concatenate([xs, -jnp.flip(xs, axis=-1)])),
        smdp.BackwardKernel(base=options.base, input_noise=options.input_noise),
        steps=options.steps,
        key=key,
        batch_size=32,
        validation=data.validation,
    )


def coverage(samples: Any, truth: Any, share: float) -> tuple[float, float]:
    """Share of truths within the middle samples that should hold about ``share``; and theirs."""
    number = samples.shape[1]
    ranks = (samples < truth[:, None]).sum(axis=1)
    aside = round((1 - share) / 2 * (number + 1))
    inside = (ranks >= aside) & (ranks <= number - aside)
    return float(inside.mean()), (number + 1 - 2 * aside) / (number + 1)


def figures(
    config: Config, kernel: Any, data: Any, truth: Any, noise: float, options: Options, key: Any
) -> Row:
    """Sample from unseen end states, and compare."""
    system, ts = config.system(), data.ts
    k_past, k_prior = jax.random.split(key)
    began = time.perf_counter()
    paths = smdp.sample_posterior(
        config.sde(),
        kernel,
        truth[:, -1],
        ts,
        num_samples=options.posterior_samples,
        key=k_past,
        input_noise=noise,
        save="all",
        batch_axes=1,
        chunk_size=128,
    ).samples
    took = time.perf_counter() - began
    limits = 1.5 * jnp.abs(data.xs).max(axis=(0, 2))
    reached = np.asarray(evaluate.reached_times(ts, paths, limits))
    returned = reached == np.asarray(ts)[0]
    fine = smdp.linear_grid(0.0, config.end_time, config.time_steps * config.substeps)
    forward = jax.jit(jax.vmap(lambda x: noise_free.walk(system.step, x, fine)))
    miss = lambda starts: np.asarray(jnp.square(forward(starts) - truth[:, -1]).mean(axis=-1))
    errors = np.stack([miss(paths[:, i, 0]) for i in range(paths.shape[1])], axis=1)
    errors = np.nan_to_num(errors / miss(truth[:, 0]).mean(), nan=np.inf)
    modes = jax.vmap(system.leading_modes)
    drawn, true = np.asarray(jax.vmap(modes)(paths[:, :, 0])), np.asarray(modes(truth[:, 0]))
    crps = jax.vmap(evaluate.crps_ensemble)(drawn, true).mean()
    of_prior = modes(system.prior(k_prior, 200))
    prior = jax.vmap(evaluate.crps_ensemble, (None, 0))(of_prior, true).mean()
    half, of_half = coverage(drawn, true, 0.5)
    most, of_most = coverage(drawn, true, 0.9)
    return {
        "share at t = 0": float(returned.mean()),
        "reached, worst": float(reached.max()),
        "reconstruction / floor": float(errors.mean()),
        "of the median path": float(np.median(errors)),
        "CRPS gain": float(prior / crps),
        f"coverage ({of_half:.3f})": half,
        f"coverage ({of_most:.3f})": most,
        "coverage off": max(abs(half - of_half), abs(most - of_most)),
        "sampling s": took,
    }


def measure(options: Options, seed: int) -> tuple[list[Row], list[Target]]:
    """Simulate, train once, and sample with each noise."""
    config = dataclasses.replace(
        PRESETS["paper"],
        objective="multi_step",  # no score targets
        trajectories=options.trajectories,
        time_steps=options.time_steps,
        substeps=options.substeps,
        test_cases=options.test_cases,
        seed=seed,
    )
    k_data, k_fit, k_sample = jax.random.split(jax.random.key(seed), 3)
    data = config.simulate(k_data)
    began, cpu = time.perf_counter(), time.process_time()
    kernel = learn(config, options, data, k_fit).kernel
    cost = {"training s": time.perf_counter() - began, "processor s": time.process_time() - cpu}
    rows: list[Row] = []
    for noise in options.sampled_noise:
        found = figures(config, kernel, data.train, data.truth["paths"], noise, options, k_sample)
        rows.append({"noise in sampling": noise, **found, **cost})
        say(str(rows[-1]))
    return rows, [t for row in rows for t in targets(row)] + [
        Target("training minutes", cost["training s"] / 60, 15.0)
    ]


def targets(row: Row) -> list[Target]:
    """Return what one way of sampling should reach."""
    name = f"noise {row['noise in sampling']:g} in sampling"
    return [
        Target(f"{name}: share at t = 0", row["share at t = 0"], 1.0, at_least=True),
        Target(f"{name}: reconstruction / floor", row["reconstruction / floor"], 1.3),
        Target(f"{name}: CRPS gain", row["CRPS gain"], 1.4, at_least=True),
        Target(f"{name}: coverage off", row["coverage off"], 0.05),
    ]


def main() -> None:
    """Run the seeds that the file of figures lacks, and publish after each."""
    quick = {
        "seeds": (0,),
        "trajectories": 24,
        "time_steps": 16,
        "substeps": 128,
        "channels": 4,
        "blocks": 1,
        "steps": 2,
        "test_cases": 2,
        "posterior_samples": 3,
    }
    options = parse(Options(), quick, __doc__)
    cells = {f"seed {seed}": partial(measure, options, seed) for seed in options.seeds}
    publish_cells(options, __file__, cells)


if __name__ == "__main__":
    main()
