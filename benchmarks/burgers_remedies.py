r"""What else brings a score's paths back from Burgers' hard case?

``configs/burgers.py``, preset ``paper``, in 256 Gaussian-exact steps that are short at first, where
windows of steps bring some paths back (``burgers_windows.py``). Beside a score learned from score
targets: steps of first order, Langevin moves in the metric of the data's Gaussian after each step,
a larger network trained for the same time, score targets at states with noise. Then windows of
growing length, all times at once and late times first, and with the score of the longest windows
the same Langevin moves. Of that score and of a kernel the paths of one end state are resampled on
the way by their weights against the simulator, where lost ones weigh nothing. The prior has no
density in most directions: weights end at the first step's time, by the data's Gaussian there.

    python benchmarks/burgers_remedies.py
"""

import dataclasses
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import burgers_windows as windows
import jax
import jax.numpy as jnp
import numpy as np
from burgers import updates_in
from burgers_windows import FIGURES, Config, ShortAtFirst, figures, gaussian_step, timed
from harness import Row, Target, parse, publish_cells, say

import smdp_jax as smdp
from smdp_jax.experiment import Dataset
from smdp_jax.objectives import Objective


@dataclass(frozen=True)
class Options(windows.Options):
    """Settings of this benchmark."""

    seeds: tuple[int, ...] = (0,)
    windows: tuple[int, ...] = (2, 4, 8)
    late_first: tuple[float, ...] = (0.5, 0.1, 0.0)
    """Shares of the time from which on windows are trained, one after the other."""
    langevin: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    """Sizes of the moves, in units of the data's variance."""
    target_noise: float = 2.0
    """On the states of score targets, in units of g sqrt(dt)."""
    channels: int = 64
    """Of the larger network."""
    few: int = 100
    """Updates of the first run that foretells how many take as long."""
    particles: int = 32
    """Paths of one end state that are weighed."""


@dataclass(frozen=True)
class NoisyStates(ShortAtFirst):
    """Score targets at states with noise."""

    input_noise: float = 0.0

    def loss(self) -> Objective:
        return smdp.PathScore(jnp.fft.rfft, self.input_noise)


def measure(options: Options, seed: int) -> tuple[list[Row], list[Target]]:
    """Train and sample with one remedy after the other."""
    config = windows.configured(options, max(options.coarse), ShortAtFirst, seed)
    keys = jax.random.split(jax.random.key(seed), 5)
    k_data, k_fit, k_kernel, k_weights, k_others = keys
    data = config.simulate(k_data)
    step, noise = gaussian_step(config, data.train), max(options.noises)
    learn = windows.learns_score(config, data, options, k_fit)
    free: Row = {"training s": 0.0}
    rows: list[Row] = []

    def put(what: str, took: Row, found: Row, count: float = math.nan) -> None:
        own = {"training s": took["training s"], **found, "paths that count": count}
        rows.append({"tried": what, **own, "diverged": took.get("diverged", "")})
        say(str(rows[-1]))

    def add(what: str, learned: Any, took: Row, **how: Any) -> None:
        found: Row = dict.fromkeys(FIGURES, math.nan)
        if learned is not None:
            found = figures(config, learned, data, options, **({"solver": step} | how))
        put(what, took, found)

    def moved(what: str, score: Any) -> None:
        for size in options.langevin if score is not None else ():
            corrector = smdp.Langevin(size, metric=step.reference)
            add(f"{what}, Langevin moves of {size:g}", score, free, corrector=corrector)

    def weighted(what: str, learned: Any) -> None:
        if learned is not None:
            found, count = weighed(config, learned, data, step, options, k_weights)
            put(f"{what}, resampled by weights", free, found, count)

    began = time.process_time()
    first, took = timed(learn)
    busy = time.process_time() - began
    add("score targets", first, took)
    add("first order", first, free, solver=dataclasses.replace(step, order=1))
    moved("score targets", first)
    add("larger network", *larger(config, data, options, k_fit, busy))
    blurred = NoisyStates(**vars(config), input_noise=options.target_noise)
    add("noise at targets", *timed(windows.learns_score(blurred, data, options, k_others)))
    score = late = first
    for window in options.windows if first is not None else ():
        if score is not None:
            score, took = timed(partial(learn, score, window, noise))
            add(f"windows of {window}", score, took)
        if late is not None:
            late, took = late_first(config, data, options, late, window, k_fit)
            add(f"late times first, windows of {window}", late, took)
    moved("longest windows", score)
    weighted("longest windows", score)
    kernel, took = timed(windows.learns_kernel(config, data, options, k_kernel))
    add("kernel", kernel, took, solver=None, input_noise=options.input_noise / 2)
    weighted("kernel", kernel)
    return rows, [
        Target(f"{row['tried']}: {what}", row[what])
        for row in rows
        for what in ("reached, median", "share at t = 0")
    ]


def larger(
    config: Config, data: Dataset, options: Options, key: Any, seconds: float
) -> tuple[Any, Row]:
    """A network of more channels, in about the same processor time."""
    wide = dataclasses.replace(config, channels=options.channels)

    def learn(steps: int) -> smdp.Fit:
        own = dataclasses.replace(options, steps=steps)
        return windows.learns_score(wide, data, own, key)()

    updates = updates_in(seconds, learn, options.few, time.process_time)
    return timed(partial(learn, updates))


def late_first(
    config: Config, data: Dataset, options: Options, score: Any, window: int, key: Any
) -> tuple[Any, Row]:
    """Windows of one length, on more and more of the time; as many updates as on all of it."""
    ts, xs, took = data.train.ts, data.train.xs, 0.0
    for share in options.late_first:
        first = int(np.argmin(np.abs(np.asarray(ts) - share * config.end_time)))
        part = dataclasses.replace(data, train=smdp.Trajectories(ts[first:], xs[:, first:]))
        own = dataclasses.replace(options, unrolled=options.unrolled // len(options.late_first))
        learn = windows.learns_score(config, part, own, jax.random.fold_in(key, first))
        score, row = timed(partial(learn, score, window, max(options.noises)))
        took += row["training s"]
        if score is None:
            return None, {**row, "training s": took}
    return score, {"training s": took}


def weighed(
    config: Config, learned: Any, data: Dataset, step: Any, options: Options, key: Any
) -> tuple[Row, float]:
    """Starts drawn by the weights of their paths; and the share of the paths that count."""
    ts, truth = data.train.ts[1:], data.truth["paths"]
    transform = step.reference.transform
    k_paths, k_draws, k_prior = jax.random.split(key, 3)

    def log_density(t: Any, x: Any) -> Any:
        mean, variance = step.reference.moments(t)
        return smdp.GaussianTransition(transform[1](mean), variance, transform).log_density(x)

    def draw(given: tuple[Any, Any, Any]) -> tuple[Any, Any]:
        x_end, k_path, k_draw = given
        found = smdp.certify(
            config.sde(),
            learned,
            x_end,
            ts,
            lambda x, args: log_density(ts[0], x),
            num_paths=options.particles,
            key=k_path,
            solver=step,
            reference=log_density,
        )
        logs, shape = found.log_weights, (options.posterior_samples,)
        share = jnp.exp(-jax.nn.logsumexp(2 * logs)) / options.particles
        return found.samples[jax.random.categorical(k_draw, logs, shape=shape)], share

    keys = (jax.random.split(k, len(truth)) for k in (k_paths, k_draws))
    starts, counts = jax.jit(partial(jax.lax.map, draw))((truth[:, -1], *keys))
    inside = np.asarray((jnp.abs(starts) <= windows.limits(data)[1]).all(axis=-1))
    good = windows.judged(config, starts, inside, truth, options.fine, k_prior)
    figures = math.nan, math.nan, float(inside.mean()), *good
    return dict(zip(FIGURES, figures, strict=True)), float(jnp.nanmean(counts))


def main() -> None:
    """Run the seeds that the file of figures lacks, and publish after each."""
    quick = {
        "coarse": (16,),
        "fine": 256,
        "windows": (2,),
        "late_first": (0.5, 0.0),
        "langevin": (1e-2,),
        "channels": 8,
        "few": 2,
        "particles": 4,
        "trajectories": 24,
        "steps": 4,
        "unrolled": 4,
        "test_cases": 2,
        "posterior_samples": 2,
        "seeds": (0,),
    }
    options = parse(Options(), quick, __doc__)
    cells = {f"seed {seed}": partial(measure, options, seed) for seed in options.seeds}
    publish_cells(options, __file__, cells)


if __name__ == "__main__":
    main()
