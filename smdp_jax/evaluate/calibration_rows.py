"""The rows of a calibration report, from true starts and draws of their posteriors."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from smdp_jax.compiled import compiled
from smdp_jax.evaluate.arrays import by_name
from smdp_jax.evaluate.calibration import marginal_coverage, sbc_ranks, tarp_ranks, uniformity_test
from smdp_jax.evaluate.calibration_record import Ratio
from smdp_jax.evaluate.ensembles import crps_ensemble
from smdp_jax.evaluate.observables import Observables
from smdp_jax.scores.verdict import within
from smdp_jax.sde import SDE, Args, State
from smdp_jax.solve.integrate import integrate

MIN_CASES = 20
"""Fewer end states prove nothing: two bins of 10."""
RECONSTRUCTED = 8
"""At most this many draws of a case are simulated forward."""


def coverage(truths: State, samples: State, levels: Array, key: Any) -> dict[str, np.ndarray]:
    """Coverage pooled over entries, its error over cases, and what uniform ranks would give.

    Entries that tie with draws, as those of discrete states do, are ranked at random among them.
    """
    draws = jax.tree.leaves(samples)[0].shape[1]
    if draws == 0:
        nothing, none = np.full(levels.shape, math.nan), np.zeros(levels.shape)
        return {"nominal": np.asarray(levels), "coverage": nothing, "coverage_error": none}
    nominal = within(draws, np.asarray(levels)).mean(axis=1)

    entries = [math.prod(x.shape[1:]) for x in jax.tree.leaves(truths)]
    keys = jax.random.split(key, len(entries))
    leaves = [jax.tree.leaves(truths), jax.tree.leaves(samples), keys]
    weighted = [
        np.asarray(_shares(*leaf, levels)) * (n / sum(entries))
        for *leaf, n in zip(*leaves, entries, strict=True)
    ]
    by_case = np.sum(weighted, axis=0)
    least = np.sqrt(nominal * (1 - nominal) / (len(by_case) * sum(entries)))
    error = np.maximum(by_case.std(axis=0) / math.sqrt(len(by_case)), least)
    return {"nominal": nominal, "coverage": by_case.mean(axis=0), "coverage_error": error}


_sbc_ranks, _tarp_ranks = jax.jit(sbc_ranks), jax.jit(tarp_ranks)


@jax.jit
def _shares(truths: Array, samples: Array, key: Array, levels: Array) -> Array:
    """Share of entries covered, (cases, levels), one case at a time."""

    def of_case(case: tuple[Array, Array, Array]) -> Array:
        truth, own, k_ties = case
        inside = marginal_coverage(truth[None], own[None], levels, key=k_ties)
        return inside.reshape(len(levels), -1).mean(axis=1)

    return jax.lax.map(of_case, (truths, samples, jax.random.split(key, truths.shape[0])))


@compiled
def _observed(observables: Observables, states: State, axes: int) -> Any:
    """Observables of states with one or two leading axes."""
    if axes == 1:
        return jax.vmap(observables)(states)
    return jax.lax.map(jax.vmap(observables), states)


def ranked(
    observables: Observables, truths: State, samples: State, k_ties: Any, k_tarp: Any
) -> dict[str, Any]:
    """SBC over observables that differ between truths, and TARP over all entries."""
    cases, draws = jax.tree.leaves(samples)[0].shape[:2]
    true = _observed(observables, truths, 1)
    if not isinstance(true, Mapping) or any(jnp.ndim(value) != 1 for value in true.values()):
        got = jax.tree.map(lambda x: jnp.shape(x)[1:], true)
        raise ValueError(f"observables must return a mapping of names to numbers, got {got}")
    # Up to rounding of the largest.
    alike = lambda x: x.size > 0 and np.ptp(x) <= 1e-6 * np.abs(x).max()
    constant = tuple(name for name, values in true.items() if alike(np.asarray(values)))
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


def crps(truths: State, used: np.ndarray, samples: State) -> dict[str, Ratio]:
    """By leaf, beside that of the other truths."""
    drawn = by_name(samples)
    return {
        name: _ratio(*map(np.asarray, _crps_by_case(jnp.asarray(truth), used, drawn[name])))
        for name, truth in by_name(truths).items()
    }


@jax.jit
def _crps_by_case(truths: Array, used: Array, samples: Array) -> tuple[Array, Array]:
    """Means over entries (cases used,) of a posterior's score, and of other truths' as draws."""
    if samples.shape[1] == 0:
        nothing = jnp.full(used.shape, jnp.nan)
        return nothing, nothing
    own = jax.lax.map(lambda pair: jnp.mean(crps_ensemble(*pair)), (samples, truths[used]))
    apart = jax.lax.map(lambda x: jnp.mean(jnp.abs(truths - x[None])), truths)
    apart = apart * (truths.shape[0] / (truths.shape[0] - 1))
    return own, apart[used] - jnp.mean(apart) / 2


def reconstruction(
    sde: SDE, ts: Array, used: tuple, shared: Args, options: dict[str, Any], chunk: int | None
) -> dict[str, Ratio]:
    """Distance of re-simulated draws from the observed end, over that of the true starts."""
    truths, samples, ends, mapped = used
    if jax.tree.leaves(samples)[0].size == 0:
        return {name: Ratio(*(math.nan,) * 3) for name in by_name(truths)}
    some = jax.tree.map(lambda x: x[:, :RECONSTRUCTED], samples)
    starts = jax.tree.map(lambda t, s: jnp.concatenate([t[:, None], s], axis=1), truths, some)
    found = _misses(sde, ts, (starts, ends, mapped), shared, options, chunk)
    misses = by_name(jax.tree.map(lambda miss: np.asarray(miss, float), found))
    return {name: _ratio(miss[:, 1:].mean(axis=1), miss[:, 0]) for name, miss in misses.items()}


@compiled
def _misses(
    sde: SDE, ts: Array, cases: tuple, shared: Args, options: dict[str, Any], chunk: int | None
) -> State:
    """Mean squared distance of F(start) from the end, leaves (cases, 1 + draws)."""
    quiet = dataclasses.replace(sde, diffusion=None)
    if sde.step is None:
        options = {"solver": diffrax.Tsit5()} | options
    number, per_case = jax.tree.leaves(cases[0])[0].shape[:2]

    def one(i: Array) -> State:
        start = jax.tree.map(lambda x: x[i // per_case, i % per_case], cases[0])
        end, own = jax.tree.map(lambda x: x[i // per_case], cases[1:])
        own = shared if own is None else own
        found, _ = integrate(quiet, start, ts, args=own, save="last", **options)
        return jax.tree.map(lambda a, b: jnp.mean(jnp.square(a - b)), found, end)

    total = number * per_case
    found = jax.lax.map(one, jnp.arange(total), batch_size=min(chunk or total, total))
    return jax.tree.map(lambda x: x.reshape(number, per_case), found)


def _ratio(values: np.ndarray, references: np.ndarray) -> Ratio:
    """Ratio of means, with its standard error over cases (linearised)."""
    value, reference = (float(x.mean()) if x.size else math.nan for x in (values, references))
    if not (math.isfinite(value) and reference > 0):
        return Ratio(value, reference, math.nan)
    spread = np.sqrt(np.mean(np.square(values - value / reference * references)) / len(values))
    return Ratio(value, reference, float(spread) / reference)
