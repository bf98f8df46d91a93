"""Trees of arrays on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax.experiment import ExperimentError, read_arrays, write_arrays
from smdp_jax.experiment.storage import read_part


def test_arrays_round_trip(tmp_path):
    tree = {
        "a": {"x": np.arange(3), "y": jnp.ones((2, 1))},
        "b": [np.float64(2.5), None, (1, "text", True)],
        "empty": {},
    }
    write_arrays(tmp_path / "f.npz", tree)
    back = read_arrays(tmp_path / "f.npz", "")
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        assert np.asarray(one).dtype == np.asarray(other).dtype
        np.testing.assert_array_equal(one, other)
    # Every array has a name that another program can ask for.
    assert set(np.load(tmp_path / "f.npz").files) == {"a/x", "a/y", "b/0", "structure"}


def test_storage_refuses_what_it_cannot_give_back(tmp_path):
    with pytest.raises(ExperimentError, match="x is a set"):
        write_arrays(tmp_path / "f.npz", {"x": {1}})
    with pytest.raises(ExperimentError, match="x is a PRNG key"):
        write_arrays(tmp_path / "f.npz", {"x": jax.random.key(0)})
    assert not (tmp_path / "f.npz").exists()


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated_arrays_are_named(tmp_path, keep):
    path = tmp_path / "f.npz"
    write_arrays(path, {"x": np.arange(1000)})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(ExperimentError, match=r"f\.npz is truncated or damaged.*; remove it"):
        read_arrays(path, "remove it")


def test_flipped_bits_are_seen(tmp_path):
    path = tmp_path / "f.npz"
    write_arrays(path, {"x": np.zeros(1000)})
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ExperimentError, match="damaged"):
        read_arrays(path, "remove it")


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "int4"])
def test_numbers_that_numpy_does_not_know_come_back(tmp_path, name):
    tree = {"x": jnp.array([[1.0, -2.0, 3.0]]).astype(name), "y": jnp.zeros((), name)}
    write_arrays(tmp_path / "f.npz", tree)
    back = read_arrays(tmp_path / "f.npz", "")
    for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one.astype(np.float32), np.asarray(other, np.float32))


def test_one_part_is_read_alone(tmp_path):
    write_arrays(tmp_path / "f.npz", {"x": np.zeros(1000), "of": {"a": [1, "b"], "n": np.ones(2)}})
    part = read_part(tmp_path / "f.npz", "of", "")
    assert part["a"] == [1, "b"]
    np.testing.assert_array_equal(part["n"], np.ones(2))
    assert read_part(tmp_path / "f.npz", "other", "") is None


@pytest.mark.parametrize("at", ["first", "directory"])
def test_a_flip_anywhere_is_damage(tmp_path, at):
    path = tmp_path / "f.npz"
    write_arrays(path, {"x": np.arange(50.0)})
    whole = bytearray(path.read_bytes())
    # The version that is needed to read, in the header of a file and in the directory.
    place = 4 if at == "first" else whole.index(b"PK\x01\x02") + 6
    whole[place] ^= 0x80
    path.write_bytes(whole)
    if at == "directory":
        with pytest.raises(ExperimentError, match="damaged"):
            read_arrays(path, "remove it")
    else:  # read by nobody
        assert read_arrays(path, "")["x"].shape == (50,)
