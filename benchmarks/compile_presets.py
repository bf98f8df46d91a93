"""Do the ``paper`` presets compile for an accelerator, and does it have the memory for them?

    JAX_PLATFORMS=cpu python benchmarks/compile_presets.py --chip h100

No such device is needed, only its compiler (``pip install "smdp_jax[cuda12]"``, or ``[tpu]`` for
``--chip v5e``). Every preset goes through its stages unchanged, with all its paths; what they would
run is compiled for the chip instead. Memory is what the compiler plans: inputs, outputs and scratch
of the largest program of a stage. *At most* adds all data of the run to the largest stage, whether
or not that holds them already. Not in it: operations dispatched one by one, and the work space of
cuFFT and cuDNN.

``benchmarks/paper_presets.py`` tells on the device itself how long they take.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import harness
import jax
from compiling import Chip, compiling_for, device_of

from smdp_jax.experiment import load_config_file

CONFIGS = Path(__file__).parent.parent / "configs"
GIB = 2**30
MEMORY = {"h100": 80e9, "v5e": 16e9}
"""Bytes that a chip is sold with."""


@dataclass(frozen=True)
class Settings(harness.Settings):
    """What is compiled for what."""

    chip: Chip = "h100"
    """NVIDIA H100, TPU v5e, or whatever is here."""
    configs: tuple[str, ...] = ("affine", "quadratic", "heat", "burgers", "smoke", "turbulence")
    """Which of configs/."""
    preset: Literal["paper", "small"] = "paper"
    """Which of their presets."""


def compile_stages(name: str, preset: str, device: Any) -> dict[str, Any]:
    """Return the row of a table: what a preset's stages ask for."""
    config: Any = load_config_file(CONFIGS / f"{name}.py").presets[preset]
    keys = jax.random.split(jax.random.key(config.seed), 3)
    largest, seconds, number = {}, {}, 0

    def stage(called: str, function: Callable[[], Any]) -> Any:
        nonlocal number
        harness.say(f"{name}, {called}:")
        started = time.perf_counter()
        with compiling_for(device) as programs:
            result = function()
        seconds[called], number = time.perf_counter() - started, number + len(programs)
        largest[called] = max(program.memory for program in programs.values())
        return result

    dataset = stage("simulate", lambda: config.simulate(keys[0]))
    fit = stage("train", lambda: config.fit(dataset, keys[1], progress=False))
    run = harness.run_of(config, dataset, fit)
    stage("sample", lambda: config.sample(run, keys[2]))
    parts = (dataset.train, dataset.validation, dataset.truth)
    data = sum(leaf.nbytes for leaf in jax.tree.leaves(parts))
    return {
        "config": name,
        "programs": number,
        **{f"{called}, GiB": size / GIB for called, size in largest.items()},
        "data, GiB": data / GIB,
        "at most, GiB": (max(largest.values()) + data) / GIB,
        "compile min": sum(seconds.values()) / 60,
    }


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    quick = {"configs": ("affine",), "chip": "here", "preset": "small"}
    settings = harness.parse(Settings(), quick, __doc__, given)
    started, device = time.perf_counter(), device_of(settings.chip)
    limit = MEMORY.get(settings.chip)
    rows = [compile_stages(name, settings.preset, device) for name in settings.configs]
    targets = [
        harness.Target(
            f"{row['config']}: GiB on {device.device_kind}, at most",
            row["at most, GiB"],
            limit and limit / GIB,
        )
        for row in rows
    ]
    heading = f"Presets {settings.preset}, compiled for {device.device_kind}"
    return harness.publish(settings, __file__, {heading: rows}, targets, started)


if __name__ == "__main__":
    main()
