"""Loops and sources of one's own: the pieces of ``fit`` do what ``fit`` does."""

import jax
import numpy as np
import optax
import pytest

import smdp_jax as smdp

pytestmark = pytest.mark.usefixtures("no_step_miss", "compiles_quickly")

SDE = smdp.SDE(lambda t, x, args: -x, diffusion=0.5)
TS = smdp.linear_grid(0.0, 1.0, 5)
KEY = jax.random.key(7)
NET = smdp.models.MLP((4,))


def paths(number, samples=24):
    k_start, k_noise = jax.random.split(jax.random.key(number))
    return smdp.simulate(SDE, jax.random.normal(k_start, (samples, 1)), TS, key=k_noise)


DATA = paths(0)
BLOCKS = [paths(number) for number in range(3)]


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a.variables, b.variables)


def fit(data, **settings):
    options = {"steps": 9, "epoch_steps": 3, "batch_size": 8, "progress": False, "key": KEY}
    given = smdp.MultiStep((2,)), optax.adam(1e-2)
    return smdp.fit(SDE, NET, data, *given, **(options | settings)).learned


@pytest.mark.slow
def test_a_loop_of_updates_is_fit():
    """Bit for bit, with the keys that ``fit`` splits off."""
    init_key, batch_key, *_ = jax.random.split(KEY, 5)
    training, state = smdp.training.prepare(
        SDE, NET, DATA, smdp.MultiStep((2,)), optax.adam(1e-2), key=init_key, batch_size=8
    )
    update, before = jax.jit(training.update), state.params
    for _ in range(9):
        loss, grads = training.gradient(state.params, DATA, batch_key, state.step)
        state, told = update(state, DATA, batch_key)
        np.testing.assert_allclose(loss, told, rtol=1e-5)
        assert jax.tree.structure(grads) == jax.tree.structure(before)
    assert int(state.step) == 9
    for a, b in zip(
        jax.tree.leaves(training.learned(state).variables),
        jax.tree.leaves(fit(DATA).variables),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_kernel_measures_its_noise_on_paths_that_are_held_out():
    data, held_out = DATA.split(0.25)
    training, state = smdp.training.prepare(SDE, NET, data, key=KEY, batch_size=8)
    state, _ = jax.jit(training.update)(state, data, KEY)
    assert training.learned(state).left is None
    kernel = training.learned(state, held_out, key=KEY)
    assert kernel.left is not None
    with pytest.raises(ValueError, match="key must be given"):
        training.learned(state, held_out)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"ema": 1.0}, "ema must be in \\[0, 1\\), got 1.0"),
        ({"data": BLOCKS}, "data must be"),
        ({"key": 3}, "key must be"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_prepare_refuses(changes, said):
    options = {"data": DATA, "key": KEY} | changes
    with pytest.raises((ValueError, TypeError), match=said):
        smdp.training.prepare(SDE, NET, **options)


class Endless:
    """Starts anew with each ``iter``, and counts what is taken."""

    fingerprint = "three blocks"

    def __init__(self, blocks):
        self.blocks_of_mine, self.taken = blocks, 0

    def __iter__(self):
        for block in self.blocks_of_mine:
            self.taken += 1
            yield block


def test_a_list_and_an_iterable_are_streams():
    """Epochs take block after block, and begin again after the last."""
    source = Endless(BLOCKS)
    by_list, by_source = fit(BLOCKS, steps=15), fit(source, steps=15)
    same(by_list, by_source)
    assert 5 <= source.taken <= 7
    same(fit(BLOCKS[:1]), fit(BLOCKS[0]))


def test_resumed_on_an_iterable(tmp_path):
    fit(Endless(BLOCKS), directory=tmp_path, callback=lambda m, p: m["step"] == 6)
    again = fit(Endless(BLOCKS), directory=tmp_path)
    same(again, fit(BLOCKS))
    with pytest.raises(ValueError, match="data must have a fingerprint, a str"):
        fit(BLOCKS, directory=tmp_path / "other")


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ([], "must go on without end, got a stream of 0 blocks"),
        (iter(BLOCKS[:1]), "must go on without end, got a stream of . blocks: start again"),
        ([BLOCKS[0], BLOCKS[1][:5]], "blocks of data must be alike"),
        ([BLOCKS[0].xs], "a block of data must be Trajectories"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_bad_blocks(blocks, said):
    with pytest.raises((ValueError, TypeError), match=said):
        fit(blocks)
