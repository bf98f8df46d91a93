r"""Does a backward kernel return from Burgers' hard case, where shocks have forgotten their past?

``configs/burgers.py``, preset ``paper`` (T = 1, amplitude 1, g = 0.05), in 32 backward steps: a
``BackwardKernel`` whose inputs get noise of sigma g sqrt(dt) in training, and in sampling as much,
more or less. As much as in training, and the kernel is that of a process with (1 + sigma^2) times
the noise; less keeps some of its robustness and is closer to the data, more widens it. Training
sees each path and its mirror image, u(x) to -u(-x), which is as likely. From unseen end states: the
share of paths that reach t = 0 within the range of the data, reconstruction against the noise
floor, CRPS of the initial modes against that of draws from the prior, and the coverage of central
intervals, by ranks among the samples (what exact samples reach is in the columns' names). The last
samples are then drawn to the end states by ``refine_posterior``, through the simulator; so are,
if asked, draws of the prior, without any kernel (``--prior-rounds 3``). There a share at t = 0 is
that of starts in the range.

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
    rounds: int = 2
    """Of ``refine_posterior`` on the last samples."""
    prior_rounds: int = 0
    """Of ``refine_posterior`` on draws of the prior; 0: none."""
    refined_steps: int = 512
    """Steps of the simulation there."""
    channels: int = 32
    blocks: int = 4
    steps: int = 12_000
    """Updates."""
    test_cases: int = 50
    """End states."""
    posterior_samples: int = 16
    """Paths from each of them."""


def configured(options: Options, seed: int) -> Config:
    """Return the hard case in a few coarse steps."""
    return dataclasses.replace(
        PRESETS["paper"],
        objective="multi_step",  # no score targets
        trajectories=options.trajectories,
        time_steps=options.time_steps,
        substeps=options.substeps,
        test_cases=options.test_cases,
        seed=seed,
    )


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


def sampled(
    config: Config, kernel: Any, data: Any, truth: Any, noise: float, options: Options, key: Any
) -> tuple[Any, Row]:
    """Paths back from unseen end states, and how far they came."""
    began = time.perf_counter()
    paths = smdp.sample_posterior(
        config.sde(),
        kernel,
        truth[:, -1],
        data.ts,
        num_samples=options.posterior_samples,
        key=key,
        input_noise=noise,
        save="all",
        batch_axes=1,
        chunk_size=128,
    ).samples
    took = time.perf_counter() - began
    reached = np.asarray(evaluate.reached_times(data.ts, paths, limits(data)))
    returned = reached == np.asarray(data.ts)[0]
    return paths[:, :, 0], {"share at t = 0": float(returned.mean()), "sampling s": took}


def limits(data: Any) -> Any:
    """How large a state may be, at each of the times."""
    return 1.5 * jnp.abs(data.xs).max(axis=(0, 2))


def refined(
    config: Config, starts: Any, data: Any, truth: Any, rounds: int, options: Options, key: Any
) -> tuple[Any, Row]:
    """Starts drawn to the end states through the simulator."""
    began = time.perf_counter()
    grid = smdp.linear_grid(0.0, config.end_time, options.refined_steps)
    found = smdp.refine_posterior(
        config.system().sde(),
        starts,
        truth[:, -1],
        grid,
        data,
        key=key,
        rounds=rounds,
        batch_axes=1,
        chunk_size=32,
    ).samples
    inside = np.asarray((jnp.abs(found) <= limits(data)[0]).all(axis=-1))
    took = time.perf_counter() - began
    return found, {"share at t = 0": float(inside.mean()), "sampling s": took}


def figures(config: Config, starts: Any, truth: Any, options: Options, key: Any) -> Row:
    """Compare starts (ends, samples, size) with the true ones, and with what they lead to."""
    system = config.system()
    fine = smdp.linear_grid(0.0, config.end_time, config.time_steps * config.substeps)
    forward = jax.jit(jax.vmap(lambda x: noise_free.walk(system.step, x, fine)))
    miss = lambda starts: np.asarray(jnp.square(forward(starts) - truth[:, -1]).mean(axis=-1))
    errors = np.stack([miss(starts[:, i]) for i in range(starts.shape[1])], axis=1)
    errors = np.nan_to_num(errors / miss(truth[:, 0]).mean(), nan=np.inf)
    modes = jax.vmap(system.leading_modes)
    drawn, true = np.asarray(jax.vmap(modes)(starts)), np.asarray(modes(truth[:, 0]))
    crps = jax.vmap(evaluate.crps_ensemble)(drawn, true).mean()
    prior = modes(system.prior(key, 200))
    of_prior = jax.vmap(evaluate.crps_ensemble, (None, 0))(prior, true).mean()
    half, of_half = coverage(drawn, true, 0.5)
    most, of_most = coverage(drawn, true, 0.9)
    return {
        "reconstruction / floor": float(errors.mean()),
        "of the median path": float(np.median(errors)),
        "CRPS gain": float(of_prior / crps),
        f"coverage ({of_half:.3f})": half,
        f"coverage ({of_most:.3f})": most,
        "coverage off": max(abs(half - of_half), abs(most - of_most)),
    }


def measure(options: Options, seed: int) -> tuple[list[Row], list[Target]]:
    """Simulate, train once, and sample with each noise."""
    config = configured(options, seed)
    k_data, k_fit, k_sample = jax.random.split(jax.random.key(seed), 3)
    data = config.simulate(k_data)
    began, cpu = time.perf_counter(), time.process_time()
    kernel = learn(config, options, data, k_fit).kernel
    cost = {"training s": time.perf_counter() - began, "processor s": time.process_time() - cpu}
    k_prior, k_past, k_refine, k_draws = jax.random.split(k_sample, 4)
    rows: list[Row] = []

    def add(name: str, starts: Any, how: Row) -> None:
        found = figures(config, starts, truth, options, k_prior)
        rows.append({"samples": name, **how, **found, **cost})
        say(str(rows[-1]))

    train, truth = data.train, data.truth["paths"]
    starts = None
    for noise in options.sampled_noise:
        starts, how = sampled(config, kernel, train, truth, noise, options, k_past)
        add(f"noise {noise:g}", starts, how)
    pull = lambda starts, rounds: refined(config, starts, train, truth, rounds, options, k_refine)
    add("refined", *pull(starts, options.rounds))
    if options.prior_rounds:
        shape = (options.test_cases, options.posterior_samples)
        draws = config.system().prior(k_draws, shape[0] * shape[1]).reshape(*shape, -1)
        cost = dict.fromkeys(cost, 0.0)  # nothing was trained
        add("prior, refined", *pull(draws, options.prior_rounds))
    aims = [target for row in rows if row["training s"] for target in targets(row)]
    return rows, [*aims, Target("training minutes", rows[0]["training s"] / 60, 15.0)]


def targets(row: Row) -> list[Target]:
    """Return what one way of sampling should reach."""
    name = row["samples"]
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
        "rounds": 1,
        "prior_rounds": 1,
    }
    options = parse(Options(), quick, __doc__)
    cells = {f"seed {seed}": partial(measure, options, seed) for seed in options.seeds}
    publish_cells(options, __file__, cells)


if __name__ == "__main__":
    main()
