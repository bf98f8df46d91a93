"""Flows of ``tables.py`` without a closed form: smoke behind obstacles, forced turbulence.

What stands against the truth are held-out pairs: calibration, CRPS over the prior's, and what the
simulator makes of a sample.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from peer_metrics import kept, perceived
from peer_problems import Budget

import smdp_jax as smdp
from configs import smoke, turbulence
from smdp_jax import baselines, evaluate, models
from smdp_jax.evaluate import calibration_rows
from smdp_jax.studies import noise_free

FLOWS: dict[str, Any] = {"smoke": smoke, "turbulence": turbulence}
_NETS = {
    "smoke": lambda: models.smoke_resnet(channels=24, blocks=2),
    "turbulence": lambda: models.DilatedResNet(channels=24, blocks=2),
}
_LEVELS = (0.4, 0.8)
"""Of intervals that nine draws bound exactly."""


@dataclass(frozen=True)
class Flow:
    """Paths to learn from, and held-out ones."""

    name: str
    config: Any
    train: smdp.Trajectories
    held_out: smdp.Trajectories

    def end(self, x: Any, args: Any) -> Any:
        """Simulate a start to its end, without noise."""
        return noise_free.walk(self.config.sde().step, x, self.held_out.ts, args)


@dataclass
class FlowAnswer:
    """``sampler(ends, args, draws, key)`` returns starts, leaves (cases, draws, *state)."""

    sampler: Callable[[Any, Any, int, Any], Any]
    parameters: int = 0
    updates: int = 0
    train_s: float = 0.0
    most_draws: int | None = None
    most_cases: int | None = None


def flow_of(name: str, preset: str, seed: int, budget: Budget) -> Flow:
    """Simulate paths that the shipped weights have not seen."""
    if preset != "small":
        raise ValueError(f"the weights of {name} are of the preset small, got {preset}")
    config = replace(FLOWS[name].PRESETS[preset], test_cases=budget.cases)
    data = config.simulate(jax.random.key(3_000_000 + seed))
    args = data.truth.get("args")
    paths = smdp.Trajectories(
        data.train.ts, data.truth["paths"], args, args_axes=None if args is None else 0
    )
    return Flow(name, config, data.train, paths)


def _size(learned: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(learned.variables))


def _sampler(flow: Flow, sde: Any, learned: Any, **options: Any) -> Any:
    def sampler(ends: Any, args: Any, draws: int, key: Any) -> Any:
        return smdp.sample_posterior(
            sde,
            learned,
            ends,
            flow.train.ts,
            num_samples=draws,
            key=key,
            args=args,
            args_axes=None if args is None else 0,
            batch_axes=1,
            chunk_size=16,
            **options,
        ).samples

    return sampler


def _shipped(flow: Flow, budget: Budget, key: Any) -> FlowAnswer:
    """The paper's windows: weights that come with the package."""
    found = smdp.pretrained(flow.name)
    # Noise of turbulence's last step would be all there is at the smallest scales.
    sampler = _sampler(flow, found.sde, found.score, denoise_last=flow.name == "turbulence")
    return FlowAnswer(sampler, _size(found.score), 0, math.nan)


def _kernel(flow: Flow, budget: Budget, key: Any) -> FlowAnswer:
    """What the library does where nothing is named."""
    started, sde = time.perf_counter(), flow.config.sde()
    net = models.for_fields(flow.train)
    how = {"steps": budget.steps, "key": key, "progress": False}
    kernel = smdp.fit(sde, net, flow.train, **how).kernel
    seconds = time.perf_counter() - started
    sampler = _sampler(flow, sde, kernel)
    return FlowAnswer(sampler, _size(kernel), budget.steps, seconds, most_cases=60)


def _one(walk: Callable[[Any, Any], Any]) -> Any:
    """Make a sampler of one estimate for each end state."""

    def sampler(ends: Any, args: Any, draws: int, key: Any) -> Any:
        found = jax.jit(lambda *cases: jax.lax.map(lambda c: walk(*c), cases, batch_size=20))
        return jax.tree.map(lambda x: x[:, None], found(ends, args))

    return sampler


def _reversed(flow: Flow, budget: Budget, key: Any) -> FlowAnswer:
    step, ts = flow.config.sde().step, flow.train.ts
    if flow.name == "smoke":
        walk = _one(lambda x, args: noise_free.walk(step, x, ts[::-1], args))
    else:
        walk = lambda x, *_: noise_free.best_negated_starts(step, x, ts)[0][:, None]
    return FlowAnswer(walk, most_draws=1)


def _resnet(noise: float, flow: Flow, budget: Budget, key: Any) -> FlowAnswer:
    started, sde = time.perf_counter(), flow.config.sde()
    learned = smdp.fit(
        sde,
        _NETS[flow.name](),
        flow.train,
        baselines.Regression(training_noise=noise),
        flow.config.optimizer(budget.steps),
        steps=budget.steps,
        batch_size=2 * flow.config.batch_size,
        ema=flow.config.ema,
        key=key,
        progress=False,
    ).step
    seconds = time.perf_counter() - started
    walk = lambda x, args: jax.tree.map(
        lambda v: v[0], baselines.regress(sde, learned, x, flow.train.ts, args=args).samples
    )
    return FlowAnswer(_one(walk), _size(learned), budget.steps, seconds, 1)


def _optimised(flow: Flow, budget: Budget, key: Any) -> FlowAnswer:
    sde, ts = flow.config.sde(), flow.train.ts
    spread = baselines.end_spread(sde, flow.train[:16])
    guesses = jax.tree.map(lambda x: x[:2, 0], flow.train.xs)

    def walk(x: Any, args: Any) -> Any:
        how = {"spread": spread, "steps": 20, "args": args}
        found = baselines.optimise_start(sde, x, ts, guesses, **how).samples
        return jax.tree.map(lambda v: v[0], found)

    return FlowAnswer(_one(walk), most_draws=1, most_cases=5)


FLOW_METHODS = {
    "multi-step": _shipped,
    "reversed physics": _reversed,
    "ResNet": partial(_resnet, 0.0),
    "ResNet + noise": partial(_resnet, 1.0),
    "backward kernel": _kernel,
    "L-BFGS": _optimised,
}


def measure_flow(flow: Flow, answer: FlowAnswer, budget: Budget, key: Any) -> dict[str, Any]:
    """Sample the held-out end states, and judge what came."""
    k_draw, k_judge = jax.random.split(key)
    paths = flow.held_out[: answer.most_cases]
    truths, ends = (jax.tree.map(lambda x, i=i: x[:, i], paths.xs) for i in (0, -1))
    draws = min(budget.draws, answer.most_draws or budget.draws)
    started = time.perf_counter()
    found = jax.block_until_ready(answer.sampler(ends, paths.args, draws, k_draw))
    row: dict[str, Any] = {
        "updates": answer.updates,
        "parameters": answer.parameters,
        "train s": "shipped" if math.isnan(answer.train_s) else answer.train_s,
        "sample s": time.perf_counter() - started,
        "cases": paths.num_samples,
    }
    flat = jax.vmap(jax.vmap(lambda x: ravel_pytree(x)[0]))(found)
    back = jax.vmap(jax.vmap(ravel_pytree(jax.tree.map(lambda x: x[0], truths))[1]))
    used, flat, row["finite"] = kept(np.asarray(flat))
    if 2 * len(used) < paths.num_samples:
        raise FloatingPointError(f"diverged: {row['finite']:.0%} of the samples are finite")
    truths, ends, args = jax.tree.map(lambda x: x[used], (truths, ends, paths.args))
    samples = back(jnp.asarray(flat))
    return (
        row | _calibration(truths, samples, k_judge) | _pictures(flow, truths, ends, args, samples)
    )


def _calibration(truths: Any, samples: Any, key: Any) -> dict[str, Any]:
    cases, draws = jax.tree.leaves(samples)[0].shape[:2]
    # The fair score of two equal draws is the absolute error.
    two = samples if draws > 1 else jax.tree.map(lambda x: jnp.repeat(x, 2, axis=1), samples)
    scores = calibration_rows.crps(truths, np.arange(cases), two)
    row: dict[str, Any] = {
        "CRPS / prior": float(np.mean([s.value / s.reference for s in scores.values()]))
    }
    if draws < 9 or cases < calibration_rows.MIN_CASES:
        return row
    k_cover, k_ties, k_tarp = jax.random.split(key, 3)
    levels = jnp.asarray(_LEVELS)
    cover = calibration_rows.coverage(truths, samples, levels, k_cover)["coverage"]
    look = evaluate.default_observables
    ranks = calibration_rows.ranked(look, truths, samples, k_ties, k_tarp)
    p = ranks["sbc_p"]
    return row | {
        **{f"coverage {level:.0%}": float(c) for level, c in zip(_LEVELS, cover, strict=True)},
        "observables": len(p),
        "SBC p": min(1.0, float(p.min()) * len(p)),
        "SBC p below 0.05": int((p < 0.05).sum()),
        "TARP p": ranks["tarp_p"],
    }


def _pictures(flow: Flow, truths: Any, ends: Any, args: Any, samples: Any) -> dict[str, Any]:
    """Of the smoke, or of the vorticity: what is seen."""
    seen = lambda tree: tree["marker"] if isinstance(tree, dict) else tree
    forward = jax.jit(lambda *cases: jax.lax.map(lambda c: flow.end(*c), cases, batch_size=20))
    one, mean = (jax.tree.map(f, samples) for f in (lambda x: x[:, 0], lambda x: x.mean(axis=1)))
    miss = lambda x: float(jnp.mean((seen(forward(x, args)) - seen(ends)) ** 2))
    own, true = seen(one), seen(truths)
    error = lambda f, x: float(jax.jit(jax.vmap(f))(x, true).mean())
    row: dict[str, Any] = {
        "reconstruction / floor": miss(one) / miss(truths),
        "spectral error": error(evaluate.spectral_error, own),
        "spectral error published": error(evaluate.published_spectral_error, own),
        "relative L2 of the mean": error(evaluate.relative_error, seen(mean)),
        "SSIM": error(evaluate.ssim, own),
        **perceived(own, true),
    }
    if args is not None:
        system = flow.config.system()
        flows = jax.jit(
            jax.vmap(lambda x, a: (system.divergence(x, a), system.obstacle_flow(x, a)))
        )
        divergence, leak = flows(one, args)
        row |= {
            "divergence": float(jnp.sqrt(jnp.mean(divergence**2))),
            "flow into obstacles": float(leak.max()),
        }
    return row
