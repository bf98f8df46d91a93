r"""Do windows of steps bring paths back from Burgers' hard case, where shocks forget their past?

``configs/burgers.py``, preset ``paper`` (T = 1, amplitude 1, g = 0.05), in few backward steps: a
score learned from score targets, then by windows of ``GaussianStep()``, with noise after each
unrolled step and without; and a ``BackwardKernel`` with noise on its inputs, then its windows.
Windows grow, and each length gets as many unrolled steps of training. After each, from unseen end
states by the same steps: the time that paths reach backward before they leave the range of the
data, the share that reaches t = 0, and of those reconstruction against the noise floor and the CRPS
of the initial modes against that of draws from the prior. On even steps the largest |u| crosses
more than a grid cell a step at first; so the score is also tried on steps that are short there.

    python benchmarks/burgers_windows.py
"""

import dataclasses
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import Row, Settings, Target, parse, publish_cells, say

import smdp_jax as smdp
from smdp_jax import evaluate, models
from smdp_jax.experiment import Dataset
from smdp_jax.studies import noise_free

sys.path.insert(0, str(Path(__file__).parent.parent))
from configs.burgers import PRESETS, Config

Learn = Callable[..., smdp.Fit]
FIGURES = (
    "reached, median",
    "reached, worst",
    "share at t = 0",
    "reconstruction / floor",
    "CRPS gain",
)


@dataclass(frozen=True)
class ShortAtFirst(Config):
    """Burgers' equation on two lengths of steps."""

    early: float = 0.15
    """Share of the time in which steps are short."""
    early_steps: float = 0.375
    """Share of the steps there."""

    def times(self) -> jax.Array:
        first, middle = round(self.early_steps * self.time_steps), self.early * self.end_time
        early = smdp.linear_grid(0.0, middle, first)
        late = smdp.linear_grid(middle, self.end_time, self.time_steps - first)
        return jnp.concatenate([early, late[1:]])


class EqualCourant(Config):
    """Burgers' equation on steps that grow like 1 / |u|, which decays like 1 / (t + T / 10)."""

    def times(self) -> jax.Array:
        return smdp.log_grid(0.0, self.end_time, self.time_steps, offset=0.1 * self.end_time)


@dataclass(frozen=True)
class Options(Settings):
    """Settings of this benchmark."""

    coarse: tuple[int, ...] = (64, 128, 256)
    """Stored times, which are the backward steps."""
    fine: int = 2048
    """Steps of the simulation."""
    windows: tuple[int, ...] = (2, 4, 8, 16, 32)
    """Their lengths, trained one after the other."""
    noises: tuple[float, ...] = (0.0, 1.0)
    """After each unrolled step of a score, in units of g sqrt(dt)."""
    input_noise: float = 2.0
    """Of the kernel in training; half of it in sampling."""
    trajectories: int = 2400
    """Simulated paths; the kernel also sees their mirror images, u(x) to -u(-x)."""
    steps: int = 6000
    """Updates before windows."""
    unrolled: int = 1600
    """Unrolled steps of training at each length: its updates times the length."""
    test_cases: int = 50
    """End states."""
    posterior_samples: int = 8
    """Paths from each of them."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the score on steps that are short at first; all else is one seed."""


def gaussian_step(config: Config, data: smdp.Trajectories) -> smdp.GaussianStep:
    """Exact for the viscosity and for a Gaussian like the data."""
    transform = partial(jnp.fft.rfft, norm="ortho"), partial(jnp.fft.irfft, norm="ortho")
    linear = smdp.LinearPart(config.system().decay_rates(), transform)
    return smdp.GaussianStep(2, linear, smdp.GaussianReference.of(data, transform))


def figures(config: Config, learned: Any, dataset: Dataset, options: Options, **how: Any) -> Row:
    """Walk back from unseen end states: how far paths come, and how good those are that return."""
    k_past, k_prior = jax.random.split(jax.random.key(config.seed + 1))
    ts, truth = dataset.train.ts, dataset.truth["paths"]
    number = options.posterior_samples
    how |= {"num_samples": number, "key": k_past, "save": "all", "chunk_size": 128}
    past: Any = smdp.sample_posterior(config.sde(), learned, truth[:, -1], ts, batch_axes=1, **how)
    reached = np.asarray(evaluate.reached_times(ts, past.samples, limits(dataset)))
    returned = reached == np.asarray(ts)[0]
    far = float(np.median(reached)), float(reached.max()), float(returned.mean())
    good = judged(config, past.samples[:, :, 0], returned, truth, options.fine, k_prior)
    return dict(zip(FIGURES, (*far, *good), strict=True))


def limits(dataset: Dataset) -> Any:
    """How large a state may be, at each of the times."""
    return 1.5 * jnp.abs(dataset.train.xs).max(axis=(0, 2))


def judged(
    config: Config, starts: Any, returned: Any, truth: Any, steps: int, key: Any
) -> tuple[float, float]:
    """Reconstruction over its floor, and CRPS of the prior over theirs, of starts that returned."""
    whole = np.nonzero(returned.sum(axis=1) > 1)[0]  # a CRPS needs two samples
    if not whole.size:
        return math.nan, math.nan
    system, fine = config.system(), smdp.linear_grid(0.0, config.end_time, steps)
    forward = jax.jit(jax.vmap(lambda x: noise_free.walk(system.step, x, fine)))
    miss = lambda x, end: np.asarray(jnp.square(forward(x) - end).mean(axis=-1))
    again = miss(starts[returned], truth[np.nonzero(returned)[0], -1]).mean()
    modes = jax.vmap(system.leading_modes)
    drawn, true = modes(system.prior(key, 200)), modes(truth[:, 0])
    crps = [evaluate.crps_ensemble(drawn, true[n]).mean() for n in whole]
    own = [evaluate.crps_ensemble(modes(starts[n][returned[n]]), true[n]).mean() for n in whole]
    floor = miss(truth[:, 0], truth[:, -1]).mean()
    return float(again / floor), float(np.mean(crps) / np.mean(own))


def courant(config: Config, data: smdp.Trajectories) -> float:
    """Grid cells that the largest |u| of the data crosses in a step, at most."""
    speed = np.abs(np.asarray(data.xs)).max(axis=(0, 2))[:-1]
    return float((speed * np.diff(np.asarray(data.ts))).max() * config.size)


def timed(train: Callable[[], smdp.Fit]) -> tuple[Any, Row]:
    """Return what is learned, None if training diverged, and what it took."""
    began = time.perf_counter()
    try:
        learned = jax.block_until_ready(train().learned)
    except smdp.TrainingDiverged as error:
        return None, {"training s": time.perf_counter() - began, "diverged": str(error)}
    return learned, {"training s": time.perf_counter() - began}


def learns_score(config: Config, dataset: Dataset, options: Options, key: Any) -> Learn:
    """Return what fits a score, by score targets or by a length of windows from another score."""
    k_first, k_windows = jax.random.split(key)
    config = dataclasses.replace(config, steps=options.steps)
    solver = gaussian_step(config, dataset.train)
    seen = dataclasses.replace(dataset, validation=None)

    def learn(start: Any = None, window: int = 0, noise: float = 0.0) -> smdp.Fit:
        if not window:
            return config.fit(seen, k_first, progress=False)
        objective = smdp.MultiStep((window,), training_noise=noise, solver=solver)
        longer = dataclasses.replace(config, window_steps=options.unrolled // window)
        own = jax.random.fold_in(k_windows, window)
        return longer.fit_windows(seen, start, own, objective=objective, progress=False)

    return learn


def learns_kernel(config: Config, dataset: Dataset, options: Options, key: Any) -> Learn:
    """Return what fits a kernel, by single steps or by a length of windows from another kernel."""
    size: Row = {"channels": config.channels, "blocks": config.blocks}
    net = models.DilatedResNet(dims=1, padding="periodic", coordinates=False, **size)
    ts, xs = dataset.train.ts, dataset.train.xs
    mirrored = smdp.Trajectories(ts, jnp.concatenate([xs, -jnp.flip(xs, axis=-1)]))
    how = {"batch_size": 32, "validation": dataset.validation, "progress": False}

    def learn(start: Any = None, window: int = 1) -> smdp.Fit:
        objective = smdp.BackwardKernel((window,), options.input_noise, base="state")
        steps, rate = options.steps, dict[str, Any]()
        if start is not None:
            steps = options.unrolled // window
            rate = {"optimizer": config.optimizer(steps, config.window_learning_rate)}
        own = jax.random.fold_in(key, window)
        given: dict[str, Any] = {**how, **rate, "steps": steps, "initial": start, "key": own}
        return smdp.fit(config.sde(), net, mirrored, objective, **given)

    return learn


def configured(options: Options, coarse: int, grid: type[Config] = Config, seed: int = 0) -> Config:
    """Return the hard case on so many steps."""
    return dataclasses.replace(
        grid(**vars(PRESETS["paper"])),
        objective="path_score",
        trajectories=options.trajectories,
        time_steps=coarse,
        substeps=options.fine // coarse,
        test_cases=options.test_cases,
        seed=seed,
    )


def measure(
    options: Options, coarse: int, grid: type[Config] = Config, seed: int = 0
) -> tuple[list[Row], list[Target]]:
    """Train on one grid, and sample after each length of windows; the kernel on even ones alone."""
    config = configured(options, coarse, grid, seed)
    k_data, k_score, k_kernel = jax.random.split(jax.random.key(config.seed), 3)
    dataset = config.simulate(k_data)
    score = learns_score(config, dataset, options, k_score)
    kernel = learns_kernel(config, dataset, options, k_kernel)
    walked: Row = {"solver": gaussian_step(config, dataset.train)}
    noisy: Row = {"input_noise": options.input_noise / 2}
    steps = {"Courant number": courant(config, dataset.train)}
    rows: list[Row] = []

    def add(name: str, window: int, train: Callable[[], smdp.Fit], how: Row) -> Any:
        learned, took = timed(train)
        found: Row = dict.fromkeys(FIGURES, math.nan)
        if learned is not None:
            found = figures(config, learned, dataset, options, **how)
        rows.append({"learned": name, "window": window, **took, **found, **steps})
        say(str(rows[-1]))
        return learned

    def go_on(name: str, learned: Any, train: Callable[..., smdp.Fit], how: Row) -> None:
        for window in options.windows:
            learned = add(name, window, partial(train, learned, window), how)
            if learned is None:
                return

    first = add("score", 0, score, walked)
    for noise in options.noises:
        go_on(f"score, noise {noise:g}", first, partial(score, noise=noise), walked)
    if grid is Config:
        go_on("kernel", add("kernel", 1, kernel, noisy), kernel, noisy)
    names = list(dict.fromkeys(row["learned"] for row in rows))
    return rows, [target for name in names for target in reached(name, rows)]


def reached(name: str, rows: list[Row]) -> list[Target]:
    """Return how far the best paths of one way came."""
    own = [row for row in rows if row["learned"] == name and "diverged" not in row]
    if not own:
        return []
    return [
        Target(f"{name}: reached, median, best", min(row["reached, median"] for row in own)),
        Target(f"{name}: share at t = 0, best", max(row["share at t = 0"] for row in own)),
    ]


def main() -> None:
    """Run the grids that the file of figures lacks, and publish after each."""
    quick = {
        "coarse": (16,),
        "fine": 256,
        "windows": (2,),
        "noises": (1.0,),
        "trajectories": 24,
        "steps": 2,
        "unrolled": 4,
        "test_cases": 2,
        "posterior_samples": 2,
        "seeds": (0,),
    }
    options = parse(Options(), quick, __doc__)
    cells = {f"{steps} steps": partial(measure, options, steps) for steps in options.coarse}
    most = max(options.coarse)
    for seed in options.seeds:
        name = f"{most} steps, short at first, seed {seed}"
        cells[name] = partial(measure, options, most, ShortAtFirst, seed)
    name = f"{most} steps, equal Courant numbers"
    cells[name] = partial(measure, options, most, EqualCourant)
    publish_cells(options, __file__, cells)


if __name__ == "__main__":
    main()
