"""What do score targets along a path cost, beside simulating the same path without them?

    python benchmarks/path_targets.py

Quadratic SDE, 2500 paths, 500 stored steps of 10 Euler-Maruyama steps each, warm and in turn:

- *without*: ``simulate`` on the flow map of one Euler step (``flow_map_of``), the same chain;
- *with*: ``simulate(score_targets=PowerRamp(2))``, one vector-Jacobian product a step;
- *with, ramp found*: ``score_targets=least_variance_ramp(...)``, found before;
- for information: finding it (256 pilot paths), and the default simulation, by ShARK.

Ratios are to *without*.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import harness
import jax
import timing

import smdp_jax as smdp
from smdp_jax.physics import Quadratic

PILOT = 256


@dataclass(frozen=True)
class Settings(harness.Settings):
    """Sizes."""

    paths: int = 2500
    """Simulated paths."""
    stored: int = 500
    """Stored steps of each."""
    substeps: int = 10
    """Simulator steps in each of them."""
    repeats: int = 7
    """Rounds."""


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    quick = {"paths": 100, "stored": 50, "substeps": 5, "repeats": 2}
    settings = harness.parse(Settings(), quick, __doc__, given)
    started = time.perf_counter()
    system = Quadratic()
    sde = system.sde()
    chain = smdp.flow_map_of(sde)
    k_start, k_path, k_pilot = jax.random.split(jax.random.key(0), 3)
    x0 = system.prior(k_start, settings.paths)
    ts = smdp.linear_grid(0.0, 10.0, settings.stored)
    substeps, power = settings.substeps, smdp.PowerRamp(2.0)

    def find_ramp() -> Any:
        return smdp.least_variance_ramp(sde, x0[:PILOT], ts, key=k_pilot, substeps=substeps)

    def simulate(process: smdp.SDE, targets: Any) -> smdp.Trajectories:
        return smdp.simulate(process, x0, ts, key=k_path, substeps=substeps, score_targets=targets)

    found = find_ramp()
    cases = {
        "without": lambda: simulate(chain, False),
        "with": lambda: simulate(sde, power),
        "with, ramp found": lambda: simulate(sde, found),
        "finding the ramp": find_ramp,
        "without, ShARK": lambda: simulate(sde, False),
    }
    times = timing.interleave(cases, settings.repeats)
    rows = [
        {"simulation": name, **taken.row(), **timing.ratio(taken, times["without"])}
        for name, taken in times.items()
    ]
    targets = [
        harness.Target("with targets over without", rows[1]["median ratio"], 2.5),
        harness.Target("with targets and a found ramp", rows[2]["median ratio"], 2.5),
    ]
    heading = f"{settings.paths} paths of {settings.stored} x {substeps} steps"
    return harness.publish(settings, __file__, {heading: rows}, targets, started)


if __name__ == "__main__":
    main()
