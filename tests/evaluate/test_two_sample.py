"""The classifier test on laws that are one, and on broken ones that it has to tell."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from smdp_jax import evaluate

DRAWS, ENTRIES = 150, 4


def draws(seed, kind="right"):
    """Draws (draws, 2, 2) of a normal law with correlation 0.8 between entries, or a wrong one."""
    rng = np.random.default_rng(seed)
    own = rng.standard_normal((DRAWS, ENTRIES))
    x = np.sqrt(0.8) * rng.standard_normal((DRAWS, 1)) + np.sqrt(0.2) * own
    x = {"right": x, "shifted": x + 0.8, "wide": 1.7 * x, "narrow": 0.5 * x, "wrong law": own}[kind]
    return x.reshape(DRAWS, 2, 2).astype(np.float32)


@pytest.mark.parametrize("kind", ["shifted", "wide", "narrow", "wrong law"])
def test_wrong_laws_are_told(kind):
    """The last has the right marginals and no correlation."""
    found = evaluate.c2st(draws(1, kind), draws(2), key=jax.random.key(0))
    assert found.accuracy > found.null_high
    assert found.p_value == 1 / 200  # a right law gets there at a rate of 0.005


@pytest.mark.slow
def test_accuracy_is_the_best_possible_one():
    """Laws N(0, 1) and N(m, 1): Phi(m / 2)."""
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((2, 500)).astype(np.float32)
    found = evaluate.c2st(x + 2.0, y, key=jax.random.key(1))
    # Standard error of 1000 tosses 0.0116; 4 of them, and 0.01 for what is learned from 800.
    assert abs(found.accuracy - stats.norm.cdf(1.0)) < 0.057
    apart = evaluate.c2st(x + 100, y, key=jax.random.key(1))
    assert apart.accuracy > 0.99


@pytest.mark.slow
def test_false_alarms_come_at_their_rate():
    """200 pairs of one law: p-values at most 0.05 in 5 %, accuracies in the band of 90 % so often.

    Standard errors 0.0154 and 0.0212; 4 of them, false-alarm rate 1e-4.
    """
    keys = jax.random.split(jax.random.key(5), 200)

    @jax.jit
    def one(key):
        k_draws, k_test = jax.random.split(key)
        x, y = jax.random.normal(k_draws, (2, 50, 2))
        return evaluate.c2st(x, y, key=k_test, permutations=99, folds=3, level=0.9)

    found = jax.lax.map(one, keys)
    assert abs(np.mean(found.p_value <= 0.05) - 0.05) < 0.062
    inside = (found.accuracy >= found.null_low) & (found.accuracy <= found.null_high)
    assert np.mean(inside) > 0.9 - 0.085
    assert abs(jnp.mean(found.accuracy) - 0.5) < 0.02  # standard error below 0.004


def test_bad_inputs():
    x, y = draws(0), draws(1)
    key = jax.random.key(0)
    with pytest.raises(
        ValueError,
        match=r"\(150, 2, 2\), the shape of samples, got \(149, 2, 2\)",
    ):
        evaluate.c2st(x, y[1:], key=key)
    with pytest.raises(ValueError, match="at least 50 draws, got 49"):
        evaluate.c2st(x[:49], y[:49], key=key)
    with pytest.raises(ValueError, match="must be at least 2, got 1"):
        evaluate.c2st(x, y, key=key, folds=1)
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\), got 1"):
        evaluate.c2st(x, y, key=key, level=1.0)
    with pytest.raises(ValueError, match="must vary, got one state in all draws"):
        evaluate.c2st(np.ones_like(x), np.ones_like(x), key=key)
    x[[3, 3, 9], 0, [0, 1, 0]] = np.nan
    with pytest.raises(ValueError, match="samples must be finite, got 3 lost of 600 entries"):
        evaluate.c2st(x, y, key=key)
