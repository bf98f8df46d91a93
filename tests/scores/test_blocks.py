"""Unitary transforms of states into blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax.scores.blocks import Cosine, Custom, Joint, Periodic, Points, check_unitary, matvec

SINE = np.sqrt(2 / 9) * np.sin(np.pi * np.outer(np.arange(1, 9), np.arange(1, 9)) / 9)


def sine(field):
    return jnp.asarray(SINE, field.dtype) @ field


STATES = {
    "scalar": jnp.asarray(1.0),
    "line": jnp.zeros(8),
    "odd line": jnp.zeros(7),
    "plane": jnp.zeros((6, 5)),
    "leaves": {"u": jnp.zeros(8), "v": jnp.zeros((8, 2))},
    "staggered": {"a": jnp.zeros((4, 6)), "b": jnp.zeros((5, 6)), "c": jnp.zeros((4, 6))},
}


def axes(name):
    return {"scalar": 0, "plane": 2, "staggered": 2}.get(name, 1)


def random_like(tree, seed=1):
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(
        structure, [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Periodic, Cosine, Points, Joint])
@pytest.mark.parametrize("name", STATES)
def test_comes_back_and_keeps_the_norm(kind, name):
    transform = Joint() if kind is Joint else kind(axes(name))
    x = random_like(STATES[name])
    blocks = transform.to(x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), transform.back(blocks, x), x
    )
    norm = sum(
        (np.abs(np.asarray(b)) ** 2 * w[:, None]).sum()
        for b, w in zip(blocks, transform.multiplicity(x), strict=True)
    )
    assert norm == pytest.approx(
        float(sum((leaf**2).sum() for leaf in jax.tree.leaves(x))), rel=1e-5
    )
    check_unitary(transform, x)


def test_leaves_of_one_grid_share_blocks():
    x = STATES["staggered"]
    shapes = [b.shape for b in Points(2).to(x)]
    assert shapes == [(24, 2), (30, 1)]
    assert [b.shape for b in Periodic(2).to(x)] == [(16, 2), (20, 1)]


def test_cosine_modes_are_those_of_type_two():
    x = jax.random.normal(jax.random.key(0), (8,))
    want = jax.scipy.fft.dct(x, norm="ortho")
    np.testing.assert_allclose(Cosine(1).to(x)[0][:, 0], want, atol=1e-6)


def test_own_pair():
    transform = Custom(1, sine, sine)
    x = {"u": random_like(jnp.zeros(8)), "v": random_like(jnp.zeros(8), 2)}
    check_unitary(transform, x)
    np.testing.assert_allclose(transform.to(x)[0][:, 1], sine(x["v"]), atol=1e-6)


@pytest.mark.parametrize(
    ("forward", "inverse"),
    [(lambda f: 2 * f, lambda f: f / 2), (sine, lambda f: -sine(f)), (jnp.fft.fft, jnp.fft.ifft)],
)
def test_a_pair_that_is_not_unitary_is_refused(forward, inverse):
    with pytest.raises(ValueError, match="transform must be unitary, a pair"):
        check_unitary(Custom(1, forward, inverse), jnp.zeros(8))


def test_matvec():
    a, z = np.random.default_rng(0).normal(size=(5, 2, 2)), np.ones((5, 2))
    np.testing.assert_allclose(matvec(jnp.asarray(a), jnp.asarray(z)), a.sum(-1), rtol=1e-6)
