"""The heat equation behind a mask, for ``tables.py`` and the data set."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from peer_problems import Budget, Problem, problem_of

import smdp_jax as smdp
from smdp_jax.physics.exact.sensors import sensor_posterior

_EVERY, _NOISE, _PARTICLES = 4, 0.05, 64


def behind_mask(problem: Problem, seed: int) -> Problem:
    """The heat equation's end states at every fourth point, with noise; 0 elsewhere.

    The posterior is one dense Gaussian, computed in float64: its mean is linear in what is seen,
    and its covariance does not depend on that.
    """
    system, rng = problem.system, np.random.default_rng(seed)
    size, ends = problem.truths.shape[-1], np.asarray(problem.ends)
    seen = np.zeros((size, size), bool)
    seen[::_EVERY, ::_EVERY] = True
    std = _NOISE * float(ends.std())
    noisy = np.where(seen, ends + std * rng.standard_normal(ends.shape), 0).astype(np.float32)
    looks = np.eye(size**2)[seen.ravel()]
    given = lambda v: sensor_posterior(system, [looks], [system.end_time], [v], std**2)[:2]
    covariance = given(np.zeros(len(looks)))[1]
    gain = np.stack([given(unit)[0] for unit in np.eye(len(looks))], axis=1)
    gain = jnp.asarray(gain @ looks, jnp.float32)
    sizes, axes = np.linalg.eigh(covariance)
    root = jnp.asarray(axes * np.sqrt(np.maximum(sizes, 0)), jnp.float32)

    def mean_of(some: Any) -> Any:
        return (some.reshape(len(some), -1) @ gain.T).reshape(some.shape)

    def exact(key: Any, some: Any, draws: int) -> Any:
        white = jax.random.normal(key, (len(some), draws, size**2))
        return jnp.asarray(mean_of(some))[:, None] + (white @ root.T).reshape(-1, draws, size, size)

    def told(some: Any, samples: Any) -> Any:
        modes = jnp.fft.rfft2(samples[:, 0] - mean_of(some), norm="ortho")
        chosen = modes[:, jnp.array([0, 1, 1, -1, 0, 2]), jnp.array([1, 0, 1, 1, 2, 0])]
        return jnp.concatenate([chosen.real, chosen.imag], axis=1)

    def step(t0: Any, t1: Any, x: Any, args: Any) -> Any:
        return jnp.where(seen, system.step(t0, t1, x), 0)

    ts = problem.simulator[1]
    noise = float(jnp.mean(system.noise_variance(system.end_time)))
    return dataclasses.replace(
        problem,
        ends=jnp.asarray(noisy),
        exact=exact,
        told=told,
        seen=lambda whole: jnp.where(seen, whole, 0),
        conditioned=partial(_conditioned, problem, std),
        simulator=(smdp.SDE(step=step, diffusion=problem.sde.diffusion), ts),
        spread=(noise + std**2) ** 0.5,
    )


def _conditioned(problem: Problem, std: float, score: Any) -> Any:
    """Sampler by ``condition`` on what is seen, with this score."""
    coarse = slice(None, None, problem.stride)
    ts, xs = (np.asarray(x) for x in (problem.train.ts, problem.train.xs))
    data = smdp.Trajectories(ts[coarse], xs[:, coarse])

    def one(x: Any, key: Any) -> Any:
        sensors = np.s_[::_EVERY, ::_EVERY]
        look = smdp.LinearObservation(float(data.ts[-1]), sensors, x[sensors], covariance=std**2)
        how = {"data": data, "num_particles": _PARTICLES, "key": key}
        solver = smdp.GaussianStep(1)
        return smdp.condition(problem.sde, score, [look], data.ts, solver=solver, **how).samples

    def sampler(some: Any, draws: int, key: Any) -> Any:
        keys = jax.random.split(key, len(some))
        return jax.lax.map(lambda case: one(*case), (jnp.asarray(some), keys))[:, :draws]

    return sampler


def masked_of(name: str, preset: str, seed: int, budget: Budget) -> Problem:
    """Simulate the heat equation's paths and pairs, and hide most of the ends."""
    return behind_mask(problem_of("heat", preset, seed, budget), seed)
