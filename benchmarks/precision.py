"""What do networks in bfloat16 change in the figures of the experiments?

Every experiment on fields is trained twice on the same paths, with the same keys and number of
updates: once as its preset says, in float32, and once by ``fit(dtype=bfloat16)``, where fields are
transformed in bfloat16 and parameters, time, averages and the loss stay as they are. Then both
sample and are evaluated as in a run. ``--share`` of the preset's updates are made: what is compared
is the two columns, not either with its target.

    python benchmarks/precision.py --share 0.2 --configs heat burgers
"""

import math
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import Row, Settings, Target, parse, publish_cells, run_of, say

from smdp_jax.experiment import load_config_file
from smdp_jax.experiment.calibrated import metrics_of

DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}
_UPDATES = ("steps", "inverse_steps")


@dataclass(frozen=True)
class Options(Settings):
    """Settings of this benchmark."""

    configs: tuple[str, ...] = ("heat", "burgers", "turbulence", "smoke")
    """Which of configs/; networks on fields alone have a dtype."""
    preset: str = "small"
    """Which preset."""
    share: float = 0.2
    """Share of its updates."""


def shortened(config: Any, share: float) -> Any:
    """The same experiment with fewer updates."""
    of = {name: getattr(config, name) for name in _UPDATES if hasattr(config, name)}
    return replace(config, **{name: max(1, round(share * count)) for name, count in of.items()})


def figures(config: Any, dataset: Any, dtype: Any) -> tuple[dict[str, Any], float]:
    """Metrics by name, and seconds of training."""
    keys = jax.random.split(jax.random.key(config.seed))
    given = {} if dtype is None else {"dtype": dtype}
    began = time.perf_counter()
    fit = config.fit(dataset, keys[0], **given)
    taken = time.perf_counter() - began
    run = run_of(config, dataset, fit)
    arrays = jax.device_get(config.sample(run, keys[1]))
    metrics = [*config.evaluate(run, arrays), *metrics_of(arrays)]
    return {metric.name: metric for metric in metrics}, taken


def compare(options: Options, name: str) -> tuple[list[Row], list[Target]]:
    """Every figure of an experiment that is a number, in both."""
    file = load_config_file(Path(__file__).parent.parent / "configs" / f"{name}.py")
    config = shortened(file.presets[options.preset], options.share)
    dataset = config.simulate(jax.random.key(config.seed + 1))
    found, seconds = {}, {}
    for kind, dtype in DTYPES.items():
        found[kind], seconds[kind] = figures(config, dataset, dtype)
        say(f"{name}, {kind}: trained in {seconds[kind]:.0f} s")
    rows: list[Row] = [
        {"metric": what, "target": metric.wanted}
        | {kind: float(found[kind][what].value) for kind in DTYPES}
        for what, metric in found["float32"].items()
        if np.ndim(metric.value) == 0 and not isinstance(metric.value, str)
    ]
    lost = [math.isfinite(r["float32"]) and not math.isfinite(r["bfloat16"]) for r in rows]
    rows.append({"metric": "training, s", "target": ""} | seconds)
    return rows, [Target("finite figures that bfloat16 loses", sum(lost), 0)]


def main() -> None:
    """Train both, and publish what differs."""
    options = parse(Options(), {"configs": ("heat",), "share": 0.005}, __doc__)
    cells = {name: partial(compare, options, name) for name in options.configs}
    publish_cells(options, __file__, cells)


if __name__ == "__main__":
    main()
