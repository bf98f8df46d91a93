"""Which solver gets the past of the affine process right, at what cost, and at what order?

    python benchmarks/solvers.py

Compares every fixed-step diffrax solver offered, backward in time with the exact score, with the
closed form of the bridge back to the start (``Affine.bridge_moments``).

- *Order*: from a state at t = 2 that surely came from +1 the process is linear, so the scheme's own
  mean and variance at t = 0.5 are computed exactly (``linear_response.py``), in float64, and
  their error over 16, 32 and 64 steps shows the weak order: 1 for Euler and SEA, 2 for the rest
  (additive noise).
- *One start*: the number of steps, a power of two, at which the scheme's bias is at most 0.5 %, and
  the moments of 200 000 paths with that many steps, by ``sample_posterior`` in float32. "scheme z"
  is the distance of the samples' moments from the scheme's own in Monte Carlo standard errors: it
  shows that sampler and noise are right beyond what the closed form can tell.
- *Two starts*: from x = 0.15 at t = 10 both starts are possible and the score is not linear; back
  to t = 0.5 in steps of 0.05, for order 1 of 0.005. The spread between the starts is what Monte
  Carlo has to find, so four times as many paths.

Errors of the mean are relative to it, those of the variance to the variance; "MC" is one Monte
Carlo standard error.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import diffrax
import harness
import jax
import jax.numpy as jnp
import numpy as np
from linear_response import Law, scheme_laws

import smdp_jax as smdp
from smdp_jax.physics import Affine
from smdp_jax.solve.solvers import evaluations_per_step

SOLVERS = {
    "Euler": (diffrax.Euler(), 1),
    "Heun": (diffrax.Heun(), 2),
    "Midpoint": (diffrax.Midpoint(), 2),
    "Ralston": (diffrax.Ralston(), 2),
    "Bosh3": (diffrax.Bosh3(), 2),
    "Tsit5": (diffrax.Tsit5(), 2),
    "Dopri5": (diffrax.Dopri5(), 2),
    "SEA": (diffrax.SEA(), 1),
    "ShARK": (diffrax.ShARK(), 2),
    "SRA1": (diffrax.SRA1(), 2),
    "SlowRK": (diffrax.SlowRK(), 2),
    "GeneralShARK": (diffrax.GeneralShARK(), 2),
    "SPaRK": (diffrax.SPaRK(), 2),
}
"""Solvers, and their weak order for additive noise."""

AFFINE = Affine(rate=0.5, noise=0.04)
SDE = AFFINE.sde()
BACK_TO = 0.5
TOLERATED_BIAS = 0.005
STEPS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
ORDER_FROM = (16, 32, 64)
MORE_PATHS = 4
"""Times as many paths where two starts are possible."""
WIDTHS = {1: 0.005, 2: 0.05}
"""Width of their steps, by weak order."""


@dataclass(frozen=True)
class Settings(harness.Settings):
    """Which solvers, and how many paths."""

    solvers: tuple[str, ...] = tuple(SOLVERS)
    """Names of solvers."""
    paths: int = 200_000
    """Paths for each, from an end state with one possible start."""
    chunk: int = 20_000
    """Paths solved at once."""


class Case(NamedTuple):
    """An end state, and the moments of its past."""

    t_end: float
    x_end: float
    mean: float
    variance: float


def case(t_end: float, x_end: float) -> Case:
    """Look up the moments of the past of an end state."""
    with jax.enable_x64(True):
        mean, variance = AFFINE.bridge_moments(BACK_TO, t_end, jnp.array([x_end]))
    return Case(t_end, x_end, float(mean[0]), float(variance[0]))


def score_of_one_start(t: Any, x: Any, args: Any) -> Any:
    """Score of the process started at +1: that of the process from +-1 near exp(-rate t)."""
    centre = AFFINE.transition_mean(t, jnp.ones(1, x.dtype))
    return (centre - x) / AFFINE.transition_variance(t)


def laws_by_steps(solver: diffrax.AbstractSolver, start: Case) -> dict[int, Law]:
    """Compute what the scheme makes of a state with one possible start, for all of ``STEPS``."""
    with jax.enable_x64(True):
        back = smdp.reverse_sde(SDE, score_of_one_start)
        grids = [-np.linspace(BACK_TO, start.t_end, n + 1)[::-1] for n in STEPS]
        return dict(zip(STEPS, scheme_laws(back, solver, grids, jnp.ones(1)), strict=True))


def bias(law: Law, start: Case) -> tuple[float, float]:
    """Compare a scheme's moments with the closed form."""
    mean = (law.gain * start.x_end + law.offset).item()
    return mean / start.mean - 1, law.variance.item() / start.variance - 1


def sample(
    solver: diffrax.AbstractSolver, start: Case, steps: int, paths: int, chunk: int
) -> tuple[np.ndarray, float]:
    """Sample the past of an end state."""
    begun = time.perf_counter()
    past = smdp.sample_posterior(
        SDE,
        AFFINE.score,
        jnp.array([start.x_end]),
        smdp.linear_grid(BACK_TO, start.t_end, steps),
        num_samples=paths,
        key=jax.random.key(1),
        solver=solver,
        chunk_size=chunk,
    )
    samples = np.asarray(past.samples[:, 0], np.float64)
    return samples, time.perf_counter() - begun


def moments(x: np.ndarray, start: Case) -> dict[str, float]:
    """Compare samples with the closed form."""
    fourth = np.mean((x - x.mean()) ** 4)
    spread = math.sqrt(max(fourth - x.var() ** 2, 0.0) / len(x))
    return {
        "mean error": x.mean() / start.mean - 1,
        "MC mean": x.std() / math.sqrt(len(x)) / abs(start.mean),
        "variance error": x.var() / start.variance - 1,
        "MC variance": spread / start.variance,
    }


def scheme_distance(row: dict[str, float], law: Law, start: Case) -> float:
    """Distance of the samples' moments from the scheme's own, in standard errors (the larger)."""
    mean, variance = bias(law, start)
    return max(
        abs(row["mean error"] - mean) / row["MC mean"],
        abs(row["variance error"] - variance) / row["MC variance"],
    )


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    quick = {"solvers": ("Euler", "ShARK"), "paths": 2000, "chunk": 1000}
    settings = harness.parse(Settings(), quick, __doc__, given)
    started = time.perf_counter()
    one, two = case(2.0, 0.40), case(10.0, 0.15)
    many = MORE_PATHS * settings.paths
    orders, ones, twos = [], [], []
    for name in settings.solvers:
        solver, theory = SOLVERS[name]
        harness.say(name)
        laws = laws_by_steps(solver, one)
        errors = [math.hypot(*bias(laws[n], one)) for n in ORDER_FROM]
        found = [math.log2(a / b) for a, b in pairwise(errors)]
        orders.append({"solver": name, "theory": theory})
        orders[-1].update({f"error {n}": e for n, e in zip(ORDER_FROM, errors, strict=True)})
        orders[-1]["order"] = found[-1]
        fitting = (n for n in STEPS if max(map(abs, bias(laws[n], one))) <= TOLERATED_BIAS)
        steps = next(fitting, STEPS[-1])
        x, took = sample(solver, one, steps, settings.paths, settings.chunk)
        row = {"solver": name, "steps": steps, "evaluations": steps * evaluations_per_step(solver)}
        figures = moments(x, one)
        z = scheme_distance(figures, laws[steps], one)
        ones.append({**row, **figures, "scheme z": z, "seconds": took})
        steps = round((two.t_end - BACK_TO) / WIDTHS[theory])
        x, took = sample(solver, two, steps, many, settings.chunk)
        row = {"solver": name, "steps": steps, "evaluations": steps * evaluations_per_step(solver)}
        twos.append({**row, **moments(x, two), "seconds": took})
    everything = [*ones, *twos]
    targets = [
        harness.Target(
            "largest error of a mean", max(abs(r["mean error"]) for r in everything), 0.01
        ),
        harness.Target(
            "largest error of a variance", max(abs(r["variance error"]) for r in everything), 0.01
        ),
        harness.Target(
            "largest distance from theory's order",
            max(abs(r["order"] - r["theory"]) for r in orders),
            0.25,
        ),
        harness.Target("largest scheme z", max(r["scheme z"] for r in ones), 4.5),
    ]
    tables = {
        f"Weak order: error of (mean, variance) over {ORDER_FROM} steps from t = 2 to 0.5": orders,
        f"One start: {settings.paths} paths from x = {one.x_end} at t = {one.t_end:g}": ones,
        f"Two starts: {many} paths from x = {two.x_end} at t = {two.t_end:g}": twos,
    }
    return harness.publish(settings, __file__, tables, targets, started)


if __name__ == "__main__":
    main()
