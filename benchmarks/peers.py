"""Problems and methods of ``tables.py``: what is asked, and who answers."""

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax

import smdp_jax as smdp
from smdp_jax import baselines, evaluate, models, physics

sys.path.insert(0, str(Path(__file__).parent.parent))
from configs import affine, heat, quadratic

Sampler = Callable[[Any, int, Any], Any]
"""``sampler(ends, draws, key)`` returns starts (cases, draws, *state)."""


@dataclass(frozen=True)
class Budget:
    """What every learned method may spend.

    Parameters
    ----------
    steps : int
        Updates of a network.
    cases : int
        Held-out end states.
    draws : int
        Samples for each of them.
    """

    steps: int
    cases: int
    draws: int


@dataclass(frozen=True)
class Problem:
    """Paths to learn from, held-out pairs, and what is known exactly."""

    sde: smdp.SDE
    train: smdp.Trajectories
    truths: Any
    ends: Any
    net: Callable[[], Any]
    observe: Callable[[Any], Mapping[str, Any]]
    exact: Callable[[Any, Any, int], Any]
    system: Any
    simulator: tuple[smdp.SDE, Any]
    kernel: Any = None
    solver: Any = None
    optimizer: Callable[[int], Any] = lambda steps: optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    )
    batch: int = 256
    prior_distance: Any = None
    transform: Any = None
    precondition: bool = True
    nets: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass
class Answer:
    """What a method gives: a sampler, and what it cost."""

    sampler: Sampler
    flow: Callable[[Any], Any] | None = None
    score: Any = None
    parameters: int = 0
    train_s: float = 0.0
    most_draws: int | None = None


def problem_of(name: str, preset: str, seed: int, budget: Budget) -> Problem:
    """Simulate an experiment's paths and held-out pairs."""
    config: Any = {"affine": affine, "quadratic": quadratic, "heat": heat}[name].PRESETS[preset]
    config = dataclasses.replace(config, seed=seed, objective="path_score")
    k_train, k_test = jax.random.split(jax.random.key(seed))
    train, system = config.paths(k_train, config.trajectories), config.system()
    test = config.paths(k_test, budget.cases)
    pairs = {"truths": test.xs[:, 0], "ends": test.xs[:, -1]}
    if name == "heat":
        return _heat(config, train, pairs)
    law = system if name == "affine" else physics.reference(system, end_time=config.end_time)

    def exact(key: Any, ends: Any, draws: int) -> Any:
        plus = jax.vmap(law.posterior_plus, (None, 0))(train.ts[-1], ends)
        coins = jax.random.bernoulli(key, plus[:, None], (len(ends), draws))
        return jnp.where(coins, 1.0, -1.0)[..., None]

    kernel = None
    if name == "affine":
        mean = lambda t, x0, args: system.transition_mean(t, x0)
        kernel = smdp.DenoisingScore.gaussian(mean, system.transition_variance)
    return Problem(
        config.sde(),
        train,
        **pairs,
        net=models.MLP,
        # Where a start is one of two points only its side is a question.
        observe=lambda x: {"side": jnp.sign(x[0])},
        exact=exact,
        system=law,
        # Without noise a tenth of the steps will do.
        simulator=(config.sde(), train.ts[::10]),
        kernel=kernel,
        optimizer=lambda steps: optax.adam(optax.cosine_decay_schedule(1e-2, steps), b2=0.99),
        nets={"MLP": models.MLP()},
    )


def _heat(config: Any, train: Any, pairs: Any) -> Problem:
    system = config.system()
    modes = (jnp.fft.fft2, lambda x: jnp.fft.ifft2(x).real)
    mean = lambda t, x0, args: system.step(0.0, t, x0)
    variance = jnp.maximum(system.prior_variance(), 1e-6)

    def distance(x: Any, centre: Any) -> Any:
        power = jnp.abs(jnp.fft.fft2(x - centre, norm="ortho")) ** 2
        return jnp.sum(power / variance) / 2

    return Problem(
        config.sde(),
        train,
        **pairs,
        net=lambda: config.model(train),
        observe=evaluate.default_observables,
        exact=lambda key, ends, draws: jax.vmap(system.posterior_sample, (0, 0, None))(
            jax.random.split(key, len(ends)), ends, draws
        ),
        system=system,
        simulator=(system.sde(), train.ts[jnp.array([0, -1])]),
        kernel=smdp.DenoisingScore.gaussian(mean, system.noise_variance, modes=modes),
        solver=diffrax.Heun(),
        batch=config.batch_size,
        prior_distance=distance,
        transform=jnp.fft.rfft2,
        precondition=False,
        nets={
            "ResNet": models.DilatedResNet(channels=24, blocks=2),
            "Bayesian ResNet": baselines.DropoutResNet(channels=24, blocks=2),
            "FNO": models.FNO(modes=8, width=12, layers=3, projection=32),
        },
    )


# Methods -----------------------------------------------------------------------------------------


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
    return Answer(sampler, score=problem.system.score)


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


# Metrics -----------------------------------------------------------------------------------------


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
            _told(problem, ends, samples), _told(problem, ends, exact), key=k_told, permutations=99
        )
        row |= {"C2ST": float(told.accuracy), "C2ST null": float(told.null_high)}
    if problem.ends.size == len(problem.ends):
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


def _told(problem: Problem, ends: Any, samples: Any) -> Any:
    """What the classifier is shown, one draw of each case: start and end, or low modes of both."""
    if ends.size == len(ends):
        side = jnp.where(samples[:, 0] > 0, 1.0, -1.0)
        return jnp.concatenate([side, ends], axis=1)
    mean = jax.vmap(problem.system.posterior_mean)(ends)
    modes = jnp.fft.rfft2(samples[:, 0] - mean, norm="ortho").reshape(len(ends), -1)
    chosen = [(0, 1), (1, 0), (1, 1), (-1, 1), (0, 2), (2, 0)]
    half = problem.ends.shape[-1] // 2 + 1
    rows = jnp.array([(i % problem.ends.shape[-2]) * half + j for i, j in chosen])
    return jnp.concatenate([modes[:, rows].real, modes[:, rows].imag], axis=1)


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
    forward = jax.jit(jax.vmap(lambda x: problem.system.step(0.0, problem.system.end_time, x)))
    found = {"sample": samples[:, 0]}
    if answer.flow is not None:
        flow = np.asarray(answer.flow(ends))
        found["ODE"] = flow if np.isfinite(flow).all() else np.full_like(flow, math.nan)
    row = {}
    for name, fields in found.items():
        row[f"reconstruction MSE, {name}"] = float(
            evaluate.reconstruction_mse(forward(fields), forward(truths))
        )
        for kind, error in (
            ("", evaluate.spectral_error),
            (" published", evaluate.published_spectral_error),
        ):
            value = jax.jit(jax.vmap(error))(fields, truths).mean()
            row[f"spectral error{kind}, {name}"] = float(value)
    relative = jax.jit(jax.vmap(evaluate.relative_error))(samples.mean(axis=1), truths)
    similar = jax.jit(jax.vmap(evaluate.ssim))(samples[:, 0], truths)
    return row | {"relative L2 of the mean": float(relative.mean()), "SSIM": float(similar.mean())}
