"""Methods of ``tables.py``: who answers, and at what cost."""

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from peer_problems import Budget, Problem

import smdp_jax as smdp
from smdp_jax import baselines, models

MOST_OF_KERNELS = 3000
"""Updates that the documentation gives a kernel."""

Sampler = Callable[[Any, int, Any], Any]
"""``sampler(ends, draws, key)`` returns starts (cases, draws, *state)."""


@dataclass
class Answer:
    """What a method gives: a sampler, and what it cost.

    ``every``: it is quick enough for all cases of a problem.
    """

    sampler: Sampler
    flow: Callable[[Any], Any] | None = None
    score: Any = None
    parameters: int = 0
    updates: int = 0
    train_s: float = 0.0
    most_draws: int | None = None
    every: bool = False


Method = Callable[[Problem, Budget, Any], Answer]


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
        "ema": problem.ema,
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


def _score(problem: Problem, score: Any, steps: int, seconds: float, every: bool) -> Answer:
    """Walk a score back on the problem's steps, with noise and without."""
    sde, ts, solver = problem.sde, problem.train.ts[:: problem.stride], problem.solver
    if solver is None:
        ts = problem.train.ts
    sampler = _walk(sde, score, ts, solver)
    flow = lambda ends: smdp.probability_flow(sde, score, ends, ts, solver=solver, batch_axes=1).xs[
        :, 0
    ]
    return Answer(sampler, flow, score, _parameters(score), steps, seconds, every=every)


def _scored(objective: Callable[[Problem], Any]) -> Method:
    def method(problem: Problem, budget: Budget, key: Any) -> Answer:
        loss = objective(problem)
        if loss is None:
            raise ValueError("no transition kernel is known here")
        learned, seconds = _learn(problem, loss, key, budget.steps)
        return _score(problem, learned, budget.steps, seconds, every=False)

    return method


def _path_score(problem: Problem, budget: Budget, key: Any) -> Answer:
    """Weights that come with the package where there are some: those of the preset small."""
    if problem.shipped is None:
        return _scored(lambda p: smdp.PathScore(p.transform))(problem, budget, key)
    score = smdp.pretrained(problem.shipped).score
    if problem.conditioned is not None:
        sampler = problem.conditioned(score)
        return Answer(sampler, parameters=_parameters(score), train_s=math.nan)
    return _score(problem, score, 0, math.nan, every=True)


def _windows(one: bool = False) -> Method:
    """The paper's losses: of a drift they learn a score, of a flow map a correction."""

    def method(problem: Problem, budget: Budget, key: Any) -> Answer:
        windows = (1,) if one else problem.windows
        if problem.stepped is None:
            loss = lambda p: smdp.MultiStep(windows, learns="score")
            steps = problem.window_steps or budget.steps
            return _scored(loss)(problem, dataclasses.replace(budget, steps=steps), key)
        sde, net = problem.stepped
        learned, seconds = _learn(
            problem, smdp.MultiStep(windows), key, budget.steps, sde=sde, model=net
        )
        sampler = _walk(sde, learned, problem.train.ts, None)
        return Answer(sampler, None, None, _parameters(learned), budget.steps, seconds)

    return method


def _score_only(problem: Problem, budget: Budget, key: Any) -> Answer:
    sde = baselines.score_only(problem.sde)
    loss = smdp.MultiStep(problem.windows)
    learned, seconds = _learn(problem, loss, key, budget.steps, sde=sde)
    ts = problem.train.ts
    flow = lambda ends: smdp.probability_flow(sde, learned, ends, ts, batch_axes=1).xs[:, 0]
    sampler = _walk(sde, learned, ts, None)
    return Answer(sampler, flow, None, _parameters(learned), budget.steps, seconds)


def _kernel(problem: Problem, budget: Budget, key: Any) -> Answer:
    """What the library does where nothing is named."""
    data = dataclasses.replace(
        problem.train,
        ts=problem.train.ts[:: problem.stride],
        xs=problem.train.xs[:, :: problem.stride],
        score_targets=None,
    )
    steps = min(budget.steps, MOST_OF_KERNELS)
    started = time.perf_counter()
    learned = smdp.fit(
        problem.sde, models.for_fields(data), data, steps=steps, key=key, progress=False
    ).kernel
    seconds = time.perf_counter() - started
    sampler = _walk(problem.sde, learned, data.ts, None)
    return Answer(sampler, None, None, _parameters(learned), steps, seconds, every=True)


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

        most = None if drops else 1
        return Answer(sampler, None, None, _parameters(step), budget.steps, seconds, most)

    return method


def _spread(problem: Problem) -> Any:
    if problem.spread is not None:
        return problem.spread
    sde, ts = problem.simulator
    xs = problem.train.xs[:, jnp.linspace(0, problem.train.num_times - 1, len(ts)).astype(int)]
    return baselines.end_spread(sde, smdp.Trajectories(ts, xs))


def _by_case(one: Callable[[Any, Any], Any], shared: Any, *cases: Any) -> Any:
    """Map over cases, many small ones at once; what they share is no constant of the program."""
    size = 250 if cases[0].size == len(cases[0]) else 5

    @jax.jit
    def every(shared: Any, *cases: Any) -> Any:
        return jax.lax.map(lambda case: one(shared, case), cases, batch_size=size)

    return every(shared, *cases)


def _optimised(problem: Problem, budget: Budget, key: Any) -> Answer:
    (sde, ts), shared = problem.simulator, (_spread(problem), problem.train.xs[:8, 0])

    def one(shared: Any, case: Any) -> Any:
        spread, prior = shared
        return baselines.optimise_start(sde, case[0], ts, prior, spread=spread, steps=20).samples

    return Answer(lambda ends, draws, key: _by_case(one, shared, ends), most_draws=1)


def _ensemble(problem: Problem, budget: Budget, key: Any) -> Answer:
    sde, ts = problem.simulator
    starts = problem.train.xs[:, 0]
    shared = _spread(problem), starts, jnp.maximum(starts.var(axis=0), 1e-6)

    def sampler(ends: Any, draws: int, key: Any) -> Any:
        def one(shared: Any, case: Any) -> Any:
            (spread, starts, variance), (x_end, key) = shared, case
            k_draw, k_noise = jax.random.split(key)
            chosen = jax.random.randint(k_draw, (draws,), 0, len(starts))
            # Where nothing better is known, the Gaussian with the training starts' variance.
            own = lambda x, centre: jnp.sum((x - centre) ** 2 / variance) / 2
            return baselines.randomised_maximum_likelihood(
                sde,
                x_end,
                ts,
                starts[chosen],
                spread=spread,
                prior_distance=problem.prior_distance or own,
                key=k_noise,
                steps=20,
            ).samples

        return _by_case(one, shared, ends, jax.random.split(key, len(ends)))

    return Answer(sampler, most_draws=4 if problem.forward is None else None)


def _guided(problem: Problem, budget: Budget, key: Any) -> Answer:
    k_prior, k_search = jax.random.split(key)
    (sde, ts), spread = problem.simulator, _spread(problem)
    net = problem.nets.get("diffusion") or next(iter(problem.nets.values()))
    started = time.perf_counter()
    prior = baselines.fit_diffusion_prior(
        problem.train.xs[:, 0],
        net,
        steps=budget.steps,
        key=k_prior,
        batch_size=problem.batch,
        levels=32,
    )
    starts, ends = problem.train.xs[:8, 0], problem.seen(problem.train.xs[:8, -1])
    # What is seen of a field weighs so much that nothing else is stable.
    field = starts[0].size > 1
    scales = (3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1) if field else (0.01, 0.1, 0.3, 1.0)
    how = {"spread": spread, "normalised": field}
    search = partial(baselines.search_scale, num_samples=8, key=k_search, **how)
    scale, _ = search(prior, sde, starts, ends, ts, scales)
    seconds = time.perf_counter() - started

    def one(shared: Any, case: Any) -> Any:
        x_end, key = case
        own = {"num_samples": budget.draws, "key": key, "scale": scale}
        return baselines.guided_posterior(prior, sde, x_end, ts, **own, **how).samples

    def sampler(ends: Any, draws: int, key: Any) -> Any:
        keys = jax.random.split(key, len(ends))
        return _by_case(one, (), ends, keys)

    return Answer(
        sampler, parameters=_parameters(prior.score), updates=budget.steps, train_s=seconds
    )


def _exact(problem: Problem, budget: Budget, key: Any) -> Answer:
    sampler = lambda ends, draws, key: problem.exact(key, ends, draws)
    return Answer(sampler, score=getattr(problem.system, "score", None), every=True)


METHODS: dict[str, Method] = {
    "exact posterior": _exact,
    "backward kernel": _kernel,
    "path score": _path_score,
    "multi-step": _windows(),
    "1-step": _windows(one=True),
    "implicit": _scored(lambda p: smdp.ImplicitScore()),
    "sliced, VR": _scored(lambda p: smdp.SlicedScore()),
    "denoising": _scored(lambda p: p.kernel),
    "score only": _score_only,
    "MLP": _regression("MLP", 0.0),
    "MLP + noise": _regression("MLP", 1.0),
    "ResNet": _regression("ResNet", 0.0),
    "ResNet + noise": _regression("ResNet", 1.0),
    "Bayesian ResNet": _regression("Bayesian ResNet", 0.0, drops=True),
    "Bayesian ResNet + noise": _regression("Bayesian ResNet", 1.0, drops=True),
    "FNO": _regression("FNO", 0.0),
    "FNO + noise": _regression("FNO", 1.0),
    "L-BFGS": _optimised,
    "RML ensemble": _ensemble,
    "guided diffusion": _guided,
}
