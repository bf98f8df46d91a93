"""The example of the README runs as written, but for the sizes."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

README = Path(__file__).parents[1] / "README.md"
SMALLER = {
    "shape=(2500, 1)": "shape=(64, 1)",
    "steps=20_000": "steps=40",
    "num_samples=1000": "num_samples=20",
    "windows=(1, 2, 4, 10)": "windows=(1, 10)",
}


def example():
    """Return the one python block of the README that samples a posterior, made smaller."""
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.M | re.S)
    (code,) = [block for block in blocks if "smdp.sample_posterior(" in block]
    for written, smaller in SMALLER.items():
        assert code.count(written) == 1, f"the README's example no longer has {written!r}"
        code = code.replace(written, smaller)
    return code


@pytest.mark.filterwarnings("ignore:one backward step misses")  # 40 updates do not learn a score
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
