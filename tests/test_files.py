"""Files are whole or not there."""

import os

import pytest

from smdp_jax.files import open_atomically, write_atomically


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
