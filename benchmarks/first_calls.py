"""What does the first call of each verb take, compilation and all?

    python benchmarks/first_calls.py

The quadratic process with 2500 paths at 501 times and an MLP, every job in a process of its own,
without a cache of compiled programs; of several such processes the quickest counts. Imports are
not counted.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import harness
import jax
import jax.numpy as jnp
import optax

import smdp_jax as smdp
from smdp_jax.physics import Quadratic

BOUNDS = {
    "simulate": None,
    "fit, 2000 updates on 1 step": 3.0,
    "sample_posterior, learned": 1.5,
    "fit, 10 updates on windows of 10": 2.5,
    "sample_posterior, closed form": 1.5,
}


@dataclass(frozen=True)
class Settings(harness.Settings):
    """How much of what."""

    paths: int = 2500
    """Simulated paths."""
    updates: int = 2000
    """Updates on one step."""
    times: int = 3
    """Processes for each job."""
    job: Literal["all", "steps", "windows"] = "all"
    """Time one chain of calls in this process and print it, or both in processes of their own."""


def chain(settings: Settings) -> dict[str, float]:
    """Seconds of the first calls: simulate, fit, sample."""
    system, ts = Quadratic(), smdp.linear_grid(0.0, 10.0, 500)
    sde, keys = system.sde(), jax.random.split(jax.random.key(0), 4)
    starts = jax.block_until_ready(system.prior(keys[0], settings.paths))
    took: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        found = call()
        jax.block_until_ready(jax.tree.leaves(found))
        took[name] = time.perf_counter() - begun
        return found

    def fit(objective: Any, steps: int) -> Any:
        how = {"steps": steps, "key": keys[2], "batch_size": 256, "progress": False}
        net = smdp.models.MLP()
        return lambda: smdp.fit(sde, net, data, objective, optax.adam(1e-3), **how).learned

    def sample(score: Any) -> Any:
        how = {"num_samples": 100, "key": keys[3]}
        return lambda: smdp.sample_posterior(sde, score, jnp.array([0.02]), ts, **how).samples

    data = timed("simulate", lambda: smdp.simulate(sde, starts, ts, key=keys[1]))
    if settings.job == "windows":
        timed("fit, 10 updates on windows of 10", fit(smdp.MultiStep((10,)), 10))
        timed("sample_posterior, closed form", sample(lambda t, x, args: -x))
    else:
        learned = timed("fit, 2000 updates on 1 step", fit(smdp.OneStep(), settings.updates))
        timed("sample_posterior, learned", sample(learned))
    return took


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    quick = {"paths": 50, "updates": 3, "times": 1}
    settings = harness.parse(Settings(), quick, __doc__, given)
    if settings.job != "all":
        print(json.dumps(figures := chain(settings)))
        return figures
    started = time.perf_counter()
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    found = [
        harness.apart(settings, __file__, job=job)
        for job in ("steps", "windows")
        for _ in range(settings.times)
    ]
    rows = []
    for name in BOUNDS:
        seconds = [took[name] for took in found if name in took]
        rows.append({"first call": name, "least s": min(seconds), "most s": max(seconds)})
    targets = [
        harness.Target(f"{row['first call']}: s", row["least s"], bound)
        for row in rows
        if (bound := BOUNDS[row["first call"]]) is not None
    ]
    return harness.publish(settings, __file__, {"First calls": rows}, targets, started)


if __name__ == "__main__":
    main()
