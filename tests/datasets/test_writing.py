"""What is written is what was simulated, whenever the writing was stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray
import zarr

import smdp_jax as smdp
from smdp_jax import datasets
from tests.datasets.written import KEY, write
from tests.folders import contents


def test_equals_what_is_simulated_in_memory(tmp_path, generate, in_memory, same):
    path = write(tmp_path / "a.zarr", generate)
    same(datasets.open_trajectories(path), in_memory(KEY, range(3)))


def test_xarray_opens_it(tmp_path, generate):
    @dataclass(frozen=True)
    class Config:
        rate: float = 0.1
        sizes: tuple[int, ...] = (4, 5)

    path = write(
        tmp_path / "a.zarr",
        generate,
        config=Config(),
        dims={"velocity": ("x_face", "y")},
        units={"time": "d", "velocity": "m / d", "args.rate": "1 / d"},
    )
    with xarray.open_zarr(path) as found:
        assert found["marker"].dims == ("sample", "time", "x", "y")
        assert found["velocity"].dims == ("sample", "time", "x_face", "y")
        assert found["score.velocity"].dims == ("sample", "time", "x_face", "y")
        assert found["args.rate"].dims == ("sample",)
        np.testing.assert_allclose(found["time"], np.linspace(0, 1, 5))
        units = {name: found[name].attrs["units"] for name in found.variables}
        assert units == {
            "time": "d",
            "marker": "1",
            "velocity": "m / d",
            "score.marker": "1",
            "score.velocity": "1 / (m / d)",
            "args.rate": "1 / d",
            "checksum": "1",
        }
        assert json.loads(found.attrs["config"]) == {"rate": 0.1, "sizes": [4, 5]}
        expected = generate(jax.random.fold_in(KEY, 1)).xs["marker"]
        np.testing.assert_array_equal(found["marker"][3:6], expected)


@pytest.mark.parametrize(
    "state",
    [
        lambda leaf: leaf,
        lambda leaf: (leaf, [leaf[..., :1], {"deep": leaf[..., 0]}]),
        lambda leaf: {"u": leaf.astype(jnp.float16), "v": leaf},
    ],
)
@pytest.mark.parametrize("args", [None, {"nu": 0.5, "mask": np.ones((2, 3), bool), "n": 3}])
def test_any_tree_comes_back(tmp_path, same, state, args):
    def generate(key):
        leaf = jax.random.normal(key, (2, 5, 3, 2))
        return smdp.Trajectories(smdp.linear_grid(0.0, 1.0, 4), state(leaf), args)

    found = datasets.open_trajectories(write(tmp_path / "a.zarr", generate, chunks=1))
    expected = generate(jax.random.fold_in(KEY, 0))
    same(found, replace(expected, args=jax.tree.map(jnp.asarray, args)))


class Stopped(Exception):
    pass


def test_stopped_at_every_moment(tmp_path, generate, monkeypatch):
    """Stop before the n-th write of a file, for all n; each time all goes on."""
    whole = contents(write(tmp_path / "whole.zarr", generate))
    put = zarr.storage.LocalStore.set
    for stop in range(100):
        path = tmp_path / f"{stop}.zarr"
        done = []

        async def interrupted(self, key, value, done=done, stop=stop):
            if len(done) == stop:
                raise Stopped
            done.append(key)
            return await put(self, key, value)

        with monkeypatch.context() as patch:
            patch.setattr(zarr.storage.LocalStore, "set", interrupted)
            try:
                write(path, generate)
            except Stopped:
                finished = False
            else:
                finished = True
        write(path, generate)
        assert contents(path) == whole
        if finished:
            break
    assert finished
    assert stop > 20  # one group, seven arrays, their chunks


def test_goes_on_beside_a_call_that_was_stopped_and_still_writes(tmp_path, generate, monkeypatch):
    """Threads of zarr end on their own time: what they hold is not removed, and not in the way."""
    whole = contents(write(tmp_path / "whole.zarr", generate))
    replace = os.replace

    def stopped(source, target):
        if os.path.isdir(source):
            raise KeyboardInterrupt
        replace(source, target)

    path = tmp_path / "a.zarr"
    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        write(path, generate)
    monkeypatch.setattr(os, "replace", replace)
    remove = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    write(path, generate)
    assert contents(path) == whole
    assert list(tmp_path.glob("a.zarr.*.partial"))
    monkeypatch.setattr(shutil, "rmtree", remove)
    remove(path)
    write(path, generate)
    assert not list(tmp_path.glob("a.zarr.*"))


def test_kept_chunks_are_not_computed_again(tmp_path, generate):
    computed = []

    def counted(key):
        computed.append(key)
        if len(computed) == 3:
            raise KeyboardInterrupt
        return generate(key)

    path = tmp_path / "a.zarr"
    with pytest.raises(KeyboardInterrupt):
        write(path, counted)
    write(path, counted)
    write(path, counted)
    # The first chunk again each time, to see that the generator is the same, and the one missing.
    again = [
        int(np.where([(k == jax.random.fold_in(KEY, i)) for i in range(3)])[0][0]) for k in computed
    ]
    assert again == [0, 1, 2, 0, 2, 0]


SCRIPT = """
import sys, time
import numpy as np, jax
from smdp_jax import Trajectories, datasets

def generate(key):
    draws = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    time.sleep(0.02)
    return Trajectories(np.arange(3.0, dtype="float32"),
                        draws.normal(size=(4, 3, 64, 64)).astype("float32"))

datasets.write(sys.argv[1], generate, chunks=int(sys.argv[2]), key=jax.random.key(0))
"""


@pytest.mark.slow
def test_killed(tmp_path):
    def start(path):
        command = [sys.executable, "-c", SCRIPT, str(path), "40"]
        # Killed while it writes to the session's cache of programs, it would leave half an entry.
        own = {n: v for n, v in os.environ.items() if n != "JAX_COMPILATION_CACHE_DIR"}
        return subprocess.Popen(command, stderr=subprocess.DEVNULL, env=own)

    assert start(tmp_path / "whole.zarr").wait() == 0
    path = tmp_path / "killed.zarr"
    process = start(path)
    while not (path / "checksum" / "c" / "5").exists():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(ValueError, match=r"of 40 chunks: write it again"):
        datasets.open_trajectories(path)
    assert datasets.open_trajectories(path, partial=True).num_samples >= 20
    assert start(path).wait() == 0
    assert contents(path) == contents(tmp_path / "whole.zarr")


@pytest.mark.parametrize("damage", ["cut", "lost", "changed"])
def test_damaged_chunk_is_found_and_computed_anew(tmp_path, generate, in_memory, same, damage):
    path = write(tmp_path / "a.zarr", generate)
    file = path / "velocity" / "c" / "1" / "0" / "0" / "0"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:20])
    elif damage == "lost":
        file.unlink()
    else:
        zarr.open_group(path)["velocity"][4, 2, 0, 0] = 7.0
    with pytest.raises(ValueError, match=r"chunk 1 of .*; write it again"):
        datasets.open_trajectories(path)
    write(path, generate)
    same(datasets.open_trajectories(path), in_memory(KEY, range(3)))


def test_damaged_checksum_means_not_written(tmp_path, generate):
    path = write(tmp_path / "a.zarr", generate)
    (path / "checksum" / "c" / "2").write_bytes(b"")
    with pytest.raises(ValueError, match="2 of 3 chunks"):
        datasets.open_trajectories(path)
    assert datasets.open_trajectories(path, partial=True).num_samples == 6
    write(path, generate)
    assert datasets.open_trajectories(path).num_samples == 9


def test_damaged_times(tmp_path, generate):
    path = write(tmp_path / "a.zarr", generate)
    zarr.open_group(path)["time"][1] = 0.3
    with pytest.raises(ValueError, match="times or shared conditions"):
        datasets.open_trajectories(path)
    (path / "time" / "c" / "0").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"times or shared conditions .* elsewhere \(RuntimeError"):
        datasets.open_trajectories(path)


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"")])
def test_damaged_times_are_not_taken_for_written(tmp_path, generate, damage):
    path = write(tmp_path / "a.zarr", generate)
    damage(path / "time" / "c" / "0")
    with pytest.raises(ValueError, match=r"times or shared conditions .* has to be written again"):
        write(path, generate)


def test_what_a_killed_write_left_is_removed(tmp_path, generate):
    path = write(tmp_path / "a.zarr", generate)
    before = contents(path)
    (path / "marker" / "c" / "1.0123abc.partial").write_bytes(b"half")
    write(path, generate)
    assert contents(path) == before


def test_home_is_spelled_out(tmp_path, generate, monkeypatch, in_memory, same):
    monkeypatch.setenv("HOME", str(tmp_path))
    write("~/a.zarr", generate, chunks=1)
    assert (tmp_path / "a.zarr").exists()
    same(datasets.open_trajectories("~/a.zarr"), in_memory(KEY, range(1)))
    same(datasets.open_stream("~/a.zarr").load(), in_memory(KEY, range(1)))
    for verb in (datasets.open_trajectories, datasets.open_stream, datasets.from_zarr):
        with pytest.raises(ValueError, match=r"on this machine, got 's3://b/a.zarr': download it"):
            verb("s3://b/a.zarr")
