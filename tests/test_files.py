"""Files are whole or not there."""

import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax.experiment import read_arrays, write_arrays
from smdp_jax.files import local_path, open_atomically, read_archive, write_atomically


@pytest.mark.parametrize(("old", "new"), [("old", "ne\u0175"), (b"old", b"\x00new")])
def test_content_replaces_content(tmp_path, old, new):
    path = tmp_path / "a" / "b.json"
    assert write_atomically(path, old) == path
    write_atomically(path, new)
    assert path.read_bytes() == (new.encode() if isinstance(new, str) else new)


def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = write_atomically(tmp_path / "a.json", "old")

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_a_failing_writer_leaves_nothing(tmp_path):
    def write_half():
        with open_atomically(tmp_path / "a.npz") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from smdp_jax.experiment import read_arrays, write_arrays
from smdp_jax.files import open_atomically
with open_atomically(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_goes_with_the_next(tmp_path):
    path = tmp_path / "a.npz"
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False).returncode < 0
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".tmp")
    # That of another file, or of a writer that still runs, is none of this one's business.
    write_atomically(tmp_path / "b", "other")
    assert left.exists()
    with open_atomically(path) as file:
        assert not left.exists()
        write_atomically(path, "in between")
        file.write(b"last")
    assert path.read_bytes() == b"last"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.npz", "b"]


def test_home_is_spelled_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_atomically("~/runs/a.txt", "mine")
    assert (tmp_path / "runs" / "a.txt").read_text() == "mine"


@pytest.mark.parametrize("path", ["s3://bucket/a.zarr", "https://host/a.h5", "file:///a.npz"])
def test_addresses_are_refused(path):
    with pytest.raises(ValueError, match=f"one on this machine, got '{path}': download it first"):
        local_path(path)
    with pytest.raises(TypeError, match="a str or a Path, got int"):
        local_path(3)


def test_archive_with_a_byte_changed_reads_the_same_or_is_a_sentence(tmp_path):
    arrays = {"ts": np.linspace(0, 1, 3), "names": np.array(["a", "b"])}
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    whole = path.read_bytes()
    refused = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        try:
            found = read_archive(path)
        except ValueError:
            refused += 1
            continue
        for name in set(arrays) & set(found):
            np.testing.assert_array_equal(found[name], arrays[name])
    assert refused > 200  # what is left are dates, names and permissions of the archive


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1.0 2.0\n3.0 4.0", r"must begin with b'PK' .* got b'1.0 2.0"),
        (b"", "must begin with b'PK'"),
        (b"PK\x03\x04 and then text", "damaged"),
    ],
)
def test_what_is_no_archive(tmp_path, content, message):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_archive(tmp_path / "a.npz")
    assert "pickle" not in str(error.value)


def test_objects_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}, 1], object))
    with pytest.raises(ValueError, match="'x' holds Python objects, which are not read") as error:
        read_archive(tmp_path / "a.npz")
    assert "allow_pickle" not in str(error.value)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float16"])
def test_short_numbers_of_a_run_come_back(tmp_path, dtype):
    tree = {"xs": jnp.arange(6.0).reshape(2, 3).astype(dtype), "n": [jnp.ones((), dtype), 2]}
    write_arrays(tmp_path / "data.npz", tree)
    found = read_arrays(tmp_path / "data.npz", "remove it")
    assert found["xs"].dtype == found["n"][0].dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(found["xs"].astype(float), np.arange(6.0).reshape(2, 3))
    assert found["n"][1] == 2
