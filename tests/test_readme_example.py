"""The examples of the README run as written, the first one in smaller sizes.

Those of the documentation are in ``test_documentation.py``.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax import physics

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
SMALLER = {
    "shape=(2500, 1)": "shape=(64, 1)",
    "steps=20_000": "steps=40",
    "num_samples=1000": "num_samples=20",
    "windows=(1, 2, 4, 10)": "windows=(1, 10)",
}


def block_with(words, page=README):
    """Return the one python block of a page that holds these words."""
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    (code,) = [block for block in blocks if words in block]
    return code


@pytest.mark.slow
def test_pretrained_field():
    """From the shipped weights alone; what spreads there is what the exact posterior has."""
    seen = {}
    exec(compile(block_with('smdp.pretrained("heat")'), "README.md", "exec"), seen)
    heat, past = seen["heat"], seen["past"]
    assert past.samples.shape == (4, 32, 32)
    assert past.info.finite.all()
    spread = past.samples.var(axis=0, ddof=1).mean() / heat.system.posterior_point_variance()
    assert abs(spread - 1) < 0.3  # its standard error is 0.056: once in ten million runs


def example():
    """Return the example of the README with a drift, made smaller."""
    code = block_with("smdp.probability_flow(")
    for written, smaller in SMALLER.items():
        assert code.count(written) == 1, f"the README's example no longer has {written!r}"
        code = code.replace(written, smaller)
    return code


@pytest.mark.filterwarnings("ignore:one backward step misses")  # 40 updates do not learn a score
@pytest.mark.filterwarnings("ignore:.* paths were lost")
def test_readme_example():
    seen = {}
    exec(compile(example(), "README.md", "exec"), seen)
    data, past, path = seen["data"], seen["past"], seen["path"]
    assert data.ts.shape == (501,)
    assert data.xs.shape == (64, 501, 1)
    np.testing.assert_array_equal(jnp.abs(data.xs[:, 0]), 1)
    assert past.samples.shape == (20, 1)
    assert past.info.finite.shape == past.info.max_score.shape == (20,)
    assert (past.info.evaluations == 500).all()
    assert path.xs.shape == (501, 1)
    np.testing.assert_array_equal(path.xs[-1], seen["x_end"])
    score = seen["fit"].score(jnp.array(5.0), jnp.array([0.1]), None)
    assert score.shape == (1,)
    assert jnp.isfinite(score).all()
    assert seen["fit"].history["step"][-1] == 40
    assert isinstance(past.samples, jax.Array)


@pytest.fixture
def usual_promotion():
    """JAX's own, which exponax relies on."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("usual_promotion")
@pytest.mark.filterwarnings("ignore:one backward step misses")  # few updates
def test_a_simulator_of_another_library():
    """Under 30 lines; samples explain the end state, the simulator run backward does not.

    Measured: samples miss the end state by as much as the true start does, 2.6e-4 in the mean
    square, and the negated steps alone by 1.8e-2.
    """
    code = block_with("import exponax", ROOT / "docs" / "exponax.md")
    assert len(code.splitlines()) < 30
    seen = {}
    exec(compile(code, "README.md", "exec"), seen)
    step, data, ts = seen["step"], seen["data"], seen["ts"]
    x_end, samples = data.at(0, -1), seen["past"].samples
    assert samples.shape == (16, 64)

    def walk(step, x, ts):
        return jax.lax.scan(lambda x, t: (step(t[0], t[1], x, None), None), x, (ts[:-1], ts[1:]))[0]

    def miss(x):
        return float(jnp.mean((walk(step, x, ts) - x_end) ** 2))

    alone = walk(smdp.negated(step), x_end, ts[::-1])
    explained = float(np.mean([miss(x) for x in samples]))
    assert explained < 3 * miss(data.at(0, 0))
    assert explained < miss(alone) / 3


@pytest.mark.slow
def test_sensors(capsys):
    """On the affine process with its own score: a start of -1 is out of the question."""
    code = block_with("smdp.LinearObservation")
    assert len(code.splitlines()) <= 15
    for written, smaller in {"2048": "256", "num_paths=1000": "num_paths=64"}.items():
        assert code.count(written) == 1, written
        code = code.replace(written, smaller)
    affine = physics.Affine(rate=0.5, noise=0.04)
    ts, key = smdp.log_grid(0.0, 10.0, 64, offset=0.1), jax.random.key(0)
    x0 = affine.prior(key, 256)
    seen = {
        "smdp": smdp,
        "sde": affine.sde(),
        "score": affine.score,
        "ts": ts.at[jnp.abs(ts - 5).argmin()].set(5.0),
        "x": jnp.array([0.02]),
        "prior": lambda x, args: affine.log_density(ts[1], x),
        "key": key,
    }
    seen["data"] = smdp.simulate(seen["sde"], x0, seen["ts"], key=jax.random.key(1))
    exec(compile(code, "README.md", "exec"), seen)
    past = seen["past"]
    assert past.samples.shape == (256, 1)
    assert past.info.ess.shape == ts.shape
    # exp(-2.5) = 0.08 of the start is left at 5, where the noise has a std of 0.04.
    assert float(jnp.mean(past.samples > 0)) > 0.8
    assert "nats from the truth" in capsys.readouterr().out
