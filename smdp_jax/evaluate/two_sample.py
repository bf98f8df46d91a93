"""Can a classifier tell draws of a sampler from exact ones? (Lopez-Paz & Oquab 2017, C2ST).

    accuracy of a classifier on draws that it has not seen: 1/2 if the two laws are one

The classifier is kernel ridge regression on the labels, kernels of three widths about the median
distance. Its predictions are linear in the labels, so the same factorisation serves the labels
drawn at random that give the null band: an exact permutation test.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Real

from smdp_jax.checks import check_holds, check_positive, check_within, concrete
from smdp_jax.evaluate.arrays import AnyArray, as_float, check_none_lost, check_same_shape

FEWEST = 50
"""Draws of each kind below which the null band is as wide as what should be told."""

_RIDGE = 1.0  # of 0.01, 1 and 10 the one that told most faults, in 2 and in 12 entries


class TwoSample(NamedTuple):
    """Accuracy of a classifier between two sets of draws, and what chance gives.

    Parameters
    ----------
    accuracy : array
        Share of held-out draws that are told right: 0.5 if nothing tells them apart, 1 if all does.
    null_low, null_high, p_value : array
        Band that holds the accuracy with the chosen probability where the two laws are one; chance
        of one at least as large there.
    """

    accuracy: Float[Array, ""]
    null_low: Float[Array, ""]
    null_high: Float[Array, ""]
    p_value: Float[Array, ""]


def c2st(
    samples: Real[AnyArray, "_draws *_state"],
    reference: Real[AnyArray, "_draws *_state"],
    *,
    key: Key[Array, ""],
    folds: int = 5,
    permutations: int = 199,
    level: float = 0.95,
) -> TwoSample:
    """Classifier two-sample test, cross-validated, with a null band from permuted labels.

    Over many cases, append each observation to both its sample and its reference: joint laws are
    compared then. Costs O(draws^3): some thousand draws.

    Parameters
    ----------
    samples, reference : array
        Draws of the sampler, and as many exact ones: (draws, *state), at least 50, independent.
    key, folds
        Chooses folds and permutations; parts, each told by a classifier trained on the others.
    permutations, level : int, float
        Random labellings for the null band, at least 19, of which p-values are multiples of
        1 / (permutations + 1); probability of the band, in (0, 1).

    Returns
    -------
    TwoSample
        Accuracy, its null band and p-value.

    Raises
    ------
    ValueError
        If draws are too few, lost, of two shapes, or all the same, or a setting is out of range.
    """
    check_holds("samples", samples.shape[0] if samples.ndim else 0, FEWEST, "draws")
    check_same_shape(samples=samples, reference=reference)  # so that chance is 1/2
    check_positive(least=2, folds=folds)
    check_positive(least=19, permutations=permutations)
    check_within("(0, 1)", level=level)
    check_none_lost(samples=samples, reference=reference)
    both = jnp.concatenate([as_float("samples", samples), as_float("reference", reference)])
    both = both.reshape(both.shape[0], -1)
    if concrete(both) and (both == both[:1]).all():
        raise ValueError("samples and reference must vary, got one state in all draws")
    return _test(both, key, folds, permutations, level)


@partial(jax.jit, static_argnums=(2, 3, 4))
def _test(both: Array, key: Array, folds: int, permutations: int, level: float) -> TwoSample:
    """Test rows (2 draws, entries), samples first."""
    k_folds, k_labels = jax.random.split(key)
    spread = jnp.std(both, axis=0, keepdims=True)
    rows = (both - both.mean(axis=0, keepdims=True)) / jnp.where(spread > 0, spread, 1)
    kernel = _kernel(rows)
    count = rows.shape[0]
    own = jnp.where(jnp.arange(count) < count // 2, 1.0, -1.0).astype(rows.dtype)
    keys = jax.random.split(k_labels, permutations)
    drawn = jax.vmap(lambda k: jax.random.permutation(k, own))(keys)
    labels = jnp.concatenate([own[None], drawn]).T
    fold = jax.random.permutation(k_folds, jnp.arange(count) % folds)

    def predict(i: Array) -> Array:
        """Predictions for one fold: 1 / noise is 0 there, so that its labels do not count."""
        seen = (fold != i).astype(rows.dtype)
        masked = seen[:, None] * kernel * seen[None, :]
        # The labels' mean tells nothing, and is of the other sign in the part that is held out.
        mean = (seen @ labels) / seen.sum()
        centred = seen[:, None] * (labels - mean[None])
        ridge = _RIDGE * jnp.eye(count, dtype=rows.dtype)
        weights = jax.scipy.linalg.solve(masked + ridge, centred, assume_a="pos")
        return (1 - seen)[:, None] * (kernel @ weights)

    predicted = jax.lax.map(predict, jnp.arange(folds)).sum(axis=0)
    right = (jnp.sign(predicted) == labels).astype(rows.dtype)
    # A prediction of exactly 0 is a coin.
    found = jnp.mean(jnp.where(predicted == 0, 0.5, right), axis=0)
    accuracy, null = found[0], found[1:]
    tails = jnp.array([(1 - level) / 2, (1 + level) / 2], rows.dtype)
    low, high = jnp.quantile(null, tails)
    as_large = jnp.sum(null >= accuracy).astype(rows.dtype)
    finite = jnp.all(jnp.isfinite(both))
    p_value = jnp.where(finite, (1 + as_large) / (1 + permutations), jnp.nan)
    return TwoSample(jnp.where(finite, accuracy, jnp.nan), low, high, p_value)


def _kernel(rows: Array) -> Array:
    """Mean of Gaussian kernels of half, one and two times the median distance."""
    square = jnp.sum(rows**2, axis=1)
    apart = jnp.maximum(square[:, None] + square[None] - 2 * rows @ rows.T, 0)
    median = jnp.median(apart)
    scale = jnp.where(median > 0, median, 1)
    widths = jnp.array([0.5, 1.0, 2.0], rows.dtype).reshape(3, 1, 1)
    return jnp.mean(jnp.exp(-apart[None] / (2 * widths**2 * scale)), axis=0)
