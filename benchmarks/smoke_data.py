"""How long does the data of the smoke experiment take, with the paper's preset?

All paths of ``configs/smoke.py``'s ``paper`` preset (64 x 64 cells, 65 steps, obstacles drawn for
each path), those for validation and test included, in one call, compilation included.

    python benchmarks/smoke_data.py
"""

import sys
import time
from pathlib import Path

import jax
from harness import Settings, Target, parse, publish

sys.path.insert(0, str(Path(__file__).parent.parent))
from configs.smoke import PRESETS

_MINUTES = 30


def main() -> None:
    """Generate the data and publish the time."""
    options = parse(Settings(), {}, __doc__)
    config = PRESETS["small" if options.quick else "paper"]
    started = time.perf_counter()
    jax.block_until_ready(config.simulate(jax.random.key(0)).train.xs)
    seconds = time.perf_counter() - started
    row = {"paths to learn from": config.trajectories, "cells": config.size**2, "s": seconds}
    reached = [Target("data of the paper preset, minutes", seconds / 60, _MINUTES)]
    publish(options, __file__, {"generation": [row]}, reached, started)


if __name__ == "__main__":
    main()
