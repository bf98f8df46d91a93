"""How good is what a method of ``tables.py`` answers?"""

import functools
import math
import os
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from peer_problems import Budget, Problem
from peers import Answer

from smdp_jax import evaluate

_PROBES = jnp.linspace(-0.1, 0.1, 1000)[:, None]
"""End states that Q is counted over."""


class _Same:
    """A law, equal to itself alone."""

    def __init__(self, law: Any) -> None:
        self.law = law

    def __hash__(self) -> int:
        return id(self.law)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.law is self.law


def measure(problem: Problem, answer: Answer, budget: Budget, key: Any) -> dict[str, Any]:
    """Sample the held-out end states, and judge what came."""
    k_draw, k_exact, k_ranks, k_told = jax.random.split(key, 4)
    draws = min(budget.draws, answer.most_draws or budget.draws)
    few = None if answer.every else problem.few
    truths, ends = problem.truths[:few], problem.ends[:few]
    # One call for both: one program.
    probes = _PROBES if problem.forward is None else ends[:0]
    started = time.perf_counter()
    samples = np.asarray(answer.sampler(jnp.concatenate([ends, probes]), draws, k_draw))
    row: dict[str, Any] = {
        "updates": answer.updates,
        "parameters": answer.parameters,
        "train s": "shipped" if math.isnan(answer.train_s) else answer.train_s,
        "sample s": time.perf_counter() - started,
        "cases": len(ends),
    }
    samples, starts = samples[: len(ends)], samples[len(ends) :]
    used, samples, row["finite"] = kept(samples)
    if 2 * len(used) < len(ends):
        raise FloatingPointError(f"diverged: {row['finite']:.0%} of the samples are finite")
    truths, ends = truths[used], ends[used]
    exact = problem.exact(k_exact, ends, budget.draws)
    many = problem.exact(k_exact, ends, 99) if problem.forward is None else exact
    row |= _errors(truths, samples, many)
    if samples.shape[1] > 1:
        row |= _calibration(problem, truths, samples, k_ranks)
        told = _c2st(problem.told(ends, samples), problem.told(ends, exact), key=k_told)
        row |= {"C2ST": float(told.accuracy), "C2ST null": float(told.null_high)}
    if problem.forward is None:
        return row | _two_starts(problem, answer, starts)
    return row | _fields(problem, answer, truths, ends, samples)


def kept(samples: Any) -> tuple[Any, Any, float]:
    """Cases with half of their draws or more, as many finite draws of each, and the share of all.

    What is lost shows as that share: a rank among the draws that are left is one of what is left.
    """
    finite = np.isfinite(samples).reshape(*samples.shape[:2], -1).all(axis=2)
    used = np.flatnonzero(2 * finite.sum(axis=1) >= finite.shape[1])
    draws = int(finite[used].sum(axis=1).min()) if used.size else 0
    first = np.argsort(~finite[used], axis=1, kind="stable")[:, :draws]
    return used, samples[used[:, None], first], float(finite.mean())


def _mean_of(score: Any, samples: Any, truths: Any) -> float:
    kind = "fair" if samples.shape[1] > 1 else "standard"
    return float(jax.jit(jax.vmap(lambda x, y: score(x, y, kind).mean()))(samples, truths).mean())


def _errors(truths: Any, samples: Any, exact: Any) -> dict[str, float]:
    scores: dict[str, Any] = {"CRPS": evaluate.crps_ensemble}
    if truths[0].size > 1:
        scores["energy"] = evaluate.energy_score
    row = {
        f"{name} / exact": _mean_of(score, samples, truths) / _mean_of(score, exact, truths)
        for name, score in scores.items()
    }
    if samples.shape[1] > 1:
        row["spread / skill"] = float(evaluate.spread_skill(truths, samples).ratio)
    return row


_sbc, _tarp = jax.jit(evaluate.sbc_ranks), jax.jit(evaluate.tarp_ranks)
_uniform = jax.jit(
    lambda ranks, draws: evaluate.uniformity_test(ranks, draws).p_value, static_argnums=1
)
_c2st = partial(evaluate.c2st, permutations=99)


def _calibration(problem: Problem, truths: Any, samples: Any, key: Any) -> dict[str, float]:
    """Smallest p-values over observables, times their number; below 0.05 is a fault."""
    k_sbc, k_tarp = jax.random.split(key)
    look = jax.jit(jax.vmap(problem.observe))
    cases, draws = samples.shape[:2]
    seen, drawn = look(truths), look(samples.reshape(cases * draws, *samples.shape[2:]))
    names = [name for name in seen if np.ptp(np.asarray(seen[name])) > 1e-6]
    true = jnp.stack([seen[n] for n in names], -1)
    those = jnp.stack([drawn[n].reshape(cases, draws) for n in names], -1)
    p = _uniform(_sbc(true, those, key=k_sbc), draws)
    return {
        "SBC p": min(float(p.min()) * len(names), 1.0),
        "TARP p": float(_uniform(_tarp(true, those, key=k_tarp), draws)),
    }


_TIMES, _GRID = jnp.array([2.0, 10.0]), jnp.linspace(-1.3, 1.3, 4001)[:, None]


def _on_grid(score: Any) -> Any:
    """Score (times, points, 1), or density (times, points)."""
    return jax.jit(lambda: jax.vmap(lambda t: jax.vmap(lambda x: score(t, x))(_GRID))(_TIMES))()


@functools.cache
def _known(which: _Same, end: float) -> tuple[Any, Any, Any]:
    """Exact P(+1) at the probes; score and density on the grid."""
    law = which.law
    plus = jax.jit(jax.vmap(law.posterior_plus, (None, 0)))(jnp.array(end), _PROBES)
    return plus, _on_grid(lambda t, x: law.score(t, x, None)), _on_grid(law.density)


def _two_starts(problem: Problem, answer: Answer, starts: Any) -> dict[str, float]:
    row = {"Q, SDE": float(evaluate.posterior_hit_metric(starts))}
    if answer.flow is not None:
        row["Q, ODE"] = float(evaluate.posterior_hit_metric(answer.flow(_PROBES)))
    plus, scores, densities = _known(_Same(problem.system), float(problem.train.ts[-1]))
    of_group = lambda x: np.asarray(x, float).reshape(20, -1).mean(axis=1)
    row["P error"] = float(np.abs(of_group(starts > 0) - of_group(plus)).max())
    if answer.score is not None:
        found = _on_grid(lambda t, x: answer.score(t, x, None))
        for t, *at in zip(_TIMES, found, scores, densities, strict=True):
            row[f"score error, t = {t:g}"] = float(evaluate.weighted_score_error(*at))
    return row


def _fields(
    problem: Problem, answer: Answer, truths: Any, ends: Any, samples: Any
) -> dict[str, float]:
    assert problem.forward is not None
    forward = jax.jit(jax.vmap(problem.forward))
    found = {"sample": samples[:, 0]}
    if answer.flow is not None:
        flow = np.asarray(answer.flow(ends))
        found["ODE"] = flow if np.isfinite(flow).all() else np.full_like(flow, math.nan)
    row, most = {}, {} if problem.kmax is None else {"kmax": problem.kmax}
    for name, fields in found.items():
        row[f"reconstruction MSE, {name}"] = float(
            jax.jit(evaluate.reconstruction_mse)(forward(fields), forward(truths))
        )
        for kind, error in (
            ("", evaluate.spectral_error),
            (" published", evaluate.published_spectral_error),
        ):
            value = jax.jit(jax.vmap(partial(error, **most)))(fields, truths).mean()
            row[f"spectral error{kind}, {name}"] = float(value)
    relative = jax.jit(jax.vmap(evaluate.relative_error))(samples.mean(axis=1), truths)
    similar = jax.jit(jax.vmap(evaluate.ssim))(samples[:, 0], truths)
    row |= {"relative L2 of the mean": float(relative.mean()), "SSIM": float(similar.mean())}
    return row | perceived(samples[:, 0], truths)


def perceived(x: Any, y: Any) -> dict[str, Any]:
    """LPIPS of pictures, with the weights that the environment names; a sentence without."""
    if x.ndim != 3:
        return {}
    if not (path := os.environ.get("LPIPS_WEIGHTS")):
        return {"LPIPS": "no weights: LPIPS_WEIGHTS names none"}
    weights = evaluate.lpips_weights(path)
    low, high = y.min(), y.max()
    picture = lambda x: jnp.repeat((2 * (x - low) / (high - low) - 1)[..., None], 3, axis=-1)
    found = jax.jit(jax.vmap(lambda x, y: evaluate.lpips(picture(x), picture(y), weights)))(x, y)
    return {"LPIPS": float(found.mean())}
