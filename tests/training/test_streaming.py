"""Training on a stream: the same as in memory where one block holds all, and resumed bit by bit."""

import dataclasses

import jax
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax import datasets
from smdp_jax.training.checkpoints import RunDirectory
from tests import linear_fit
from tests.linear_fit import SDE

pytestmark = pytest.mark.usefixtures("no_step_miss")

KEY = jax.random.key(4)
TS = smdp.linear_grid(0.0, 1.0, 6)


def paths(key, samples=32):
    k_start, k_path = jax.random.split(key)
    start = jax.random.normal(k_start, (samples, 1))
    return smdp.simulate(SDE, start, TS, key=k_path)


def fit(data, objective=None, **settings):
    return linear_fit.fit(objective, data=data, **{"steps": 70, "batch_size": 8} | settings)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a.learned.variables, b.learned.variables)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "paths.zarr"
    return datasets.write(folder, paths, chunks=5, key=jax.random.key(1), progress=False)


@pytest.mark.slow
def test_one_block_is_training_in_memory(tmp_path):
    folder = datasets.write(tmp_path / "a", paths, chunks=1, key=KEY, progress=False)
    assert_same(fit(datasets.open_stream(folder)), fit(datasets.open_trajectories(folder)))


@dataclasses.dataclass(frozen=True)
class Watched:
    """A stream that notes which blocks were asked for."""

    stream: datasets.Stream
    seen: list

    @property
    def fingerprint(self):
        return self.stream.fingerprint

    def blocks(self, key, first=0):
        for number, block in enumerate(self.stream.blocks(key, first), first):
            self.seen.append(number)
            yield block


def test_every_epoch_takes_the_next_block(written):
    # 70 updates for three windows: 23, 24, 23, of 3 epochs each.
    watched = Watched(datasets.open_stream(written), [])
    fit(watched, smdp.MultiStep((1, 2, 1)))
    first_look, *epochs = watched.seen
    assert first_look == 0
    assert epochs == list(range(9))


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [2, 3, 5])
def test_resumed_run_ends_bit_identical(tmp_path, monkeypatch, written, epochs):
    """Ctrl-C after some epochs: within a window length, at the end of one, within the next."""
    stream = datasets.open_stream(written, chunks_per_block=2)
    objective = smdp.MultiStep((1, 2, 1))
    append, noted = RunDirectory.append_metrics, []

    def interrupt(self, record):
        append(self, record)
        noted.append(record)
        if len(noted) > epochs:  # Ctrl-C waits until an epoch is noted
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "append_metrics", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit(stream, objective, directory=tmp_path)
    watched = Watched(stream, [])
    resumed = fit(watched, objective, directory=tmp_path)
    assert watched.seen[1] > 0
    assert_same(resumed, fit(stream, objective))


def test_directory_of_another_stream_is_refused(tmp_path, written):
    fit(datasets.open_stream(written), directory=tmp_path)
    with pytest.raises(ValueError, match=r"another training run: .*data is another one"):
        fit(datasets.open_stream(written, chunks_per_block=2), directory=tmp_path)
    with pytest.raises(ValueError, match="another training run: epoch_steps was 10, now 5"):
        fit(datasets.open_stream(written), directory=tmp_path, epoch_steps=5)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A stream of given blocks, that ends."""

    parts: list
    fingerprint: str = "blocks"

    def blocks(self, key, first=0):
        yield from self.parts[first:]


def test_stream_that_ends():
    with pytest.raises(ValueError, match=r"must go on without end, got a stream of 3 blocks"):
        fit(Blocks([paths(KEY, 8)] * 3))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (paths(KEY, 8).xs.at[2, 3].set(np.nan), "first in sample 2 at t=0.5"),
        (
            paths(KEY, 7).xs,
            r"blocks of data must be alike, after .*\[8, 7, 1\].*, got .*\[7, 7, 1\]",
        ),
    ],
)
def test_every_block_is_checked(block, message):
    bad = smdp.Trajectories(TS, block)
    with pytest.raises(ValueError, match=message):
        fit(Blocks([paths(KEY, 8), paths(KEY, 8), bad, bad]))
