"""Noise along directions that the state tells: starts on a ring, known by quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp

G = 0.35
SDE = smdp.SDE(lambda t, x, args: jnp.zeros_like(x), diffusion=G)
TS = jnp.array([0.0, 1.0])


def ring(key, number):
    """Starts on a circle, blurred: where one came from is uncertain along it and not across."""
    k_angle, k_noise = jax.random.split(key)
    angle = 2 * jnp.pi * jax.random.uniform(k_angle, (number,))
    x0 = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    return smdp.simulate(SDE, x0, TS, key=k_noise)


def exact_covariance(x):
    angle = np.linspace(0, 2 * np.pi, 4001)[:-1]
    point = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    weight = np.exp(-0.5 * ((x - point) ** 2).sum(axis=1) / G**2)
    weight /= weight.sum()
    left = point - weight @ point
    return (weight[:, None] * left).T @ left


def fitted(**options):
    net = smdp.models.MLP((48, 48), time_features="raw")
    objective = smdp.BackwardKernel(**options)
    data = ring(jax.random.key(0), 6000)
    return smdp.fit(SDE, net, data, objective, steps=1500, key=jax.random.key(1), progress=False)


@pytest.mark.slow
def test_noise_lies_along_the_ring():
    angles = np.linspace(0.2, 6.0, 9)
    seen = np.stack([np.cos(angles), np.sin(angles)], axis=-1)

    def off(kernel):
        got = jax.vmap(lambda x: kernel.covariance(0, x))(jnp.asarray(seen, jnp.float32))
        got = np.linalg.eigvalsh(np.asarray(got, float))
        want = np.linalg.eigvalsh([exact_covariance(x) for x in seen])
        return np.abs(np.log(got / want)).mean(axis=0)

    with_one, without = off(fitted().kernel), off(fitted(directions=0).kernel)
    assert (with_one < 0.3).all()
    assert without[0] > 0.5
