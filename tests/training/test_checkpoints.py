"""A run's folder: whole or no checkpoints, whose run it is, metrics without half lines."""

import json
import os
import re
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax.training.checkpoints import RunDirectory

IDENTITY = {"model": "MLP()", "steps": 100, "windows": (1, 2)}


def state(value):
    return {"params": {"w": jnp.full((3, 2), float(value))}, "step": jnp.array(value, jnp.int32)}


@pytest.fixture(autouse=True)
def interruptible():
    """A suite that runs in the background may have inherited a SIGINT that is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def opened(tmp_path):
    """Open run directories, each as after the end of the process that had it before."""
    directories = []

    def open_one(identity=IDENTITY, name="run"):
        while directories:
            directories.pop().close()
        directories.append(RunDirectory(tmp_path / name, identity))
        return directories[-1]

    yield open_one
    for directory in directories:
        directory.close()


def damage(directory, step):
    """Cut every file of a checkpoint to a third, as a full disk would."""
    files = [f for f in (directory.path / "checkpoints" / str(step)).rglob("*") if f.is_file()]
    assert files
    for file in files:
        os.truncate(file, file.stat().st_size // 3)


def test_restores_the_newest(opened):
    first = opened()
    assert first.restore(state(0)) is None
    for step in (10, 20, 30):
        first.save(step, state(step))
    step, restored = opened().restore(state(0))
    assert step == 30
    assert jax.tree.structure(restored) == jax.tree.structure(state(0))
    jax.tree.map(np.testing.assert_array_equal, restored, state(30))
    assert restored["step"].dtype == jnp.int32


def test_saving_a_step_again_is_no_error(opened):
    directory = opened()
    directory.save(10, state(10))
    directory.save(10, state(11))
    assert opened().restore(state(0))[1]["step"] == 10


def test_keeps_two(opened):
    directory = opened()
    for step in (10, 20, 30):
        directory.save(step, state(step))
    kept = {p.name for p in (directory.path / "checkpoints").iterdir() if p.name.isdigit()}
    assert kept == {"20", "30"}


def test_damaged_checkpoint_falls_back_to_the_older(opened):
    directory = opened()
    directory.save(10, state(10))
    directory.save(20, state(20))
    damage(directory, 20)
    again = opened()
    step, restored = again.restore(state(0))
    assert step == 10
    jax.tree.map(np.testing.assert_array_equal, restored, state(10))
    again.save(20, state(20))  # the damaged one is out of the way
    assert opened().restore(state(0))[0] == 20


def test_nothing_readable(opened):
    directory = opened()
    directory.save(10, state(10))
    damage(directory, 10)
    with pytest.raises(
        ValueError, match=r"no checkpoint in .* can be read \(step 10: .*remove the"
    ):
        opened().restore(state(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 200}, "holds another training run: steps was 100, now 200; use another"),
        ({"windows": (1, 4)}, "windows was [1, 2], now [1, 4]"),
        ({"model": "UNet()"}, "model was 'MLP()', now 'UNet()'"),
        ({"seed": 3}, "seed was None, now 3"),
    ],
)
def test_another_run_is_refused(opened, change, message):
    opened()
    with pytest.raises(ValueError, match=re.escape(message)):
        opened(IDENTITY | change)


def test_same_run_is_accepted(opened):
    """Tuples become lists in JSON and are the same."""
    opened()
    opened(dict(IDENTITY))


def test_damaged_identity_names_the_file(opened):
    directory = opened()
    file = directory.path / "training.json"
    for text in (file.read_text()[:10], "[1, 2]", "3"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"training\.json is damaged"):
            opened()


RECORDS = [{"step": s, "loss": 1.0 / s} for s in (10, 20, 30)]


def test_metrics(opened):
    directory = opened()
    assert directory.read_metrics(100) == []
    for record in RECORDS:
        directory.append_metrics(record)
    assert directory.read_metrics(30) == RECORDS
    lines = directory.metrics_file.read_text().splitlines()
    assert [json.loads(line) for line in lines] == RECORDS


def test_metrics_after_the_checkpoint_are_dropped(opened):
    directory = opened()
    for record in RECORDS:
        directory.append_metrics(record)
    assert directory.read_metrics(20) == RECORDS[:2]
    directory.append_metrics(RECORDS[2])
    assert directory.read_metrics(100) == RECORDS


@pytest.mark.parametrize(
    "half", ['{"step": 4', "", '{"loss": 1}\n', "3\n", "null", '{"step": 40, "lo', "\x00\x00\x00"]
)
def test_half_a_line_is_dropped(opened, half):
    directory = opened()
    for record in RECORDS:
        directory.append_metrics(record)
    with directory.metrics_file.open("a") as file:
        file.write(half)
    assert directory.read_metrics(100) == RECORDS
    directory.append_metrics({"step": 40})
    assert directory.read_metrics(100) == [*RECORDS, {"step": 40}]


@pytest.mark.parametrize("step", [10, 20])
def test_interrupt_waits_for_the_whole_checkpoint(opened, monkeypatch, step):
    directory = opened()
    directory.save(10, state(10))
    save = directory._manager.save

    def interrupted(*args, **kwargs):
        signal.raise_signal(signal.SIGINT)
        return save(*args, **kwargs)

    monkeypatch.setattr(directory._manager, "save", interrupted)
    before = signal.getsignal(signal.SIGINT)
    if step == 10:
        directory.save(step, state(step))  # nothing to write: nothing to interrupt
    else:
        with pytest.raises(KeyboardInterrupt):
            directory.save(step, state(step))
    assert signal.getsignal(signal.SIGINT) is before
    assert opened().restore(state(0))[0] == step


def test_saves_from_another_thread(opened):
    directory = opened()
    thread = threading.Thread(target=directory.save, args=(10, state(10)))
    thread.start()
    thread.join()
    assert opened().restore(state(0))[0] == 10


# Two processes, and what others left ------------------------------------------------------------


def test_two_processes_in_one_folder(tmp_path):
    """Another open file is another process to the lock."""
    first = RunDirectory(tmp_path, IDENTITY)
    with pytest.raises(ValueError, match=r"another process trains in .*: wait for it, or use"):
        RunDirectory(tmp_path, IDENTITY)
    first.close()
    RunDirectory(tmp_path, IDENTITY).close()


def test_a_process_holds_its_folder_until_it_is_killed(tmp_path):
    """A process of its own; the lock goes with it, however it ends."""
    hold = (
        "import sys; from smdp_jax.training.checkpoints import RunDirectory; "
        f"held = RunDirectory(sys.argv[1], {IDENTITY}); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match=r"another process trains in .*: wait for it, or use"):
            RunDirectory(tmp_path, IDENTITY)
        other.kill()
        other.wait()
    RunDirectory(tmp_path, IDENTITY).close()


@pytest.mark.parametrize("stray", ["999", "25"])
def test_stray_empty_checkpoint_hides_no_good_one(opened, stray):
    directory = opened()
    for step in (10, 20):
        directory.save(step, state(step))
    (directory.path / "checkpoints" / stray).mkdir()
    again = opened()
    assert again.last == 20
    assert again.restore(state(0))[0] == 20
    again.save(30, state(30))
    assert opened().restore(state(0))[0] == 30


def test_all_that_differs_is_named(opened):
    digest = "computes " + "0a" * 8
    opened(IDENTITY | {"loss": digest, "data": "1b" * 32})
    with pytest.raises(
        ValueError, match=r"run: steps was 100, now 7, loss is another one, data is another one; us"
    ):
        opened(IDENTITY | {"steps": 7, "loss": digest.replace("a", "c"), "data": "2c" * 32})
