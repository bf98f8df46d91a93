"""A run that is stopped, killed or damaged goes on to the same bits; a diverged one says so."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import smdp_jax as smdp
from smdp_jax.training import epochs
from smdp_jax.training.checkpoints import RunDirectory
from tests.linear_fit import DATA, HELD_OUT, K_PATH, K_START, SDE, TS, Linear, fit

pytestmark = pytest.mark.usefixtures("no_step_miss")


def assert_same_run(result, expected):
    """Parameters and history, bit for bit."""
    jax.tree.map(
        np.testing.assert_array_equal, result.learned.variables, expected.learned.variables
    )
    for name, values in expected.history.items():
        np.testing.assert_array_equal(result.history[name], values)


@pytest.fixture(scope="module")
def uninterrupted():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smdp.MultiStep, "miss", lambda *inputs: np.ones(10))
        return fit()


# Stopped and gone on ----------------------------------------------------------------------------


def test_directory_changes_nothing(tmp_path, uninterrupted):
    assert_same_run(fit(directory=tmp_path), uninterrupted)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(10, 61, 10))
    assert_same_run(fit(directory=tmp_path), uninterrupted)  # all done: nothing is trained


@pytest.mark.slow
def test_interrupted_run_ends_bit_identical(tmp_path, monkeypatch):
    """Ctrl-C while the metrics of an epoch are written, within the second window length."""
    objective = smdp.MultiStep((1, 2))
    written = []
    append = RunDirectory.append_metrics

    def interrupt(self, record):
        written.append(record)
        if len(written) == 4:
            raise KeyboardInterrupt
        append(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "append_metrics", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit(objective, directory=tmp_path, checkpoint_seconds=1e9)
    with pytest.warns(UserWarning, match="ends at update 30 of the 40 that were done"):
        resumed = fit(objective, directory=tmp_path)
    whole = fit(objective)
    jax.tree.map(np.testing.assert_array_equal, resumed.learned.variables, whole.learned.variables)


def test_interrupt_while_the_bar_is_drawn(tmp_path, monkeypatch, uninterrupted):
    """Ctrl-C between an epoch and the note of it: the checkpoint's number is that of its state."""

    class Bar(epochs.tqdm):
        drawn = 0

        def set_postfix(self, *args, **kwargs):
            Bar.drawn += 1
            if Bar.drawn == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(epochs, "tqdm", Bar)
        with pytest.raises(KeyboardInterrupt):
            fit(directory=tmp_path, checkpoint_seconds=1e9)
    assert_same_run(fit(directory=tmp_path), uninterrupted)


KILLED = """
import os, signal, sys
import jax, jax.numpy as jnp, optax
import orbax.checkpoint as ocp
import smdp_jax as smdp

def run(directory):
    sde = smdp.SDE(lambda t, x, args: -x, diffusion=0.5)
    ts = smdp.linear_grid(0.0, 1.0, 10)
    data = smdp.simulate(sde, jnp.linspace(-1, 1, 32)[:, None], ts, key=jax.random.key(0))
    return smdp.fit(
        sde, smdp.models.MLP((8,)), data, smdp.OneStep(), optax.adam(0.01), steps=40,
        key=jax.random.key(1), batch_size=16, epoch_steps=10, directory=directory,
        checkpoint_seconds=0.0, progress=False,
    )
"""
KILL = """
saves = []
wait = ocp.CheckpointManager.wait_until_finished

def kill(self):
    saves.append(1)
    if len(saves) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return wait(self)

ocp.CheckpointManager.wait_until_finished = kill
run(sys.argv[1])
"""


@pytest.mark.slow
def test_killed_process_ends_bit_identical(tmp_path):
    """SIGKILL while the third checkpoint is being written, then the same call in this process."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED + KILL, str(tmp_path / "killed")],
        cwd=Path(smdp.__file__).parents[1],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    finished = {
        int(p.name) for p in (tmp_path / "killed" / "checkpoints").iterdir() if p.name.isdigit()
    }
    assert max(finished) < 40
    namespace = {}
    exec(KILLED, namespace)
    resumed = namespace["run"](tmp_path / "killed")
    assert_same_run(resumed, namespace["run"](None))


@pytest.mark.slow
def test_same_call_with_functions_inside_goes_on(tmp_path):
    """A lambda in the objective or the network has another address in every call."""
    data = smdp.simulate(
        SDE, jax.random.normal(K_START, (64, 4)), TS, key=K_PATH, score_targets=smdp.PowerRamp()
    )

    alive = []

    def run():
        objective = smdp.PathScore(transform=lambda x: jnp.fft.rfft(x, norm="ortho"))
        model = smdp.models.MLP((4,), conditions=lambda args: None)
        alive.append((objective, model))
        return fit(objective, model=model, data=data, directory=tmp_path)

    assert_same_run(run(), run())


def test_damaged_checkpoint_falls_back(tmp_path, uninterrupted):
    fit(directory=tmp_path)
    newest = tmp_path / "checkpoints" / "60"
    for file in newest.rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 3)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 70, "lo')
    assert_same_run(fit(directory=tmp_path), uninterrupted)


@pytest.mark.slow
def test_leaves_of_two_dtypes(tmp_path):
    """A flow map of single and half precision is trained in a directory, and goes on."""

    class PerLeaf(nn.Module):
        @nn.compact
        def __call__(self, t, x, args):
            rate = self.param("rate", nn.initializers.constant(-1.0), ())
            return jax.tree.map(lambda leaf: rate.astype(leaf.dtype) * leaf, x)

    def step(t0, t1, x, args):
        return jax.tree.map(lambda leaf: (1 - (t1 - t0)).astype(leaf.dtype) * leaf, x)

    sde = smdp.SDE(step=step, diffusion=0.5)
    starts = {"single": jnp.ones((64, 2)), "half": jnp.ones((64, 3), jnp.float16)}
    data = smdp.simulate(sde, starts, TS, key=K_PATH)
    settings = {"sde": sde, "model": PerLeaf(), "data": data}
    assert_same_run(fit(directory=tmp_path, **settings), fit(**settings))
    assert_same_run(fit(directory=tmp_path, **settings), fit(**settings))


def test_another_run_is_refused(tmp_path, subtests, uninterrupted):
    fit(directory=tmp_path)
    targets = jax.tree.map(jnp.ones_like, DATA.xs)
    changes = {
        "steps": {"steps": 70},
        "key": {"key": jax.random.key(99)},
        "batch_size": {"batch_size": 8},
        "ema": {"ema": 0.5},
        "objective": {"objective": smdp.OneStep(form="penalised")},
        "model": {"model": Linear(2)},
        # Its first update is Adam's, and its state another one.
        "optimizer": {"optimizer": optax.sgd(0.03)},
        "precondition": {"precondition": True},
        "values": {"data": smdp.Trajectories(TS, 1.001 * DATA.xs)},
        "signs": {"data": smdp.Trajectories(TS, -DATA.xs)},
        "times": {"data": smdp.Trajectories(1.1 * TS, DATA.xs)},
        "targets": {"data": smdp.Trajectories(TS, DATA.xs, None, targets)},
        "initial": {"initial": uninterrupted.learned},
    }
    for name, change in changes.items():
        with subtests.test(name), pytest.raises(ValueError, match="holds another training run"):
            fit(directory=tmp_path, **change)


def lion(**settings):
    return optax.chain(optax.clip_by_global_norm(settings.pop("clip", 1.0)), optax.lion(**settings))


class Bent(nn.Module):
    """A network whose functions do not show in its name."""

    bend: Any = nn.tanh

    @nn.compact
    def __call__(self, t, x, args):
        return self.bend(self.param("a", nn.initializers.ones, ()) * x)


def alike(**changed):
    """Settings in which nothing that computes has a name or a number of its own to tell."""
    given = {"rate": 1.0, "jump": 0.0, "late": 0.5, "length": 300, "b1": 0.9, "decay": 1e-3}
    given |= {"clip": 1.0, "bend": jnp.tanh, "held": 1.0} | changed

    def drift(t, x, args):
        return -given["rate"] * x + jnp.where(jnp.abs(x) > 50, given["jump"], 0.0)

    sde = smdp.SDE(
        drift, diffusion=lambda t: 0.3 + jnp.where(abs(t - 0.5) < 0.1, given["late"], 0.0)
    )
    rate = optax.cosine_decay_schedule(0.01, given["length"])
    optimizer = lion(learning_rate=rate, **{k: given[k] for k in ("b1", "clip")})
    if given["decay"] != 1e-3:
        optimizer = lion(learning_rate=rate, weight_decay=given["decay"])
    held_out = smdp.Trajectories(TS, given["held"] * HELD_OUT.xs)
    settings = {"sde": sde, "model": Bent(given["bend"]), "validation": held_out, "steps": 10}
    return None, optimizer, settings


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"jump": 9.0}, "process is another one"),
        ({"late": 0.4}, "process is another one"),
        ({"length": 10**6}, "optimizer is another one"),
        ({"b1": 0.95}, "optimizer is another one"),
        ({"decay": 0.1}, "optimizer is another one"),
        ({"clip": 0.01}, "optimizer is another one"),
        ({"bend": jnp.sin}, ".*network is another one"),
        ({"held": 1.01}, "validation is another one"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_run_is_told_by_what_it_computes(tmp_path_factory, change, named):
    """Only ever one thing is another, where no first update and no name shows it."""
    folder = tmp_path_factory.getbasetemp() / "alike"
    objective, optimizer, settings = alike()
    fit(objective, optimizer, directory=folder, **settings)  # the same call goes on
    objective, optimizer, settings = alike(**change)
    with pytest.raises(ValueError, match="holds another training run: " + named + "; use"):
        fit(objective, optimizer, directory=folder, **settings)


def test_other_versions_are_refused(tmp_path, monkeypatch):
    fit(directory=tmp_path, steps=10)
    monkeypatch.setattr(smdp, "__version__", "0.0.9")
    with pytest.raises(ValueError, match=r"run: versions was .*'0\.1\.0'.* now .*0\.0\.9"):
        fit(directory=tmp_path, steps=10)


@pytest.mark.parametrize("text", ["", '{"step": 10, "loss": 1.0, "wind'])
def test_history_cut_short_is_said(tmp_path, text):
    fit(directory=tmp_path, steps=20)
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.warns(UserWarning, match="ends at update 0 of the 20 that were done"):
        fit(directory=tmp_path, steps=20)


def test_another_start_is_refused(tmp_path, uninterrupted):
    learned = uninterrupted.learned
    first = fit(directory=tmp_path, initial=learned)
    assert_same_run(fit(directory=tmp_path, initial=learned), first)
    other = replace(learned, variables=jax.tree.map(lambda v: 1.001 * v, learned.variables))
    with pytest.raises(ValueError, match="holds another training run: initial is another"):
        fit(directory=tmp_path, initial=other)


# Trouble ----------------------------------------------------------------------------------------


def from_update(first, rate):
    """Adam that turns into plain steps of ``rate`` at one update."""
    return optax.adam(lambda count: jnp.where(count < first, 0.03, rate))


def kept_in(folder):
    return {int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit()}


def test_diverged_loss_keeps_the_last_checkpoint(tmp_path):
    """Update 21 is the large one, update 22 the first with a loss of 1e60."""
    message = r"training diverged in update 22 \(window 1\): the loss is not finite, .*"
    with pytest.raises(
        smdp.TrainingDiverged,
        match=message + "the state of update 20 is kept in .*: give that one another directory",
    ):
        fit(None, from_update(20, 1e30), directory=tmp_path)
    assert max(kept_in(tmp_path)) == 20


@pytest.mark.parametrize("folder", [False, True])
def test_diverged_without_a_checkpoint_promises_none(tmp_path, folder):
    with pytest.raises(smdp.TrainingDiverged, match="try a smaller learning rate") as caught:
        fit(None, from_update(0, 1e30), directory=tmp_path if folder else None)
    assert "kept" not in str(caught.value)


def test_parameters_that_become_nan_in_the_last_update_of_an_epoch(tmp_path):
    """Every loss of that epoch is finite, but its state is not good."""
    message = "in update 20 .*: a parameter became NaN or infinite"
    with pytest.raises(smdp.TrainingDiverged, match=message):
        fit(None, from_update(19, math.nan), directory=tmp_path)
    assert max(kept_in(tmp_path)) == 10


def test_parameters_that_become_nan_in_the_very_last_update():
    with pytest.raises(smdp.TrainingDiverged):
        fit(None, from_update(59, math.nan))
