"""Stored paths: access, windows, and what ``check`` refuses."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax.trajectories import window

TS = jnp.array([0.0, 0.1, 0.3, 0.6, 1.0])
XS = {
    "a": jnp.arange(3 * 5 * 2.0).reshape(3, 5, 2),
    "b": 100 + jnp.arange(3 * 5.0).reshape(3, 5),
}
TARGETS = jax.tree.map(lambda x: -2 * x, XS)
ARGS = {"rate": jnp.array([0.1, 0.2, 0.3])}


def mapped(**changes):
    fields = {"ts": TS, "xs": XS, "args": ARGS, "score_targets": TARGETS, "args_axes": 0} | changes
    return smdp.Trajectories(**fields)


@pytest.mark.slow
def test_access():
    data = mapped()
    data.check()
    assert (data.num_samples, data.num_times) == (3, 5)
    np.testing.assert_array_equal(data.at(1, -1)["a"], XS["a"][1, -1])
    np.testing.assert_array_equal(data.at(jnp.array(2), jnp.array(0))["b"], XS["b"][2, 0])
    assert data.args_of(1)["rate"] == ARGS["rate"][1]


def test_slices_and_indices_take_all_that_belongs_to_a_path():
    data = mapped()
    for some, kept in [(np.s_[1:], [1, 2]), (jnp.array([2, 0]), [2, 0]), (np.s_[::2], [0, 2])]:
        part = data[some]
        part.check()
        np.testing.assert_array_equal(part.xs["a"], XS["a"][np.array(kept)])
        np.testing.assert_array_equal(part.score_targets["b"], TARGETS["b"][np.array(kept)])
        np.testing.assert_array_equal(part.args["rate"], ARGS["rate"][np.array(kept)])
    assert data[np.array([False, True, False])].num_samples == 1
    shared = mapped(args={"rate": jnp.array([1.0, 2.0])}, args_axes=None)
    np.testing.assert_array_equal(shared[1:].args["rate"], [1.0, 2.0])
    with pytest.raises(TypeError, match=r"must be a slice.*got 1: data\[1:2\] is one path"):
        data[1]


@pytest.mark.parametrize("key", [None, 3])
@pytest.mark.parametrize(("share", "aside"), [(0.3, 3), (0.01, 1), (0.99, 9)])
def test_split_loses_no_path_and_keeps_some_on_both_sides(key, share, aside):
    data = smdp.Trajectories(TS[:2], jnp.arange(20.0).reshape(10, 2))
    kept, held = data.split(share, key=None if key is None else jax.random.key(key))
    assert held.num_samples == aside
    both = np.concatenate([kept.xs, held.xs])
    np.testing.assert_array_equal(both[np.argsort(both[:, 0])], data.xs)
    assert (key is None) == np.array_equal(both, data.xs)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_split_refuses_shares_that_are_none(share):
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\), got"):
        mapped().split(share)
    with pytest.raises(ValueError, match="at least 2 paths"):
        mapped()[:1].split(0.5)


def test_shared_args_are_not_indexed():
    data = mapped(args={"rate": jnp.array([1.0, 2.0])}, args_axes=None)
    data.check()
    np.testing.assert_array_equal(data.args_of(2)["rate"], [1.0, 2.0])


@pytest.mark.parametrize("steps", [0, 2, 4])
def test_window_is_a_slice_of_one_path(steps):
    data = mapped()
    start = 4 - steps
    piece = jax.jit(window, static_argnums=3)(data, jnp.array(1), jnp.array(start), steps)
    chosen = slice(start, start + steps + 1)
    np.testing.assert_array_equal(piece.ts, TS[chosen])
    assert piece.args["rate"] == ARGS["rate"][1]
    for name in XS:
        np.testing.assert_array_equal(piece.xs[name], XS[name][1, chosen])
        np.testing.assert_array_equal(piece.score_targets[name], TARGETS[name][1, chosen])


def test_window_without_targets_and_conditions():
    piece = window(smdp.Trajectories(TS, XS), jnp.array(0), jnp.array(1), 2)
    assert piece.score_targets is None
    assert piece.args is None


def test_is_a_pytree():
    data = mapped()
    doubled = jax.jit(lambda d: jax.tree.map(lambda x: 2 * x, d))(data)
    np.testing.assert_array_equal(doubled.xs["b"], 2 * XS["b"])
    assert doubled.args_axes == 0
    ends = jax.vmap(lambda i: data.at(i, -1))(jnp.arange(3))
    np.testing.assert_array_equal(ends["a"], XS["a"][:, -1])


def test_windows_cut_under_vmap():
    data = mapped()
    pieces = jax.vmap(lambda i: window(data, i, i, 2))(jnp.arange(3))
    np.testing.assert_array_equal(pieces.ts[2], TS[2:5])
    np.testing.assert_array_equal(pieces.xs["a"][2], XS["a"][2, 2:5])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"xs": XS | {"b": XS["b"][:, :4]}},
            "Trajectories.xs['b'] must have leading axes (samples, times)=(3, 5), got shape (3, 4)",
        ),
        ({"xs": XS | {"b": XS["b"][:2]}}, "(samples, times)=(3, 5), got shape (2, 5)"),
        ({"xs": XS | {"b": XS["b"][:0]}}, "(samples, times)=(3, 5), got shape (0, 5)"),
        ({"xs": XS["a"][:0]}, "(samples, times)=(1, 5), got shape (0, 5, 2)"),
        ({"xs": XS["a"].astype(int)}, "Trajectories.xs must be floating point, got int32"),
        ({"xs": {}}, "Trajectories.xs must hold arrays of states, got {}"),
        ({"ts": TS[:4]}, "Trajectories.xs['a'] must have leading axes (samples, times)=(3, 4)"),
        ({"args": {"rate": jnp.ones(2)}}, "must have 3 entries like Trajectories.xs, got shape (2"),
        (
            {"args": {"rate": jnp.ones(())}},
            "must have 3 entries like Trajectories.xs, got shape ()",
        ),
        (
            {"score_targets": {"a": XS["a"], "b": XS["b"][..., None]}},
            "Trajectories.score_targets must have the shapes of xs",
        ),
        (
            {"score_targets": {"a": XS["a"]}},
            "Trajectories.score_targets must have the shapes of xs",
        ),
        (
            {"xs": XS | {"a": XS["a"].at[1, 3, 0].set(jnp.nan).at[2, 1, 1].set(jnp.inf)}},
            "Trajectories.xs['a'] is not finite in 2 of 3 samples; first in sample 1 at t=0.6",
        ),
        (
            {"score_targets": TARGETS | {"b": TARGETS["b"].at[2, 1].set(-jnp.inf)}},
            "['b'] is not finite in 1 of 3 samples; first in sample 2 at t=0.1 (time index 1)",
        ),
    ],
)
def test_check_errors(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        mapped(**changes).check()
