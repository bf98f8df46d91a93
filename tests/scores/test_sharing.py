"""One file per learned term: everything comes back, and nothing else is taken for it."""

import dataclasses
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax.scores.step import StepScale

pytestmark = pytest.mark.usefixtures("compiles_quickly")

TS = smdp.linear_grid(0.0, 1.0, 4)
X = {"a": jnp.array([0.2, -0.3]), "b": jnp.array(0.7)}
MODEL = smdp.models.MLP((3,))
VARIABLES = MODEL.init(jax.random.key(0), TS[0], X, None)
DATA = smdp.Trajectories(
    TS,
    {"a": jax.random.normal(jax.random.key(1), (9, 5, 2)), "b": jnp.arange(45.0).reshape(9, 5)},
)
SDE = smdp.SDE(lambda t, x, args: jax.tree.map(jnp.negative, x), diffusion=0.5)
SCALE = smdp.Preconditioner.of(SDE, DATA)
LEARNED = {
    "score": smdp.LearnedScore(MODEL, VARIABLES, SCALE, ts=TS[jnp.array([0, -1])]),
    "plain score": smdp.LearnedScore(MODEL, VARIABLES),
    "correction": smdp.StepCorrection(MODEL, VARIABLES, SCALE, ts=TS, noise_level=0.5),
    "step": smdp.LearnedStep(MODEL, VARIABLES, StepScale.of(DATA)),
    "kernel without a network": smdp.estimate_kernel(SDE, DATA),
    "kernel of modes": smdp.estimate_kernel(SDE, DATA, transform="periodic", grid_axes=0),
    "kernel from the physics": smdp.estimate_kernel(SDE, DATA, base="inverse"),
    "half precision": smdp.LearnedScore(
        MODEL, jax.tree.map(lambda v: v.astype(jnp.bfloat16), VARIABLES)
    ),
}


@pytest.mark.parametrize("name", LEARNED)
def test_comes_back(tmp_path, name):
    learned = LEARNED[name]
    smdp.save(learned, tmp_path / "term")
    again = smdp.load_score(tmp_path / "term", learned.model and smdp.models.MLP((3,)), SDE)
    assert type(again) is type(learned)
    assert jax.tree.structure(again) == jax.tree.structure(learned)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(learned), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_kernel_from_the_physics_needs_the_process(tmp_path):
    smdp.save(LEARNED["kernel from the physics"], tmp_path / "term")
    with pytest.raises(ValueError, match=r"sde must be the process of the kernel, .* got None"):
        smdp.load_score(tmp_path / "term", None)


def written(tmp_path):
    smdp.save(LEARNED["score"], tmp_path / "term")
    return tmp_path / "term"


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="must be a file that save wrote, got"):
        smdp.load_score(tmp_path / "none", MODEL)


@pytest.mark.parametrize("model", [smdp.models.MLP((4,)), smdp.models.MLP((3, 3))])
def test_other_network(tmp_path, model):
    with pytest.raises(ValueError, match=r"must be the network of .*MLP.* got MLP"):
        smdp.load_score(written(tmp_path), model)


@pytest.mark.parametrize("place", [-1, -200, 40, 100])
def test_damaged(tmp_path, place):
    file = written(tmp_path)
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        smdp.load_score(file, MODEL)
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is damaged"):
        smdp.load_score(file, MODEL)


def test_later_version(tmp_path):
    file = written(tmp_path)
    file.write_bytes(file.read_bytes().replace(b"term 1 ", b"term 2 ", 1))
    with pytest.raises(ValueError, match=re.escape("must be of version 1, got version 2")):
        smdp.load_score(file, MODEL)


@pytest.mark.parametrize("content", [b"", b"\n", pickle.dumps(len), b"PK\x03\x04", b"\x93NUMPY"])
def test_file_of_another_kind(tmp_path, content):
    file = tmp_path / "term"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="must begin as what save writes does, got"):
        smdp.load_score(file, MODEL)


@pytest.mark.parametrize("term", [len, lambda t, x, args: x, VARIABLES])
def test_what_was_not_learned(tmp_path, term):
    with pytest.raises(TypeError, match=r"score must be learned, such as fit\.score, got"):
        smdp.save(term, tmp_path / "term")
    assert not list(tmp_path.iterdir())


def test_an_old_file_stays_where_the_new_one_fails(tmp_path):
    file = written(tmp_path)
    before = file.read_bytes()
    broken = dataclasses.replace(LEARNED["plain score"], variables={"params": {"w": object()}})
    with pytest.raises(TypeError, match=r"must hold arrays and numbers, .* got object"):
        smdp.save(broken, file)
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["term"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:one backward step misses")
@pytest.mark.filterwarnings("ignore:.* paths left the range of the training paths")
def test_learned_kernel_samples_the_same(tmp_path):
    kernel = smdp.fit(
        SDE, MODEL, DATA, steps=2, key=jax.random.key(0), batch_size=4, progress=False
    ).kernel
    smdp.save(kernel, tmp_path / "term")
    again = smdp.load_score(tmp_path / "term", smdp.models.MLP((3,)))
    pasts = [
        smdp.sample_posterior(SDE, k, X, TS, num_samples=3, key=jax.random.key(2)).samples
        for k in (kernel, again)
    ]
    jax.tree.map(np.testing.assert_array_equal, *pasts)


def test_kernel_with_functions_of_its_own(tmp_path):
    same = lambda field: field
    kernel = smdp.estimate_kernel(SDE, DATA, transform=(same, same), grid_axes=0)
    with pytest.raises(TypeError, match=r"no functions of its own .* got Custom"):
        smdp.save(kernel, tmp_path / "term")
