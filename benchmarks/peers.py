"""Methods of ``tables.py``: who answers, and at what cost."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from peer_problems import Budget, Problem

import smdp_jax as smdp
from smdp_jax import baselines, models

Sampler = Callable[[Any, int, Any], Any]
"""``sampler(ends, draws, key)`` returns starts (cases, draws, *state)."""


@dataclass
class Answer:
    """What a method gives: a sampler, and what it cost."""

    sampler: Sampler
    flow: Callable[[Any], Any] | None = None
    score: Any = None
    parameters: int = 0
    train_s: float = 0.0
    most_draws: int | None = None


def _parameters(learned: Any) -> int:
    variables = getattr(learned, "variables", {})
    return sum(x.size for x in jax.tree.leaves(variables))


def _learn(problem: Problem, objective: Any, key: Any, steps: int, **changes: Any) -> Any:
    options: dict[str, Any] = {
        "sde": problem.sde,
        "model": problem.net(),
        "data": problem.train,
        "objective": objective,
        "optimizer": problem.optimizer(steps),
        "steps": steps,
        "key": key,
        "batch_size": problem.batch,
        "ema": 0.99,
        "precondition": problem.precondition,
        "progress": False,
    }
    started = time.perf_counter()
    found = smdp.fit(**options | changes).learned
    jax.block_until_ready(found.variables)
    return found, time.perf_counter() - started


def _walk(sde: Any, learned: Any, ts: Any, solver: Any) -> Sampler:
    def sampler(ends: Any, draws: int, key: Any) -> Any:
        return smdp.sample_posterior(
            sde,
            learned,
            ends,
            ts,
            num_samples=draws,
            key=key,
            solver=solver,
            batch_axes=1,
            chunk_size=4096 if ends.size == len(ends) else 64,
        ).samples

    return sampler


def _scored(
    objective: Callable[[Problem], Any], physics_too: bool = True
) -> Callable[[Problem, Budget, Any], Answer]:
    def method(problem: Problem, budget: Budget, key: Any) -> Answer:
        sde = problem.sde if physics_too else baselines.score_only(problem.sde)
        loss = objective(problem)
        if loss is None:
            raise ValueError("no transition kernel is known here")
        learned, seconds = _learn(problem, loss, key, budget.steps, sde=sde)
        ts, solver = problem.train.ts, problem.solver if physics_too else None
        flow = lambda ends: smdp.probability_flow(
            sde, learned, ends, ts, solver=solver, batch_axes=1
        ).xs[:, 0]
        score = learned if physics_too else None
        sampler = _walk(sde, learned, ts, solver)
        return Answer(sampler, flow, score, _parameters(learned), seconds)

    return method


def _kernel(problem: Problem, budget: Budget, key: Any) -> Answer:
    data = dataclasses.replace(problem.train, score_targets=None)
    model = models.for_fields(data) if problem.ends.size > len(problem.ends) else problem.net()
    learned, seconds = _learn(
        problem, None, key, budget.steps, model=model, data=data, batch_size=None, precondition=True
    )
    return Answer(
        _walk(problem.sde, learned, data.ts, None), None, None, _parameters(learned), seconds
    )


def _regression(
    net: str, noise: float, drops: bool = False
) -> Callable[[Problem, Budget, Any], Answer]:
    def method(problem: Problem, budget: Budget, key: Any) -> Answer:
        if net not in problem.nets:
            raise ValueError(f"there is no {net} for this state")
        step, seconds = _learn(
            problem,
            baselines.Regression(training_noise=noise),
            key,
            budget.steps,
            model=problem.nets[net],
        )

        def sampler(ends: Any, draws: int, key: Any) -> Any:
            def one(x: Any, key: Any) -> Any:
                options: Any = {"num_samples": draws, "key": key} if drops else {}
                ts = problem.train.ts
                return baselines.regress(problem.sde, step, x, ts, **options).samples

            return jax.jit(jax.vmap(one))(ends, jax.random.split(key, len(ends)))

        return Answer(sampler, None, None, _parameters(step), seconds, None if drops else 1)

    return method


def _spread(problem: Problem) -> Any:
    sde, ts = problem.simulator
    xs = problem.train.xs[:, jnp.linspace(0, problem.train.num_times - 1, len(ts)).astype(int)]
    return baselines.end_spread(sde, smdp.Trajectories(ts, xs))


def _by_case(one: Callable[[Any], Any], *cases: Any) -> Any:
    """Map over cases, many small ones at once."""
    size = 250 if cases[0].size == len(cases[0]) else 5
    return jax.jit(lambda *cases: jax.lax.map(one, cases, batch_size=size))(*cases)


def _optimised(problem: Problem, budget: Budget, key: Any) -> Answer:
    (sde, ts), spread = problem.simulator, _spread(problem)
    prior = problem.train.xs[:8, 0]

    def sampler(ends: Any, draws: int, key: Any) -> Any:
        def one(case: Any) -> Any:
            (x_end,) = case
            return baselines.optimise_start(sde, x_end, ts, prior, spread=spread, steps=20).samples

        return _by_case(one, ends)

    return Answer(sampler, most_draws=1)


def _ensemble(problem: Problem, budget: Budget, key: Any) -> Answer:
    (sde, ts), spread = problem.simulator, _spread(problem)
    starts = problem.train.xs[:, 0]
    distance = problem.prior_distance
    if distance is None:  # the Gaussian with the training starts' variance
        variance = starts.var(axis=0)
        distance = lambda x, centre: jnp.sum((x - centre) ** 2 / variance) / 2

    def sampler(ends: Any, draws: int, key: Any) -> Any:
        def one(case: Any) -> Any:
            x_end, key = case
            k_draw, k_noise = jax.random.split(key)
            chosen = jax.random.randint(k_draw, (draws,), 0, len(starts))
            return baselines.randomised_maximum_likelihood(
                sde,
                x_end,
                ts,
                starts[chosen],
                spread=spread,
                prior_distance=distance,
                key=k_noise,
                steps=20,
            ).samples

        return _by_case(one, ends, jax.random.split(key, len(ends)))

    return Answer(sampler)


def _guided(problem: Problem, budget: Budget, key: Any) -> Answer:
    k_prior, k_search = jax.random.split(key)
    (sde, ts), spread = problem.simulator, _spread(problem)
    net = next(iter(problem.nets.values()))
    started = time.perf_counter()
    prior = baselines.fit_diffusion_prior(
        problem.train.xs[:, 0], net, steps=budget.steps, key=k_prior, batch_size=problem.batch
    )
    few = problem.train.xs[:8]
    scale, _ = baselines.search_scale(
        prior,
        sde,
        few[:, 0],
        few[:, -1],
        ts,
        (0.01, 0.1, 0.3, 1.0),
        num_samples=8,
        key=k_search,
        spread=spread,
    )
    seconds = time.perf_counter() - started

    def sampler(ends: Any, draws: int, key: Any) -> Any:
        def one(case: Any) -> Any:
            x_end, key = case
            return baselines.guided_posterior(
                prior,
                sde,
                x_end,
                ts,
                num_samples=draws,
                key=key,
                spread=spread,
                scale=scale,
            ).samples

        return _by_case(one, ends, jax.random.split(key, len(ends)))

    return Answer(sampler, parameters=_parameters(prior.score), train_s=seconds)


def _exact(problem: Problem, budget: Budget, key: Any) -> Answer:
    sampler = lambda ends, draws, key: problem.exact(key, ends, draws)
    return Answer(sampler, score=getattr(problem.system, "score", None))


METHODS: dict[str, Callable[[Problem, Budget, Any], Answer]] = {
    "exact posterior": _exact,
    "path score": _scored(lambda p: smdp.PathScore(p.transform)),
    "multi-step": _scored(lambda p: smdp.MultiStep((1, 2, 4), learns="score")),
    "1-step": _scored(lambda p: smdp.OneStep(learns="score")),
    "backward kernel": _kernel,
    "implicit": _scored(lambda p: smdp.ImplicitScore()),
    "sliced, VR": _scored(lambda p: smdp.SlicedScore()),
    "denoising": _scored(lambda p: p.kernel),
    "score only": _scored(lambda p: smdp.MultiStep((1, 2, 4)), physics_too=False),
    "MLP": _regression("MLP", 0.0),
    "MLP + noise": _regression("MLP", 1.0),
    "ResNet": _regression("ResNet", 0.0),
    "ResNet + noise": _regression("ResNet", 1.0),
    "Bayesian ResNet": _regression("Bayesian ResNet", 0.0, drops=True),
    "FNO": _regression("FNO", 0.0),
    "FNO + noise": _regression("FNO", 1.0),
    "L-BFGS": _optimised,
    "RML ensemble": _ensemble,
    "guided diffusion": _guided,
}
