"""Calibration of a backward sampler on held-out paths, in one call."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.checks import check_key, check_kind, check_positive, check_time_grid
from smdp_jax.evaluate.arrays import check_levels
from smdp_jax.evaluate.calibration import (
    marginal_coverage,
    sbc_ranks,
    tarp_ranks,
    uniformity_test,
)
from smdp_jax.evaluate.calibration_record import CalibrationReport, Ratio
from smdp_jax.evaluate.ensembles import crps_ensemble
from smdp_jax.evaluate.observables import Observables, default_observables
from smdp_jax.posterior import Posterior, sample_posterior
from smdp_jax.sde import SDE, Args, State
from smdp_jax.solve.integrate import integrate
from smdp_jax.trajectories import Trajectories

MIN_CASES = 20
"""Fewer end states prove nothing: two bins of 10."""
MIN_DRAWS = 9
"""Fewer draws have no 90 % interval narrower than all of them."""
RECONSTRUCTED = 8
"""At most this many draws of a case are simulated forward."""


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
    sde : SDE
        The forward process.
    score : callable
        Anything `sample_posterior` takes.
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
        Maps one state to a mapping of names to numbers, which SBC ranks; by default
        `evaluate.default_observables`: entries of small states; modes, a patch mean, maximum and
        mean square of fields.
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
    ValueError
        For fewer than 20 paths or 9 draws, starts that all agree, options that the report decides
        itself, draws of another shape, and whatever `sample_posterior` refuses.
    TypeError
        If ``test_paths`` are no Trajectories.
    """
    nominal = check_levels(np.asarray(levels, np.float32))
    (draws,) = check_positive(num_samples=num_samples)
    _check(sde, test_paths, draws, key, sampling, drawn)
    keys = jax.random.split(key, 3)
    truths, ends = (jax.tree.map(lambda x, i=i: x[:, i], test_paths.xs) for i in (0, -1))
    if drawn is None:
        drawn = sample_posterior(
            sde,
            score,
            ends,
            test_paths.ts,
            num_samples=draws,
            key=keys[0],
            args=test_paths.args,
            args_axes=test_paths.args_axes,
            batch_axes=1,
            **sampling,
        )
    samples = _check_drawn(drawn, truths)
    cases, draws = jax.tree.leaves(samples)[0].shape[:2]
    finite = _finite(samples, drawn.info)
    used, order = _kept(finite)
    chosen = jax.tree.map(lambda x: jnp.asarray(x)[used[:, None], order], samples)
    truths_used = jax.tree.map(lambda x: jnp.asarray(x)[used], truths)
    ends_used = jax.tree.map(lambda x: jnp.asarray(x)[used], ends)
    mapped = test_paths.args_axes == 0
    args = jax.tree.map(lambda a: jnp.asarray(a)[used], test_paths.args) if mapped else None
    ranked = _ranked(observables, truths_used, chosen, keys[1], keys[2])
    return CalibrationReport(
        cases=cases,
        num_samples=draws,
        lost=1 - float(finite.mean()),
        cases_used=len(used),
        draws_used=order.shape[1],
        levels=np.asarray(nominal),
        **_coverage(truths_used, chosen, nominal),
        **ranked,
        crps=_crps(truths, used, chosen),
        reconstruction=_reconstruction(
            sde,
            test_paths.ts,
            (truths_used, chosen, ends_used, args),
            test_paths.args,
            dict(simulator or {}),
            sampling.get("chunk_size"),
        ),
    )


def _check(
    sde: SDE, paths: Any, draws: int, key: Any, sampling: Mapping[str, Any], drawn: Any
) -> None:
    check_kind("test_paths", paths, "Trajectories(ts, xs)", "ts", "xs", "args_axes")
    check_time_grid(paths.ts, sde)
    paths.check()
    check_key(key)
    decided = {"args", "args_axes", "batch_axes", "save"} & set(sampling)
    if decided:
        raise ValueError(
            f"sampling options must leave {sorted(decided)} to the report, which takes them from "
            "test_paths, got them as well"
        )
    if paths.num_samples < MIN_CASES:
        raise ValueError(
            f"test_paths must hold at least {MIN_CASES} held-out paths, got {paths.num_samples}: "
            "fewer cannot tell a right posterior from a wrong one"
        )
    if drawn is None and draws < MIN_DRAWS:
        raise ValueError(f"num_samples must be at least {MIN_DRAWS}, got {draws}")


def _check_drawn(drawn: Posterior, truths: State) -> State:
    """Samples with leaves (cases, draws, *state), as the truths (cases, *state) have them."""

    def fits(x: Any, truth: Any) -> bool:
        return x.ndim == truth.ndim + 1 and x.shape[:1] + x.shape[2:] == truth.shape

    same = jax.tree.structure(drawn.samples) == jax.tree.structure(truths)
    if not same or not all(jax.tree.leaves(jax.tree.map(fits, drawn.samples, truths))):
        want, got = (jax.tree.map(jnp.shape, tree) for tree in (truths, drawn.samples))
        raise ValueError(
            f"drawn.samples must have an axis of draws after the first of {want}, got {got}"
        )
    if (draws := jax.tree.leaves(drawn.samples)[0].shape[1]) < MIN_DRAWS:
        raise ValueError(f"drawn must hold at least {MIN_DRAWS} draws per case, got {draws}")
    return drawn.samples


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


def _coverage(truths: State, samples: State, levels: Array) -> dict[str, np.ndarray]:
    """Coverage pooled over entries, its error over cases, and what uniform ranks would give."""
    draws = jax.tree.leaves(samples)[0].shape[1]
    if draws == 0:
        nothing = np.full(levels.shape, math.nan)
        return {
            "nominal": np.asarray(levels),
            "coverage": nothing,
            "coverage_error": np.zeros(levels.shape),
        }
    every = jnp.arange(draws + 1, dtype=levels.dtype)
    off_centre = jnp.abs((2 * every + 1) / (draws + 1) - 1)
    nominal = jnp.mean(off_centre[None] <= levels[:, None], axis=1)

    entries = [math.prod(x.shape[1:]) for x in jax.tree.leaves(truths)]
    pairs = zip(jax.tree.leaves(truths), jax.tree.leaves(samples), strict=True)
    weighted = [
        np.asarray(_shares(*pair, levels)) * (n / sum(entries))
        for pair, n in zip(pairs, entries, strict=True)
    ]
    by_case = np.sum(weighted, axis=0)
    least = np.sqrt(nominal * (1 - nominal) / (len(by_case) * sum(entries)))
    error = np.maximum(by_case.std(axis=0) / math.sqrt(len(by_case)), least)
    return {
        "nominal": np.asarray(nominal),
        "coverage": by_case.mean(axis=0),
        "coverage_error": error,
    }


_sbc_ranks, _tarp_ranks = jax.jit(sbc_ranks), jax.jit(tarp_ranks)


@jax.jit
def _shares(truths: Array, samples: Array, levels: Array) -> Array:
    """Share of entries covered, (cases, levels), one case at a time."""

    def of_case(case: tuple[Array, Array]) -> Array:
        truth, own = case
        inside = marginal_coverage(truth[None], own[None], levels)
        return inside.reshape(len(levels), -1).mean(axis=1)

    return jax.lax.map(of_case, (truths, samples))


@eqx.filter_jit
def _observed(observables: Observables, states: State, axes: int) -> Any:
    """Observables of states with one or two leading axes."""
    if axes == 1:
        return jax.vmap(observables)(states)
    return jax.lax.map(jax.vmap(observables), states)


def _ranked(
    observables: Observables, truths: State, samples: State, k_ties: Any, k_tarp: Any
) -> dict[str, Any]:
    """SBC over observables that differ between truths, and TARP over all entries."""
    cases, draws = jax.tree.leaves(samples)[0].shape[:2]
    true = _observed(observables, truths, 1)
    if not isinstance(true, Mapping) or any(jnp.ndim(value) != 1 for value in true.values()):
        raise ValueError(
            "observables must return a mapping of names to numbers, got "
            f"{jax.tree.map(lambda x: jnp.shape(x)[1:], true)}"
        )
    constant = tuple(name for name, values in true.items() if _is_constant(np.asarray(values)))
    names = tuple(name for name in true if name not in constant)
    if cases and not names:
        raise ValueError("test_paths must start from states that differ, got one state in all")
    p = np.full(len(names), math.nan)
    found = {"observables": names, "constant": constant, "sbc_p": p, "tarp_p": math.nan}
    if draws == 0:
        empty = {"sbc_ranks": np.zeros((0, len(names)), int), "tarp_ranks": np.zeros(0, int)}
        return found | empty
    drawn = _observed(observables, samples, 2)
    stacked = [jnp.stack([tree[name] for name in names], axis=-1) for tree in (true, drawn)]
    ranks = _sbc_ranks(*stacked, key=k_ties)
    flat = [
        jnp.concatenate([x.reshape(*x.shape[:axes], -1) for x in jax.tree.leaves(tree)], axis=-1)
        for axes, tree in ((1, truths), (2, samples))
    ]
    tarp = _tarp_ranks(*flat, key=k_tarp)
    if cases >= MIN_CASES:
        found["sbc_p"] = np.asarray(uniformity_test(ranks, draws).p_value)
        found["tarp_p"] = float(uniformity_test(tarp, draws).p_value)
    return found | {"sbc_ranks": np.asarray(ranks), "tarp_ranks": np.asarray(tarp)}


def _is_constant(values: np.ndarray) -> bool:
    """Whether true starts agree in a number, up to rounding of the largest."""
    return bool(np.ptp(values) <= 1e-6 * np.abs(values).max()) if values.size else False


def _by_leaf(tree: State) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _crps(truths: State, used: np.ndarray, samples: State) -> dict[str, Ratio]:
    """By leaf, beside that of the other truths."""
    drawn = _by_leaf(samples)
    return {
        name: _ratio(*map(np.asarray, _crps_by_case(jnp.asarray(truth), used, drawn[name])))
        for name, truth in _by_leaf(truths).items()
    }


@jax.jit
def _crps_by_case(truths: Array, used: Array, samples: Array) -> tuple[Array, Array]:
    """Means over entries (cases used,) of a posterior's score, and of the other truths' as draws.

    E|X - x_i| is a mean over the others, and E|X - X'| the mean of that over i.
    """
    if samples.shape[1] == 0:
        nothing = jnp.full(used.shape, jnp.nan)
        return nothing, nothing
    own = jax.lax.map(lambda pair: jnp.mean(crps_ensemble(*pair)), (samples, truths[used]))
    apart = jax.lax.map(lambda x: jnp.mean(jnp.abs(truths - x[None])), truths)
    apart = apart * (truths.shape[0] / (truths.shape[0] - 1))
    return own, apart[used] - jnp.mean(apart) / 2


def _reconstruction(
    sde: SDE, ts: Array, used: tuple, shared: Args, options: dict[str, Any], chunk: int | None
) -> dict[str, Ratio]:
    """Distance of re-simulated draws from the observed end, over that of the true starts."""
    truths, samples, ends, mapped = used
    if jax.tree.leaves(samples)[0].size == 0:
        return {name: Ratio(*(math.nan,) * 3) for name in _by_leaf(truths)}
    some = jax.tree.map(lambda x: x[:, :RECONSTRUCTED], samples)
    starts = jax.tree.map(lambda t, s: jnp.concatenate([t[:, None], s], axis=1), truths, some)
    misses = _by_leaf(_misses(sde, ts, (starts, ends, mapped), shared, options, chunk))
    misses = {name: np.asarray(miss, float) for name, miss in misses.items()}
    return {name: _ratio(miss[:, 1:].mean(axis=1), miss[:, 0]) for name, miss in misses.items()}


def _misses(
    sde: SDE, ts: Array, cases: tuple, shared: Args, options: dict[str, Any], chunk: int | None
) -> State:
    """Mean squared distance of F(start) from the end, leaves (cases, 1 + draws)."""
    quiet = dataclasses.replace(sde, diffusion=None)
    if sde.step is None:
        options = {"solver": diffrax.Tsit5()} | options
    number, per_case = jax.tree.leaves(cases[0])[0].shape[:2]

    @eqx.filter_jit
    def solve(cases: tuple, shared: Args) -> State:
        def one(i: Array) -> State:
            start = jax.tree.map(lambda x: x[i // per_case, i % per_case], cases[0])
            end, own = jax.tree.map(lambda x: x[i // per_case], cases[1:])
            own = shared if own is None else own
            found, _ = integrate(quiet, start, ts, args=own, save="last", **options)
            return jax.tree.map(lambda a, b: jnp.mean(jnp.square(a - b)), found, end)

        total = number * per_case
        return jax.lax.map(one, jnp.arange(total), batch_size=min(chunk or total, total))

    return jax.tree.map(lambda x: x.reshape(number, per_case), solve(cases, shared))


def _ratio(values: np.ndarray, references: np.ndarray) -> Ratio:
    """Ratio of means, with its standard error over cases (linearised)."""
    value, reference = (float(x.mean()) if x.size else math.nan for x in (values, references))
    if not (math.isfinite(value) and reference > 0):
        return Ratio(value, reference, math.nan)
    spread = np.sqrt(np.mean(np.square(values - value / reference * references)) / len(values))
    return Ratio(value, reference, float(spread) / reference)
