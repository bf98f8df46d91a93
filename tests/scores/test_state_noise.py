"""Noise that depends on the state: a product of rank-one factors, against dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from smdp_jax.scores.state_noise import StateNoise, bounded_noise

X = {"a": jnp.array([1.0, -0.5, 2.0]), "b": jnp.array([[0.3], [0.7]])}


def like(key, size=1.0):
    keys = jax.random.split(key, len(X))
    return {k: size * jax.random.normal(n, X[k].shape) for k, n in zip(X, keys, strict=True)}


def dense(noise):
    restore = ravel_pytree(X)[1]
    column = lambda unit: ravel_pytree(noise.times(restore(unit)))[0]
    return np.asarray(jax.vmap(column)(jnp.eye(5)), float).T


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_inverse_and_determinant_are_those_of_the_matrix(rank):
    keys = jax.random.split(jax.random.key(rank), 1 + rank)
    noise = StateNoise(like(keys[0], 0.5), tuple(like(k) for k in keys[1:]))
    matrix, x = dense(noise), ravel_pytree(X)[0]
    want = np.diag(np.exp(ravel_pytree(noise.logs)[0]))
    for w in noise.directions:
        flat = np.asarray(ravel_pytree(w)[0], float)
        want = want @ (np.eye(5) + np.outer(flat, flat))
    np.testing.assert_allclose(matrix, want, rtol=1e-5, atol=1e-6)
    found = ravel_pytree(noise.over(X))[0]
    np.testing.assert_allclose(found, np.linalg.solve(matrix, x), rtol=1e-4, atol=1e-5)
    logs = np.linalg.slogdet(matrix)[1]
    assert float(noise.log_determinant()) == pytest.approx(logs, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("level", [-30.0, 0.0, 1.9, 30.0])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_noise_never_runs_off_in_any_direction(level, rank):
    """Whatever the network says: levels alike, or one entry far above the others."""
    for key in jax.random.split(jax.random.key(rank), 5):
        k_far, k_logs = jax.random.split(key)
        far = tuple(like(k, 1e3) for k in jax.random.split(k_far, rank))
        uneven = jax.tree.map(lambda h: h + level, like(k_logs, 5.0))
        for logs in (jax.tree.map(lambda x: jnp.full_like(x, level), X), uneven):
            for w in (far, (far[0],) * rank):
                size = np.linalg.norm(dense(bounded_noise(logs, w)), 2)
                assert size < 2.02 * np.exp(2)


def test_directions_without_length_have_a_gradient():
    noise = lambda w: bounded_noise(jax.tree.map(jnp.zeros_like, X), (w,)).over(X)
    slope = jax.grad(lambda w: sum((v**2).sum() for v in jax.tree.leaves(noise(w))))
    size = ravel_pytree(slope(jax.tree.map(jnp.zeros_like, X)))[0]
    assert float(jnp.abs(size).max()) > 0.01


def test_no_share_of_it_is_none():
    noise = StateNoise(like(jax.random.key(0)), (like(jax.random.key(1)),))
    none = noise.shared(jnp.zeros(()), jnp.zeros(()))
    np.testing.assert_array_equal(dense(none), np.eye(5))
    assert float(none.log_determinant()) == 0
