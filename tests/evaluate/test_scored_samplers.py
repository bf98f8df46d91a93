"""One call scores a sampler on a stored task: the exact one passes, wrong ones are told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax import evaluate

CASES, VARIANCE = 400, 0.5
STD = (VARIANCE / (1 + VARIANCE)) ** 0.5


def posterior(ends, draws, key, shift=0.0, width=1.0):
    """Prior N(0, 1), end = start + noise of variance 1/2: exact, or made wrong."""
    z = jax.random.normal(key, (ends.shape[0], draws, *ends.shape[1:]))
    return jnp.asarray(ends)[:, None] / (1 + VARIANCE) + STD * (shift + width * z)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "tasks.zarr"
    rng = np.random.default_rng(0)
    truths = rng.standard_normal((CASES, 2), np.float32)
    ends = truths + VARIANCE**0.5 * rng.standard_normal(truths.shape, np.float32)
    reference = np.asarray(posterior(ends, 19, jax.random.key(1)))
    task = {"truths": truths, "ends": ends, "reference": reference}
    evaluate.write_tasks(path, {"gauss": task}, version="1")
    return path


@pytest.mark.slow
def test_exact_sampler_passes(store):
    found = evaluate.score_sampler(posterior, store, "gauss", key=jax.random.key(2))
    assert abs(found.crps - 1) < 0.05  # both within 1 % of the exact score; 4 standard errors
    assert abs(found.energy - 1) < 0.05
    assert abs(found.spread_skill - 1) < 0.1
    assert min(found.sbc_p, found.tarp_p) > 1e-4  # false-alarm rate 2e-4
    assert abs(found.told.accuracy - 0.5) < 0.08  # 800 draws, 4.5 standard errors


@pytest.mark.parametrize("fault", [{"shift": 0.8}, {"width": 0.5}, {"width": 1.8}])
def test_wrong_samplers_are_told(store, fault):
    wrong = lambda ends, draws, key: posterior(ends, draws, key, **fault)
    found = evaluate.score_sampler(wrong, store, "gauss", key=jax.random.key(3))
    assert found.crps > 1.05
    assert found.sbc_p < 1e-6
    assert found.told.accuracy > found.told.null_high


def test_what_does_not_fit_is_refused(store, tmp_path):
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"task must be one of \['gauss'\], got 'heat'"):
        evaluate.score_sampler(posterior, store, "heat", key=key)
    with pytest.raises(ValueError, match="num_samples must be at least 9, got 3"):
        evaluate.score_sampler(posterior, store, "gauss", key=key, num_samples=3)
    lost = lambda ends, draws, key: posterior(ends, draws, key).at[7, 0].set(jnp.nan)
    with pytest.raises(ValueError, match=r"samples must be finite, .* of 400 cases \(7\)"):
        evaluate.score_sampler(lost, store, "gauss", key=key)
    task = evaluate.read_task(store, "gauss")
    with pytest.raises(FileExistsError, match="must not exist yet"):
        evaluate.write_tasks(store, {"gauss": task}, version="2")
    with pytest.raises(ValueError, match="task a must hold reference"):
        evaluate.write_tasks(
            tmp_path / "b", {"a": {"truths": task["truths"], "ends": task["ends"]}}, version="1"
        )
    import zarr

    evaluate.write_tasks(tmp_path / "c", {"gauss": task}, version="1")
    zarr.open_group(str(tmp_path / "c"), mode="r+")["gauss/ends"][3] = 0.0
    with pytest.raises(ValueError, match="ends must be as it was written"):
        evaluate.read_task(tmp_path / "c", "gauss")
    with pytest.raises(
        ValueError, match=r"sampler returns must have shape \(400, 19, 2\), .* got \(400, 7, 2\)"
    ):
        evaluate.score_sampler(lambda e, n, k: posterior(e, 7, k), store, "gauss", key=key)
    with pytest.raises(TypeError, match="a function that returns an array, got"):
        evaluate.score_sampler(lambda e, n, k: [1.0], store, "gauss", key=key)
    same = lambda x: {"one": jnp.ones(())}
    with pytest.raises(ValueError, match="observables must differ between cases, got 1 constants"):
        evaluate.score_sampler(posterior, store, "gauss", key=key, observables=same)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {name: x[:30] for name, x in t.items()}, "at least 50 cases, .* got 30"),
        (lambda t: t | {"reference": t["reference"][:, :1]}, "2 draws per case, got 1"),
        (lambda t: t | {"ends": t["ends"][:-3]}, r"ends of gauss must have .* got \(397, 2\)"),
        (lambda t: t | {"ends": 0 * t["ends"]}, "ends must vary, got 0 everywhere"),
        (lambda t: t | {"ends": t["ends"] / 0}, "ends must be finite, got 800 lost"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_tasks_that_judge_nothing_are_not_written(store, tmp_path, change, message):
    task = evaluate.read_task(store, "gauss")
    with pytest.raises(ValueError, match=message):
        evaluate.write_tasks(tmp_path / "d", {"gauss": change(task)}, version="1")
    with pytest.raises(ValueError, match=r"looks of gauss must be one of .* got 'side'"):
        evaluate.write_tasks(tmp_path / "d", {"gauss": task}, version="1", looks={"gauss": "side"})
    with pytest.raises(ValueError, match=r"looks must name tasks of \['gauss'\], got \['a'\]"):
        evaluate.write_tasks(tmp_path / "d", {"gauss": task}, version="1", looks={"a": "sides"})


@pytest.mark.parametrize("gain", [1.0, 0.2])
def test_of_two_points_the_side_is_judged(tmp_path, gain):
    """A sampler that ends near the points is right if it finds each as often as it should."""
    rng = np.random.default_rng(4)
    truths = rng.choice([-1.0, 1.0], (300, 1)).astype(np.float32)
    ends = truths + rng.standard_normal(truths.shape, np.float32)

    def sampler(ends, draws, key, gain=1.0, off=0.0):
        plus = jax.nn.sigmoid(2 * gain * jnp.asarray(ends))
        return jnp.where(jax.random.uniform(key, (300, draws)) < plus, 1.0, -1.0)[..., None] + off

    reference = np.asarray(sampler(ends, 19, jax.random.key(5)))
    task = {"truths": truths, "ends": ends, "reference": reference}
    evaluate.write_tasks(tmp_path / "t", {"a": task}, version="1", looks={"a": "sides"})
    near = lambda e, n, k: sampler(e, n, k, gain, 1e-3)
    found = evaluate.score_sampler(near, tmp_path / "t", "a", key=jax.random.key(6))
    if gain == 1:
        assert abs(found.crps - 1) < 0.15
        assert min(found.sbc_p, found.tarp_p) > 1e-4  # false-alarm rate 2e-4
        assert found.told.accuracy < 0.6  # 600 draws, 4.5 standard errors
    else:
        assert found.crps > 1.15
