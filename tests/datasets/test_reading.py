import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax import datasets

KEY = jax.random.key(3)
ORDER = jax.random.key(8)


@pytest.fixture(scope="module")
def path(tmp_path_factory, generate):
    folder = tmp_path_factory.mktemp("data") / "a.zarr"
    config = {"rate": 0.1}
    return datasets.write(folder, generate, chunks=4, key=KEY, config=config, progress=False)


@pytest.fixture(scope="module")
def chunks(generate):
    return [generate(jax.random.fold_in(KEY, i)) for i in range(4)]


def which(stream, chunks, count, first=0):
    """Numbers of the chunks in each of some blocks of a stream."""
    found = []
    for block in itertools.islice(stream.blocks(ORDER, first), count):
        parts = np.split(np.asarray(block.xs["marker"]), stream.chunks_per_block)
        found.append(
            [
                next(i for i, c in enumerate(chunks) if np.array_equal(c.xs["marker"], part))
                for part in parts
            ]
        )
    return found


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_pass_sees_every_chunk_once(path, chunks, size):
    stream = datasets.open_stream(path, chunks_per_block=size)
    assert stream.num_samples == 12
    order = list(itertools.chain(*which(stream, chunks, 12 // size)))
    passes = [order[i : i + 4] for i in range(0, 12, 4)]
    assert all(sorted(one) == [0, 1, 2, 3] for one in passes)
    assert len({tuple(one) for one in passes}) > 1


def test_blocks_depend_on_their_number_alone(path, chunks):
    stream = datasets.open_stream(path, chunks_per_block=3)
    whole = which(stream, chunks, 7)
    assert which(stream, chunks, 3, first=4) == whole[4:]
    with_other_key = [b.xs["marker"] for b in itertools.islice(stream.blocks(KEY), 4)]
    same_key = [b.xs["marker"] for b in itertools.islice(stream.blocks(ORDER), 4)]
    assert any((a != b).any() for a, b in zip(with_other_key, same_key, strict=True))


def test_block_is_the_chunks_in_memory(path, in_memory, chunks, same):
    stream = datasets.open_stream(path, chunks_per_block=2)
    same(next(stream.blocks(ORDER)), in_memory(KEY, which(stream, chunks, 1)[0]))


def test_fingerprint_tells_data_and_blocks_apart(path, tmp_path, generate):
    stream = datasets.open_stream(path, config={"rate": 0.1})
    assert stream.fingerprint == datasets.open_stream(path).fingerprint
    assert stream.fingerprint != datasets.open_stream(path, chunks_per_block=2).fingerprint
    assert stream.fingerprint != datasets.open_stream(path, dtype="float16").fingerprint
    other = datasets.write(tmp_path / "b", generate, chunks=4, key=ORDER, progress=False)
    assert stream.fingerprint != datasets.open_stream(other).fingerprint


def test_damage_is_found_while_streaming(tmp_path, generate):
    folder = datasets.write(tmp_path / "a.zarr", generate, chunks=1, key=KEY, progress=False)
    stream = datasets.open_stream(folder)
    next(stream.blocks(ORDER))
    (folder / "marker" / "c" / "0" / "0" / "0" / "0").unlink()
    with pytest.raises(ValueError, match="chunk 0 of"):
        next(stream.blocks(ORDER))


def test_part_of_a_dataset(tmp_path, generate, chunks, in_memory, same):
    def stopped(key):
        if jnp.array_equal(jax.random.key_data(key), jax.random.key_data(last)):
            raise KeyboardInterrupt
        return generate(key)

    last = jax.random.fold_in(KEY, 2)
    with pytest.raises(KeyboardInterrupt):
        datasets.write(tmp_path / "a.zarr", stopped, chunks=4, key=KEY, progress=False)
    for opened in (datasets.open_trajectories, datasets.open_stream):
        with pytest.raises(ValueError, match="has 2 of 4 chunks: write it again"):
            opened(tmp_path / "a.zarr")
    same(
        datasets.open_trajectories(tmp_path / "a.zarr", partial=True),
        in_memory(KEY, range(2)),
    )
    assert datasets.open_stream(tmp_path / "a.zarr", partial=True).num_samples == 6


def test_bad_requests(path, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no dataset"):
        datasets.open_trajectories(tmp_path / "b.zarr")
    with pytest.raises(ValueError, match=r"config.rate was 0.1, now 0.3"):
        datasets.open_trajectories(path, config={"rate": 0.3})
    with pytest.raises(ValueError, match="at least 5 chunks, as a block does, got 4"):
        datasets.open_stream(path, chunks_per_block=5)
    with pytest.raises(ValueError, match="chunks_per_block must be at least 1"):
        datasets.open_stream(path, chunks_per_block=0)


def test_precision(tmp_path):
    def generate(key):
        times = jnp.linspace(0, 1, 3)
        states = np.random.default_rng(0).normal(size=(2, 3, 4))
        return smdp.Trajectories(times, states, {"mask": np.ones(4, bool)})

    with jax.enable_x64(True):
        path = datasets.write(tmp_path / "a", generate, chunks=1, key=KEY, progress=False)
        fine = datasets.open_trajectories(path)
        assert fine.xs.dtype == fine.ts.dtype == jnp.float64
        np.testing.assert_array_equal(fine.xs, generate(KEY).xs)
    with pytest.raises(ValueError, match="stored as float64, which JAX would round: pass dtype"):
        datasets.open_trajectories(path)
    coarse = datasets.open_trajectories(path, dtype="float32")
    assert coarse.xs.dtype == coarse.ts.dtype == jnp.float32
    assert coarse.args["mask"].dtype == bool
    np.testing.assert_array_equal(coarse.xs, generate(KEY).xs.astype(np.float32))
    stream = datasets.open_stream(path, dtype="float32")
    assert next(stream.blocks(KEY)).xs.dtype == jnp.float32
    assert dataclasses.replace(stream, dtype=None).fingerprint != stream.fingerprint
