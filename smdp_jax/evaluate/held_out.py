"""Calibration of a backward sampler on held-out paths, in one call."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from smdp_jax.checks import check_holds, check_key, check_kind, check_positive
from smdp_jax.evaluate import calibration_rows as rows
from smdp_jax.evaluate.arrays import as_levels
from smdp_jax.evaluate.calibration_record import CalibrationReport
from smdp_jax.evaluate.calibration_rows import MIN_CASES
from smdp_jax.evaluate.observables import Observables, default_observables
from smdp_jax.posterior.sampling import Posterior, sample_posterior
from smdp_jax.sde import SDE, State
from smdp_jax.solve.process import check_time_grid
from smdp_jax.trajectories import Trajectories

MIN_DRAWS = 9
"""Fewer draws have no 90 % interval narrower than all of them."""


def calibration_report(
    sde: SDE,
    score: Any,
    test_paths: Trajectories,
    *,
    key: PRNGKeyArray,
    num_samples: int = 99,
    levels: Sequence[float] = (0.5, 0.9),
    observables: Observables = default_observables,
    simulator: Mapping[str, Any] | None = None,
    drawn: Posterior | None = None,
    **sampling: Any,
) -> CalibrationReport:
    """Draw posteriors of held-out end states and test them against the true starts.

    The true start of a path and exact posterior draws given its end are exchangeable: that is what
    all rows rest on, for any process, without a closed form.

    Parameters
    ----------
    sde, score : SDE, callable
        The forward process, and anything `sample_posterior` takes.
    test_paths : Trajectories
        Held-out paths, at least 20: starts ``xs[:, 0]`` drawn from the prior are the truth, ends
        ``xs[:, -1]`` what is observed; their ``args`` and ``args_axes`` are used.
    key : PRNG key
        Of the draws, of ties, and of TARP's references.
    num_samples : int
        Draws per end state, at least 9; 19, 39 and 99 make the usual levels exact.
    levels : sequence of float
        Credibility levels of the coverage rows.
    observables : callable
        Maps one state to a mapping of names to numbers, which SBC ranks.
    simulator : mapping, optional
        ``solver`` and ``substeps`` of the simulation forward, without noise; by default
        ``diffrax.Tsit5()`` for drifts, one step per interval of ``test_paths.ts``.
    drawn : Posterior, optional
        Draws at ``ts[0]`` for these end states, leaves (paths, draws, *state), where they exist
        already; nothing is sampled then.
    **sampling
        Options of `sample_posterior`, such as ``solver``, ``substeps``, ``chunk_size``.

    Returns
    -------
    CalibrationReport
        ``print(report)`` shows the rows:

        - coverage: share of true entries in central intervals, bounded by ranks;
        - SBC: ranks of observables (Talts et al. 2018), chi-squared p values, and bands for their
          cumulative shares in ``report.figure()`` (Säilynoja et al. 2022);
        - TARP: ranks by distance to random references (Lemos et al. 2023), a test of the joint law;
        - CRPS over the prior's (Gneiting & Raftery 2007, eq. 21), fair for any number of draws;
        - reconstruction: |F(draw) - x_end|^2 over |F(true start) - x_end|^2, F the simulation
          without noise (Holzschuh et al. 2023), of up to 8 draws a case;
        - lost paths, and on how many cases and draws the other rows stand.

    Raises
    ------
    ValueError, TypeError
        For starts that all agree, options that the report decides itself, draws of another shape,
        paths that are no Trajectories, and whatever `sample_posterior` refuses.
    """
    nominal = as_levels(np.asarray(levels, np.float32))
    least = MIN_DRAWS if drawn is None else 1
    (draws,) = check_positive(least=least, num_samples=num_samples)
    _check(sde, test_paths, key, sampling)
    keys = jax.random.split(key, 4)
    truths, ends = (jax.tree.map(lambda x, i=i: x[:, i], test_paths.xs) for i in (0, -1))
    if drawn is None:
        how = {"args": test_paths.args, "args_axes": test_paths.args_axes, "batch_axes": 1}
        given = how | sampling | {"num_samples": draws, "key": keys[0]}
        drawn = sample_posterior(sde, score, ends, test_paths.ts, **given)
    samples = drawn.samples
    _check_drawn(samples, truths)
    cases, draws = jax.tree.leaves(samples)[0].shape[:2]
    finite = _finite(samples, drawn.info)
    used, order = _kept(finite)
    chosen = jax.tree.map(lambda x: jnp.asarray(x)[used[:, None], order], samples)
    own = test_paths.args if test_paths.args_axes == 0 else None
    left, left_ends, args = jax.tree.map(lambda x: jnp.asarray(x)[used], (truths, ends, own))
    seen = left, chosen, left_ends, args
    how = dict(simulator or {}), sampling.get("chunk_size")
    return CalibrationReport(
        cases=cases,
        num_samples=draws,
        lost=1 - float(finite.mean()),
        cases_used=len(used),
        draws_used=order.shape[1],
        levels=np.asarray(nominal),
        **rows.coverage(left, chosen, nominal, keys[3]),
        **rows.ranked(observables, left, chosen, keys[1], keys[2]),
        crps=rows.crps(truths, used, chosen),
        reconstruction=rows.reconstruction(sde, test_paths.ts, seen, test_paths.args, *how),
    )


def _check(sde: SDE, paths: Any, key: Any, sampling: Mapping[str, Any]) -> None:
    check_kind("test_paths", paths, "Trajectories(ts, xs)", "ts", "xs", "args_axes")
    check_time_grid(paths.ts, sde)
    paths.check()
    check_key(key)
    if decided := sorted({"args", "args_axes", "batch_axes", "save"} & set(sampling)):
        raise ValueError(f"sampling must leave {decided} to the report, got them from the caller")
    held_out = "held-out paths, to tell a right posterior from a wrong one"
    check_holds("test_paths", paths.num_samples, MIN_CASES, held_out)


def _check_drawn(samples: Any, truths: State) -> None:
    """Samples have leaves (cases, draws, *state), as the truths (cases, *state) have them."""
    shapes, got = (jax.tree.map(jnp.shape, tree) for tree in (truths, samples))
    draws = next((x.shape[1] for x in jax.tree.leaves(samples) if jnp.ndim(x) > 1), 0)
    want = jax.tree.map(lambda x: (*x.shape[:1], draws, *x.shape[1:]), truths)
    if got != want:
        said = f"an axis of draws after the first of {shapes}"
        raise ValueError(f"drawn.samples must have {said}, got {got}")
    check_holds("drawn", draws, MIN_DRAWS, "draws per case")


def _finite(samples: State, info: Any) -> np.ndarray:
    """Which draws (cases, draws) are finite, by what they are and by what the solve says."""
    leaves = [np.isfinite(np.asarray(x)) for x in jax.tree.leaves(samples)]
    finite = np.all([x.reshape(*x.shape[:2], -1).all(axis=2) for x in leaves], axis=0)
    said = np.asarray(getattr(info, "finite", True))
    return finite & said if said.shape == finite.shape else finite


def _kept(finite: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cases with half of their draws or more, and which draws of each: the first finite ones."""
    counts = finite.sum(axis=1)
    used = np.flatnonzero(2 * counts >= finite.shape[1])
    draws = int(counts[used].min()) if used.size else 0
    return used, np.argsort(~finite[used], axis=1, kind="stable")[:, :draws]
