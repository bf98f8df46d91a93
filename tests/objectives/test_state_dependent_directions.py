"""Noise along directions that the state tells: starts on a ring, known by quadrature."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import smdp_jax as smdp
from smdp_jax.scores.leftover import noise_left, trusted

pytestmark = pytest.mark.usefixtures("compiles_quickly")

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
@pytest.mark.filterwarnings("ignore:fit. posteriors")  # Gaussian steps on a ring, as they are
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


class Points(nn.Module):
    """A network that knows one direction of the noise: the same entry, whatever the state."""

    takes_trees = True

    def __call__(self, t, x, args):
        white = x[0]
        return jnp.zeros_like(white), jnp.zeros_like(white), jnp.zeros_like(white).at[5].set(2.0)


def test_noise_of_rough_modes_is_not_carried_to_smooth_ones_that_are_all_but_known():
    """Waves 0 and 1 of unseen paths have 1/20 of the linear part's noise.

    As where a network knows them; what other waves have, along one point, is several times as much.
    """
    k_later, k_miss, k_finish = jax.random.split(jax.random.key(0), 3)
    later, miss = (jax.random.normal(k, (13_000, 12)) for k in (k_later, k_miss))
    wave = jnp.arange(7)[None]

    def paths(smooth, rows):
        sizes = jnp.where(wave < 2, smooth, 0.5)
        earlier = later + jnp.fft.irfft(jnp.fft.rfft(miss) * sizes, 12)
        return smdp.Trajectories(TS, jnp.stack([earlier, later], axis=1)[rows])

    kernel = smdp.estimate_kernel(
        SDE, paths(0.5, slice(12_000)), transform="periodic", base="state", grid_axes=1
    )
    tables = dataclasses.replace(kernel.tables, spread=True, directions=1)
    kernel = dataclasses.replace(kernel, model=Points(), variables={}, tables=tables)
    held = paths(0.5 / 20, slice(12_000, 13_000))

    def size(kernel):
        spread = noise_left(kernel, held, 0.0, k_finish).covariance(0, later[0])
        smooth = jnp.ones(12) / 12**0.5
        return float(smooth @ spread @ smooth) ** 0.5 / (0.5 / 20)

    assert size(kernel) > 3
    # A standard deviation of 1000 numbers: 2 %; gains and offset, of 12 000 paths: 3 %.
    assert size(trusted(kernel, held, 0.0, k_finish)) == pytest.approx(1, rel=0.1)
