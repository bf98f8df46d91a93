r"""Does a larger network, or more paths, help in Burgers' hard case, in the same training time?

The kernel of ``burgers_kernel.py`` (32 steps, noise of one step's size on its inputs), trained for
about the same processor time, by as many updates as short runs foretell. From unseen end states:
the share of paths that reach t = 0, reconstruction against the noise floor, CRPS of the initial
modes against that of draws from the prior, and by how much the coverage of central intervals is
off.

    python benchmarks/burgers_networks.py
"""

import dataclasses
import time
from dataclasses import dataclass
from functools import partial

import burgers_kernel as kernels
import jax
from burgers import updates_in
from harness import Row, Settings, Target, parse, publish_cells, say

import smdp_jax as smdp
from smdp_jax.experiment import Dataset


@dataclass(frozen=True)
class Options(Settings):
    """Settings of this benchmark."""

    seeds: tuple[int, ...] = (0, 1, 2)
    seconds: float = 120.0
    """Processor time of each training, without compilation."""
    few: int = 100
    """Updates of the first run that foretells how many take so long."""
    networks: tuple[tuple[int, int, int], ...] = (
        (32, 4, 4800),
        (64, 4, 4800),
        (96, 4, 4800),
        (64, 4, 19_200),
    )
    """Channels, blocks, and simulated paths; training sees their mirror images, too."""
    test_cases: int = 50
    """End states."""
    posterior_samples: int = 16
    """Paths from each of them."""


def measure(options: Options, seed: int) -> tuple[list[Row], list[Target]]:
    """Simulate once, train each network for the same time, and sample."""
    how = {name: getattr(options, name) for name in ("test_cases", "posterior_samples")}
    given = kernels.Options(trajectories=max(n for _, _, n in options.networks), **how)
    config = kernels.configured(given, seed)
    k_data, k_fit, k_past, k_prior = jax.random.split(jax.random.key(seed), 4)
    data = config.simulate(k_data)
    truth, rows = data.truth["paths"], list[Row]()
    for channels, blocks, paths in options.networks:
        own = dataclasses.replace(given, channels=channels, blocks=blocks)
        train = smdp.Trajectories(data.train.ts, data.train.xs[:paths])
        seen = dataclasses.replace(data, train=train)

        def learn(steps: int, own: kernels.Options = own, seen: Dataset = seen) -> smdp.Fit:
            return kernels.learn(config, dataclasses.replace(own, steps=steps), seen, k_fit)

        updates = updates_in(options.seconds, learn, options.few, time.process_time)
        began = time.process_time()
        kernel = learn(updates).kernel
        took = time.process_time() - began
        starts, far = kernels.sampled(
            config, kernel, data.train, truth, given.input_noise, given, k_past
        )
        size = {"channels": channels, "blocks": blocks, "paths": paths}
        cost = {"updates": float(updates), "processor s": took}
        found = kernels.figures(config, starts, truth, given, k_prior)
        rows.append({**size, **cost, **far, **found})
        say(str(rows[-1]))
    return rows, [target for row in rows for target in targets(row)]


def targets(row: Row) -> list[Target]:
    """Return what is compared."""
    name = f"{row['channels']} channels, {row['blocks']} blocks, {row['paths']} paths"
    return [
        Target(f"{name}: {what}", row[what])
        for what in ("share at t = 0", "reconstruction / floor", "CRPS gain", "coverage off")
    ]


def main() -> None:
    """Run the seeds that the file of figures lacks, and publish after each."""
    quick = {"seeds": (0,), "seconds": 0.1, "few": 2, "networks": ((4, 1, 24),)}
    quick |= {"test_cases": 2, "posterior_samples": 3}
    options = parse(Options(), quick, __doc__)
    cells = {f"seed {seed}": partial(measure, options, seed) for seed in options.seeds}
    publish_cells(options, __file__, cells)


if __name__ == "__main__":
    main()
