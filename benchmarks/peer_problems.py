"""Problems of ``tables.py``: paths to learn from, held-out pairs, and exact posteriors."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import smdp_jax as smdp
from smdp_jax import baselines, evaluate, models, physics
from smdp_jax.physics.spectral.periodic import waves
from smdp_jax.studies import noise_free

sys.path.insert(0, str(Path(__file__).parent.parent))
from configs import affine, burgers, heat, quadratic


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
    """Paths to learn from, held-out pairs, and what is known exactly.

    ``told(ends, samples)`` is what a classifier is shown, ``forward`` takes a start to its end
    without noise, and starts are empty beyond ``kmax``. Scores are walked back by ``solver`` on
    every ``stride``-th time, kernels learn on these. ``stepped`` is the process of the paper's
    windows and its network, where these learn a correction of the flow map; ``shipped`` names
    weights of the path score that come with the package. Methods that take long answer ``few``
    cases. ``window_steps`` are updates on windows, where these need more.
    Where part of the end is seen, ``seen(ends)`` hides the rest, ``conditioned(score)`` samples
    given it, and ``spread`` is that of what is seen.
    """

    sde: smdp.SDE
    train: smdp.Trajectories
    truths: Any
    ends: Any
    net: Callable[[], Any]
    observe: Callable[[Any], Mapping[str, Any]]
    exact: Callable[[Any, Any, int], Any]
    system: Any
    simulator: tuple[smdp.SDE, Any]
    told: Callable[[Any, Any], Any]
    forward: Callable[[Any], Any] | None = None
    kmax: int | None = None
    kernel: Any = None
    solver: Any = None
    stride: int = 1
    stepped: tuple[smdp.SDE, Any] | None = None
    shipped: str | None = None
    seen: Callable[[Any], Any] = lambda ends: ends
    conditioned: Any = None
    spread: Any = None
    few: int | None = None
    windows: tuple[int, ...] = (1, 2, 4)
    window_steps: int | None = None
    optimizer: Callable[[int], Any] = lambda steps: _adam(2e-3, steps)
    ema: float = 0.99
    batch: int = 256
    prior_distance: Any = None
    transform: Any = None
    precondition: bool = True
    nets: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_CONFIGS = {"affine": affine, "quadratic": quadratic, "heat": heat, "burgers": burgers}
_REFERENCE = Path(__file__).parent / "references" / "burgers.npz"
QUADRATIC = {"quadratic": 2500, "quadratic-10": 250, "quadratic-1": 25}
"""Paths of the published table: 100, 10 and 1 %."""


def _adam(rate: float, steps: int, **options: Any) -> Any:
    falls = optax.adam(optax.cosine_decay_schedule(rate, steps), **options)
    return optax.flatten(optax.chain(optax.clip_by_global_norm(1.0), falls))


@functools.cache
def _law(system: Any, end_time: float) -> Any:
    """Exact answers of the quadratic process, solved once."""
    return physics.reference(system, end_time=end_time)


def problem_of(name: str, preset: str, seed: int, budget: Budget) -> Problem:
    """Simulate an experiment's paths and held-out pairs."""
    config: Any = _CONFIGS[name.split("-", maxsplit=1)[0]].PRESETS[preset]
    config = dataclasses.replace(config, seed=seed, objective="path_score")
    if name in QUADRATIC:
        config = dataclasses.replace(config, trajectories=QUADRATIC[name])
    k_train, k_test = jax.random.split(jax.random.key(seed))
    train, system = config.paths(k_train, config.trajectories), config.system()
    if name == "burgers":
        if preset != "small":
            raise ValueError(f"the reference of burgers is of the preset small, got {preset}")
        return _burgers(config, train, budget)
    test = config.paths(k_test, budget.cases)
    pairs = {"truths": test.xs[:, 0], "ends": test.xs[:, -1]}
    if name == "heat":
        return _heat(config, train, pairs, preset)
    law = system if name == "affine" else _law(system, config.end_time)

    plus_of = jax.jit(jax.vmap(law.posterior_plus, (None, 0)))

    def exact(key: Any, ends: Any, draws: int) -> Any:
        plus = plus_of(train.ts[-1], ends)
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
        told=lambda ends, samples: jnp.concatenate(
            [jnp.where(samples[:, 0] > 0, 1.0, -1.0), ends], axis=1
        ),
        kernel=kernel,
        # On all times a step of theirs has too little to learn.
        stride=10,
        windows=(1, 2, 4, 10),
        window_steps=None if name == "affine" else 40_000,
        optimizer=lambda steps: _adam(1e-2, steps, b2=0.99),
        ema=0.999,
        nets={"MLP": models.MLP()},
    )


def _heat(config: Any, train: Any, pairs: Any, preset: str) -> Problem:
    system = config.system()
    modes = (jnp.fft.fft2, lambda x: jnp.fft.ifft2(x).real)
    mean = lambda t, x0, args: system.step(0.0, t, x0)
    variance = jnp.maximum(system.prior_variance(), 1e-6)

    def distance(x: Any, centre: Any) -> Any:
        power = jnp.abs(jnp.fft.fft2(x - centre, norm="ortho")) ** 2
        return jnp.sum(power / variance) / 2

    def low_modes(ends: Any, samples: Any) -> Any:
        mean = jax.vmap(system.posterior_mean)(ends)
        centred = jnp.fft.rfft2(samples[:, 0] - mean, norm="ortho")
        rows, columns = jnp.array([(0, 1), (1, 0), (1, 1), (-1, 1), (0, 2), (2, 0)]).T
        chosen = centred[:, rows, columns]
        return jnp.concatenate([chosen.real, chosen.imag], axis=1)

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
        told=low_modes,
        forward=lambda x: system.step(0.0, system.end_time, x),
        kernel=smdp.DenoisingScore.gaussian(mean, system.noise_variance, modes=modes),
        # Exact for what is Gaussian, in few steps.
        solver=smdp.GaussianStep(),
        stride=8,
        stepped=(system.sde(), dataclasses.replace(config, objective="multi_step").model(train)),
        shipped="heat" if preset == "small" else None,
        few=60,
        batch=config.batch_size,
        prior_distance=distance,
        transform=jnp.fft.rfft2,
        precondition=False,
        nets={
            "diffusion": models.UNet(config.channels),
            "ResNet": models.DilatedResNet(channels=24, blocks=2),
            "Bayesian ResNet": baselines.DropoutResNet(channels=24, blocks=2),
            "FNO": models.FNO(modes=8, width=12, layers=3, projection=32),
        },
    )


def _burgers(config: Any, train: Any, budget: Budget) -> Problem:
    """The held-out pairs are those of the stored reference, which no training seed draws."""
    system, (sde, ts) = config.system(), (config.system().sde(), train.ts[::8])
    with np.load(_REFERENCE) as stored:
        truths, ends, draws = (stored[name][: budget.cases] for name in ("truths", "ends", "draws"))
    basis = np.asarray(waves(system.size, system.modes), np.float32)
    means = draws.mean(axis=1)

    def case_of(some: Any) -> Any:
        return np.abs(ends[None] - np.asarray(some)[:, None]).sum(axis=2).argmin(axis=1)

    def exact(key: Any, some: Any, number: int) -> Any:
        rows = jax.random.randint(key, (len(some), number), 0, draws.shape[1])
        return jnp.asarray(draws[case_of(some)[:, None], np.asarray(rows)] @ basis)

    def coefficients(some: Any, samples: Any) -> Any:
        few = samples[:, :10]
        found = jax.vmap(jax.vmap(system.leading_modes))(few) - means[case_of(some)][:, None]
        return found.reshape(-1, found.shape[-1])

    power = jnp.mean(jnp.abs(jnp.fft.rfft(train.xs[:, 0], norm="ortho")) ** 2, axis=0)
    variance = jnp.maximum(power, 1e-4 * power.max())

    def distance(x: Any, centre: Any) -> Any:
        return jnp.sum(jnp.abs(jnp.fft.rfft(x - centre, norm="ortho")) ** 2 / variance)

    def observe(x: Any) -> dict[str, Any]:
        return {f"mode {i}": c for i, c in enumerate(system.leading_modes(x))}

    return Problem(
        config.sde(),
        train,
        truths=jnp.asarray(truths @ basis),
        ends=jnp.asarray(ends),
        net=lambda: config.model(train),
        observe=observe,
        exact=exact,
        system=system,
        simulator=(sde, ts),
        told=coefficients,
        forward=lambda x: noise_free.walk(system.step, x, ts),
        kmax=system.modes,
        # Exact for what is Gaussian: 32 steps in place of Euler's 256.
        solver=smdp.GaussianStep(),
        stride=8,
        shipped="burgers",
        few=60,
        batch=config.batch_size,
        prior_distance=distance,
        transform=jnp.fft.rfft,
        precondition=False,
        nets={
            "ResNet": models.DilatedResNet(dims=1, channels=32, blocks=2),
            "Bayesian ResNet": baselines.DropoutResNet(dims=1, channels=32, blocks=2),
            "FNO": models.FNO(dims=1, modes=16, width=24, layers=3, projection=32),
        },
    )
