from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp

SDE = smdp.SDE(lambda t, x, args: jax.tree.map(lambda leaf: -args["rate"] * leaf, x), diffusion=0.5)
TS = smdp.linear_grid(0.0, 1.0, 4)


@pytest.fixture(scope="session")
def generate() -> Callable[[Any], smdp.Trajectories]:
    """Simulates three paths of a staggered state, each with its rate, a scalar condition."""

    @jax.jit
    def paths(key: Any) -> smdp.Trajectories:
        k_start, k_path, k_rate = jax.random.split(key, 3)
        k_marker, k_velocity = jax.random.split(k_start)
        x0 = {
            "marker": jax.random.normal(k_marker, (3, 4, 5)),
            "velocity": jax.random.normal(k_velocity, (3, 5, 5)),
        }
        args = {"rate": jax.random.uniform(k_rate, (3,))}
        return smdp.simulate(
            SDE, x0, TS, key=k_path, args=args, args_axes=0, score_targets=smdp.PowerRamp(1.0)
        )

    return paths


def assert_same(a: smdp.Trajectories, b: smdp.Trajectories) -> None:
    """Equal trees and bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert p.dtype == q.dtype
        np.testing.assert_array_equal(p, q)


@pytest.fixture(scope="session")
def same() -> Callable[..., None]:
    """Asserts that two sets of trajectories have equal trees and bits."""
    return assert_same


@pytest.fixture(scope="session")
def in_memory(generate: Any) -> Callable[..., smdp.Trajectories]:
    """The chunks of a dataset, simulated and joined without a disk."""

    def joined(key: Any, chunks: Any) -> smdp.Trajectories:
        parts = [generate(jax.random.fold_in(key, i)) for i in chunks]
        first = parts[0]

        def join(name: str) -> Any:
            return jax.tree.map(
                lambda *leaves: jnp.concatenate(leaves), *[getattr(p, name) for p in parts]
            )

        return smdp.Trajectories(first.ts, join("xs"), join("args"), join("score_targets"), 0)

    return joined
