"""What is not written: over other datasets, by other generators, and what fits no dataset."""

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

import smdp_jax as smdp
from smdp_jax import datasets
from tests.datasets.written import write
from tests.folders import contents


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": {"rate": 0.2}}, "config.rate was 0.1, now 0.2"),
        ({"config": {"rate": 0.1, "size": 4}}, "config.size was None, now 4"),
        ({"config": {}}, "config.rate was 0.1, now None"),
        ({"chunks": 4}, "chunks was 3, now 4"),
        ({"key": jax.random.key(4)}, r"key was .*3\]\], now .*4\]\]"),
    ],
)
def test_another_dataset_is_refused_and_kept(tmp_path, generate, options, message):
    path = write(tmp_path / "a.zarr", generate)
    before = contents(path)
    with pytest.raises(ValueError, match=f"another dataset: {message}"):
        write(path, generate, **options)
    assert contents(path) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: replace(d, xs=jax.tree.map(lambda x: 1.25 * x, d.xs)), "another 'marker', now"),
        (lambda d: replace(d, args={"rate": d.args["rate"] + 0.5}), "another 'args.rate', now off"),
        (lambda d: replace(d, ts=d.ts * 3), "another 'time', now off by up to 2"),
        (lambda d: replace(d, xs=d.xs | {"marker": d.xs["marker"][..., :2]}, score_targets=None),
         "of the arrays"),
        (lambda d: replace(d, xs={"m": d.xs["marker"], "velocity": d.xs["velocity"]},
                           score_targets=None), r"of the arrays \['args.rate', 'marker'"),
    ],
)  # fmt: skip
def test_another_generator_is_refused(tmp_path, generate, change, message):
    path = write(tmp_path / "a.zarr", generate)
    before = contents(path)
    with pytest.raises(ValueError, match=f"another dataset: chunk 0 of generate was .*{message}"):
        write(path, lambda key: change(generate(key)))
    assert contents(path) == before


@pytest.mark.parametrize(
    "options", [{"units": {"marker": "kg"}}, {"dims": {"velocity": ("face", "y")}}]
)
def test_other_names_are_refused(tmp_path, generate, options):
    path = write(tmp_path / "a.zarr", generate)
    with pytest.raises(ValueError, match=r"another dataset: axes and unit of '(marker|velocity)'"):
        write(path, generate, **options)
    write(tmp_path / "b.zarr", generate, **options)
    write(tmp_path / "b.zarr", generate, **options)


def test_folder_of_something_else_is_kept(tmp_path, generate):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is no dataset of smdp_jax"):
        write(tmp_path, generate)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    path = write(tmp_path / "a.zarr", generate)
    (path / "zarr.json").write_text((path / "zarr.json").read_text()[:100])
    with pytest.raises(ValueError, match="metadata are damaged"):
        datasets.open_trajectories(path)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", generate)


def chunk(**changes):
    data = smdp.Trajectories(smdp.linear_grid(0.0, 1.0, 2), {"u": jnp.ones((2, 3, 4))}, {"nu": 1.0})
    return replace(data, **changes)


@pytest.mark.parametrize(
    ("later", "message"),
    [
        ({"xs": {"u": jnp.ones((1, 3, 4))}}, r"chunk 1 has 'u' of shape \(1, 3, 4\)"),
        ({"xs": {"v": jnp.ones((2, 3, 4))}}, "another tree"),
        ({"ts": jnp.array([0.0, 0.5, 2.0])}, "other times, or other conditions"),
        ({"args": {"nu": 2.0}}, "other times, or other conditions"),
        ({"xs": {"u": jnp.full((2, 3, 4), jnp.nan)}}, "is not finite in 2 of 2 samples"),
    ],
)
def test_chunks_that_do_not_fit(tmp_path, later, message):
    made = []

    def generate(key):
        made.append(key)
        return chunk() if len(made) == 1 else chunk(**later)

    with pytest.raises(ValueError, match=message):
        write(tmp_path / "a.zarr", generate)
    # The chunk before is kept.
    assert datasets.open_trajectories(tmp_path / "a.zarr", partial=True).num_samples == 2


@pytest.mark.parametrize(
    ("changes", "options", "error", "message"),
    [
        ({}, {"chunks": 0}, ValueError, "chunks must be at least 1"),
        ({}, {"config": {"f": len}}, TypeError, "config must hold JSON values"),
        ({}, {"config": {"f": float("nan")}}, TypeError, "config must hold JSON values"),
        ({}, {"config": 3}, TypeError, "a dict or a dataclass, got int"),
        ({}, {"units": {"v": "m"}}, ValueError, r"units names \['v'\]"),
        ({}, {"dims": {"v": ("x",)}}, ValueError, r"dims names \['v'\]"),
        ({}, {"dims": {"u": ("x", "y")}}, ValueError, "must name its 1 own axes"),
        ({}, {"dims": {"u": ("time",)}}, ValueError, "axis 'time' has length 3 and, in 'u', 4"),
        ({"args": {"k": jax.random.key(0)}}, {}, TypeError, "real numbers and masks"),
        ({"args": {"k": "text"}}, {}, TypeError, "got a str in args.k"),
        ({"args": {"a/b": 1.0}}, {}, TypeError, "plain names as keys, got 'a/b'"),
        ({"xs": {"time": jnp.ones((2, 3))}}, {}, ValueError, "two arrays .* named 'time'"),
        ({"xs": {"checksum": jnp.ones((2, 3))}}, {}, ValueError, "named 'checksum'"),
    ],
)
def test_bad_input(tmp_path, changes, options, error, message):
    with pytest.raises(error, match=message):
        write(tmp_path / "a.zarr", lambda _: chunk(**changes), **options)
    assert not (tmp_path / "a.zarr").exists()


def test_generator_of_something_else(tmp_path):
    with pytest.raises(TypeError, match="must return Trajectories, got dict"):
        write(tmp_path / "a.zarr", lambda _: {})


def test_missing_package_names_the_extra(tmp_path, generate, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImportError, match=r'need zarr, .* pip install "smdp_jax\[data\]"'):
        write(tmp_path / "a.zarr", generate)
