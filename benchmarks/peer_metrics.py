"""How good is what a method of ``tables.py`` answers?"""

import math
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from peer_problems import Budget, Problem
from peers import Answer

from smdp_jax import evaluate


def measure(problem: Problem, answer: Answer, budget: Budget, key: Any) -> dict[str, float]:
    """Sample the held-out end states, and judge what came."""
    k_draw, k_exact, k_ranks, k_told, k_ends = jax.random.split(key, 5)
    draws = min(budget.draws, answer.most_draws or budget.draws)
    started = time.perf_counter()
    samples = np.asarray(answer.sampler(problem.ends, draws, k_draw))
    row: dict[str, float] = {
        "parameters": answer.parameters,
        "train s": answer.train_s,
        "sample s": time.perf_counter() - started,
    }
    finite = np.isfinite(samples).reshape(*samples.shape[:2], -1).min(axis=2)
    row["finite"] = float(finite.mean())
    whole = finite.min(axis=1)
    if whole.mean() < 0.5:
        raise FloatingPointError(f"diverged: {row['finite']:.0%} of the samples are finite")
    truths, ends, samples = (x[whole] for x in (problem.truths, problem.ends, samples))
    exact = problem.exact(k_exact, ends, budget.draws)
    row |= _errors(truths, samples, exact)
    if draws >= 9:
        row |= _calibration(problem, truths, samples, k_ranks)
        told = evaluate.c2st(
            problem.told(ends, samples), problem.told(ends, exact), key=k_told, permutations=99
        )
        row |= {"C2ST": float(told.accuracy), "C2ST null": float(told.null_high)}
    if problem.forward is None:
        return row | _two_starts(problem, answer, k_ends)
    return row | _fields(problem, answer, truths, ends, samples)


def _errors(truths: Any, samples: Any, exact: Any) -> dict[str, float]:
    def crps(drawn: Any) -> float:
        kind = "fair" if drawn.shape[1] > 1 else "standard"
        score = jax.jit(jax.vmap(lambda x, y: evaluate.crps_ensemble(x, y, kind).mean()))
        return float(score(drawn, truths).mean())

    row = {"CRPS / exact": crps(samples) / crps(exact)}
    if samples.shape[1] > 1:
        row["spread / skill"] = float(evaluate.spread_skill(truths, samples).ratio)
    return row


def _calibration(problem: Problem, truths: Any, samples: Any, key: Any) -> dict[str, float]:
    """Smallest p-values over observables, times their number; below 0.05 is a fault."""
    k_sbc, k_tarp = jax.random.split(key)
    seen = jax.vmap(problem.observe)(truths)
    drawn = jax.vmap(jax.vmap(problem.observe))(samples)
    names = [name for name in seen if np.ptp(np.asarray(seen[name])) > 1e-6]
    true, those = (jnp.stack([tree[n] for n in names], -1) for tree in (seen, drawn))
    count = samples.shape[1]
    p = evaluate.uniformity_test(evaluate.sbc_ranks(true, those, key=k_sbc), count).p_value
    tarp = evaluate.tarp_ranks(true, those, key=k_tarp)
    return {
        "SBC p": min(float(p.min()) * len(names), 1.0),
        "TARP p": float(evaluate.uniformity_test(tarp, count).p_value),
    }


def _two_starts(problem: Problem, answer: Answer, key: Any) -> dict[str, float]:
    ends, draws = jnp.linspace(-0.1, 0.1, 1000)[:, None], min(10, answer.most_draws or 10)
    starts = answer.sampler(ends, draws, key)
    row = {"Q, SDE": float(evaluate.posterior_hit_metric(starts))}
    if answer.flow is not None:
        row["Q, ODE"] = float(evaluate.posterior_hit_metric(answer.flow(ends)))
    plus = jax.vmap(problem.system.posterior_plus, (None, 0))(problem.train.ts[-1], ends)
    of_group = lambda x: np.asarray(x, float).reshape(20, -1).mean(axis=1)
    row["P error"] = float(np.abs(of_group(starts > 0) - of_group(plus)).max())
    if answer.score is not None:
        xs = jnp.linspace(-1.3, 1.3, 4001)[:, None]
        for t in (2.0, 10.0):
            at = lambda f, t=t: jax.jit(jax.vmap(lambda x: f(jnp.array(t), x, None)))(xs)
            density = jax.vmap(problem.system.density, (None, 0))(jnp.array(t), xs)
            error = evaluate.weighted_score_error(
                at(answer.score), at(problem.system.score), density
            )
            row[f"score error, t = {t:g}"] = float(error)
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
            evaluate.reconstruction_mse(forward(fields), forward(truths))
        )
        for kind, error in (
            ("", evaluate.spectral_error),
            (" published", evaluate.published_spectral_error),
        ):
            value = jax.jit(jax.vmap(partial(error, **most)))(fields, truths).mean()
            row[f"spectral error{kind}, {name}"] = float(value)
    relative = jax.jit(jax.vmap(evaluate.relative_error))(samples.mean(axis=1), truths)
    similar = jax.jit(jax.vmap(evaluate.ssim))(samples[:, 0], truths)
    return row | {"relative L2 of the mean": float(relative.mean()), "SSIM": float(similar.mean())}
