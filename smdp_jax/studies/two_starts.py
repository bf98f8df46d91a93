"""Evaluation of the scalar processes that start at +1 or -1, against their exact answers.

Three parts, as an experiment needs them: ``sample`` computes all that needs the learned score,
``evaluate`` compares, ``figures`` draws.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax import evaluate as metrics
from smdp_jax.evaluate import Metric, ReportFigure
from smdp_jax.experiment.calibrated import calibrated, certified
from smdp_jax.experiment.run import Run
from smdp_jax.physics import Affine, Reference
from smdp_jax.posterior.likelihood import certify
from smdp_jax.posterior.sampling import probability_flow, sample_posterior

_GROUPS = 20
_ENDS, _REACH = 0.1, 1.3  # end points that are walked back from, states that scores are shown at


def check_end_points(number: int) -> None:
    """Check that neighbouring end points make up groups."""
    if number % _GROUPS:
        raise ValueError(f"test_cases must be a multiple of {_GROUPS}, got {number}")


Exact = Affine | Reference
"""Exact answers: ``score``, ``density``, ``log_density`` and ``posterior_plus``."""


@dataclass(frozen=True)
class Targets:
    """What a run should reach."""

    score_error: float
    probability_error: float
    flow_hits: float | None = None
    sde_hits: float | None = None


def sample(
    run: Run,
    exact: Exact,
    path_density: Callable[[Any, Any, Any], Any],
    key: PRNGKeyArray,
    *,
    times: tuple[float, ...] = (0.5, 1.0, 2.0, 5.0, 10.0),
    middle: float = 0.5,
    end_points: int = 1000,
    num_samples: int = 40,
    field_reach: float = 1.2,
) -> dict[str, Any]:
    """Evaluate the learned score on grids, and walk back from end points."""
    ends_key, paths_key, bound_key, drawn_key, ranks_key = jax.random.split(key, 5)
    ts = run.data.ts
    ends = jnp.linspace(-_ENDS, _ENDS, end_points)[:, None]
    i = int(jnp.argmin(jnp.abs(ts - middle)))
    back = partial(sample_posterior, run.sde, run.score, ts=ts, batch_axes=1)
    past = back(ends, num_samples=num_samples, key=ends_key, save=(0, i))
    flow = jax.vmap(lambda x: probability_flow(run.sde, run.score, x, ts).xs)(ends)
    held_out = run.dataset.validation or run.data
    paths = back(held_out.xs[:100, -1], num_samples=1, key=paths_key, save="all")
    drawn = back(held_out.xs[:, -1], num_samples=19, key=drawn_key)
    # Where a start is one of two points only its side is a question, and sides tie.
    sides = replace(drawn, samples=jnp.sign(drawn.samples))
    ranks = calibrated(run.sde, run.score, held_out, key=ranks_key, drawn=sides)
    chosen = slice(end_points * 12 // _GROUPS, end_points * 13 // _GROUPS)
    grid, places = jnp.linspace(-_REACH, _REACH, 2001), jnp.linspace(-field_reach, field_reach, 161)
    given_end = jax.vmap(jax.vmap(path_density, (None, None, 0)), (None, 0, None))
    return {
        **ranks,
        "certificate": _certificate(run, exact, ends[end_points * 12 // _GROUPS], bound_key),
        "end_states": ends[:, 0],
        "start_samples": past.samples[..., 0, 0],
        "flow_starts": flow[:, 0, 0],
        "exact_plus": jax.vmap(exact.posterior_plus, (None, 0))(ts[-1], ends),
        "path_times": ts,
        "forward_paths": held_out.xs[:100, :, 0],
        "backward_paths": paths.samples[:, 0, :, 0],
        "flow_paths": flow[:: end_points // 10, :, 0],
        "middle_time": ts[i],
        "middle_ends": ends[chosen, 0],
        "middle_samples": past.samples[chosen, :, 1, 0],
        "middle_states": grid,
        "middle_density": given_end(ts[i], grid[:, None], ends[chosen]).mean(axis=1),
        "at_times": _scores(run, exact, jnp.asarray(times), jnp.linspace(-_REACH, _REACH, 4001)),
        "field": _scores(run, exact, jnp.linspace(ts[1], ts[-1], 100), places),
    }


def _certificate(run: Run, exact: Exact, x_end: Any, key: PRNGKeyArray) -> dict[str, Any]:
    """From the first step on: two points have no density."""
    ts = run.data.ts[1:]
    prior = lambda x, args: exact.log_density(ts[0], x)
    found = certify(run.sde, run.learned, x_end, ts, prior, num_paths=1000, key=key)
    return {"gap": found.gap, "line": str(found)}


def _scores(
    run: Run, exact: Exact, ts: Float[Array, "times"], xs: Float[Array, "points"]
) -> dict[str, Array]:
    def on_grid(function: Callable) -> Array:
        return jax.jit(jax.vmap(jax.vmap(function, (None, 0)), (0, None)))(ts, xs[:, None])

    return {
        "times": ts,
        "states": xs,
        "learned": on_grid(lambda t, x: run.score(t, x, None)[0]),
        "exact": on_grid(lambda t, x: exact.score(t, x)[0]),
        "density": on_grid(exact.density),
    }


def evaluate(arrays: Mapping[str, Any], targets: Targets) -> list[Metric]:
    """Compare with the exact answers."""
    at = arrays["at_times"]
    found, exact = _by_group(arrays)[1:]

    def hits(what: str, starts: Any, wanted: float | None, note: str) -> Metric:
        bound, target = ("at least", wanted) if wanted is not None else (None, 1.0)
        found = metrics.posterior_hit_metric(starts)
        return Metric(f"Q, {what}", found, target, note=note, bound=bound)

    of_flow = "2 min(share of paths within 0.1 of +1, of -1)"
    of_sde = "the same, over all samples of each end point"
    gap, wanted = np.abs(found - exact), targets.probability_error
    groups = f"over {_GROUPS} groups of end points"
    rows = [
        hits("probability flow", arrays["flow_starts"], targets.flow_hits, of_flow),
        hits("reverse-time SDE", arrays["start_samples"], targets.sde_hits, of_sde),
        Metric("error of P(+1 | x_T), largest", gap.max(), wanted, note=groups, bound="at most"),
        Metric("error of P(+1 | x_T), mean", gap.mean()),
        *certified(arrays),
    ]
    note = "relative L2 error weighted by the density"
    for i, t in enumerate(at["times"]):
        error = metrics.weighted_score_error(at["learned"][i], at["exact"][i], at["density"][i])
        name, target = f"score error, t = {t:g}", targets.score_error
        rows.append(Metric(name, error, target, note=note, bound="at most"))
    return rows


def _by_group(arrays: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """End state, sampled and exact P(x_0 = +1 | x_T), as means over neighbouring end points."""

    def means(values: np.ndarray) -> np.ndarray:
        return np.asarray(values).reshape(_GROUPS, -1).mean(axis=1)

    found = means(arrays["start_samples"] > 0)
    return means(arrays["end_states"]), found, means(arrays["exact_plus"])


def figures(arrays: Mapping[str, Any]) -> dict[str, ReportFigure]:
    """Draw the score, the paths and the posterior."""
    plots, field = metrics.plots, arrays["field"]
    ends, found, exact = _by_group(arrays)
    per_group = arrays["start_samples"].size // _GROUPS
    density, grid = arrays["middle_density"], arrays["middle_states"]
    places = [field[name] for name in ("times", "states", "learned", "exact")]
    shown = np.flatnonzero(density > 1e-3 * density.max())
    window = slice(max(shown[0] - 20, 0), shown[-1] + 20)
    paths = {name: arrays[f"{name}_paths"] for name in ("forward", "backward", "flow")}
    shown_paths = {name: np.where(np.abs(x) < 1.5, x, np.nan) for name, x in paths.items()}
    lost = sum(int((~(np.abs(paths[n]) < 1.5)).any(axis=1).sum()) for n in ("backward", "flow"))
    t = float(arrays["middle_time"])
    low, high = arrays["middle_ends"][[0, -1]]
    histogram = plots.posterior_histogram(
        arrays["middle_samples"], grid[window], density[window], bins=80
    )
    histogram.axes[0].set_xlabel(f"state $x$ at $t$ = {t:g}")
    return {
        "score": ReportFigure(
            plots.score_field(*places, density=field["density"]),
            "Learned and exact score, and their difference. Lines enclose 99 % of the paths at "
            "each time; outside them no data tell the score.",
        ),
        "trajectories": ReportFigure(
            plots.trajectories(arrays["path_times"], **shown_paths),
            "Left: simulated paths. Right: paths of the reverse-time SDE from the end states of "
            "these, and probability-flow paths from equally spaced end states."
            + (f" {lost} of them leave the plot." if lost else ""),
        ),
        "posterior": ReportFigure(
            plots.posterior_probability(ends, found, exact, num_samples=per_group),
            "How probable the start +1 is, given the end state: share of samples against exact.",
        ),
        "histogram": ReportFigure(
            histogram,
            f"Samples at t = {t:g} given end states in [{low:.3f}, {high:.3f}] at "
            f"t = {arrays['path_times'][-1]:g}, against the exact density.",
        ),
    }
