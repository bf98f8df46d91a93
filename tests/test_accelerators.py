"""What runs on a GPU or a TPU, as far as it shows without one: programs are lowered, not run.

Networks may live with products that round their factors there; exact scores and solvers must not,
and neither must simulators (see ``physics/test_conformance.py``).
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import pytest

import smdp_jax as smdp
from smdp_jax import physics
from smdp_jax.experiment import load_config_file
from smdp_jax.training import epochs
from tests.lowering import PLATFORMS, lowered, rounding_products

pytestmark = pytest.mark.usefixtures("compiles_quickly")

CONFIGS = Path(__file__).parents[1] / "configs"
LIGHT: dict[str, dict[str, Any]] = {  # few paths on a coarse grid, one update for each window
    "affine": {"time_steps": 6, "steps": 1},
    "quadratic": {"time_steps": 12, "steps": 4},
    "heat": {"size": 8, "time_steps": 4, "steps": 1, "test_cases": 2},
    "burgers": {"size": 16, "time_steps": 32, "steps": 1, "window_steps": 3, "test_cases": 2},
    "smoke": {"size": 16, "steps": 12, "test_cases": 1, "chunk": 7},
    "turbulence": {"size": 12, "simulated_size": 24, "viscosity": 1e-3, "end_time": 0.6}
    | {"reconstructed_time": 0.3, "modes": 4, "substeps": 2, "test_cases": 2, "chunk": 10}
    | {"inverse_steps": 1, "steps": 6},
}
LONGEST = {
    "affine": [0],
    "quadratic": [10],
    "heat": [0],
    "burgers": [0, 16],
    "smoke": [30],
    "turbulence": [1, 10],
}
# Objectives and kinds of process that the other presets have, too.
ALIKE = dict.fromkeys(("affine", "quadratic", "heat"), pytest.mark.slow)

on_accelerators = pytest.mark.parametrize("platform", PLATFORMS)


@on_accelerators
def test_a_rounding_product_is_seen(platform: str) -> None:
    def square(a: Any, precision: str) -> Any:
        return jnp.matmul(a, a, precision=precision)

    for precision, number in (("default", 1), ("high", 1), ("highest", 0)):
        program = lowered(lambda a, p=precision: square(a, p), jnp.ones((3, 3)), platform=platform)
        assert len(rounding_products(program)) == number


@on_accelerators
def test_exact_scores_do_not_round(platform: str) -> None:
    quadratic = physics.reference(physics.Quadratic(), end_time=1.0, cells=100, steps=100)
    for score, x in (
        (physics.Affine().score, jnp.ones((1,))),
        (physics.Heat(size=8).score, jnp.ones((8, 8))),
        (quadratic.score, jnp.ones((1,))),
    ):
        assert not rounding_products(lowered(score, jnp.float32(0.2), x, None, platform=platform))


@on_accelerators
@pytest.mark.parametrize("solver", [None, diffrax.Heun(), diffrax.Tsit5()])
def test_solvers_do_not_round(solver: Any, platform: str) -> None:
    system, ts, key = physics.Affine(), smdp.linear_grid(0.0, 1.0, 4), jax.random.key(0)

    def everything(x: Any) -> Any:
        paths = smdp.simulate(system.sde(), x[None], ts, key=key, score_targets=True)
        path = smdp.probability_flow(system.sde(), system.score, x, ts, solver=solver)
        past = smdp.sample_posterior(
            system.sde(), system.score, x, ts, num_samples=2, key=key, solver=solver
        )
        return paths, path, past

    assert not rounding_products(lowered(everything, jnp.ones((1,)), platform=platform))


# Lowering puts descriptions of arrays where arrays belong.
@pytest.mark.slow
@pytest.mark.usefixtures("untyped", "no_step_miss")
@pytest.mark.filterwarnings("ignore:fit. SDE.inverse of the step misses")  # of coarse grids
@pytest.mark.parametrize("name", [pytest.param(n, marks=ALIKE.get(n, ())) for n in LIGHT])
def test_paper_presets_train(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest windows of every phase of their training become programs for all platforms."""
    preset = load_config_file(CONFIGS / f"{name}.py").presets["paper"]
    config: Any = dataclasses.replace(preset, trajectories=8, **LIGHT[name])
    longest: list[int] = []

    class Lowering(epochs.Epochs):
        def __call__(self, size: int, state: Any, *inputs: Any) -> Any:
            problem, stop = self._problem, jnp.asarray(inputs[-1], jnp.int32)
            if size == max(problem.objective.windows):
                epoch: Any = jax.jit(functools.partial(problem.epoch, steps=size))
                traced = epoch.trace(state, *inputs[:-1], stop)
                assert traced.lower(lowering_platforms=PLATFORMS).as_text()
                longest.append(size)
            return dataclasses.replace(state, step=stop), jnp.zeros(()), jnp.zeros(())

    monkeypatch.setattr(epochs, "Epochs", Lowering)
    config.fit(config.simulate(jax.random.key(0)), jax.random.key(1), progress=False)
    assert longest == LONGEST[name]
