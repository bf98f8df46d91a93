"""What ranks of unseen starts prove: kinds of misses, false alarms, and too few pairs."""

import numpy as np
import pytest

from smdp_jax.scores.verdict import LEVELS, Starts, said_of, within


def starts_of(truth, draws, places=None):
    """Ranks of entries, each of them looked at: truth (pairs, entries), draws (16, ...)."""
    ranks = (draws < truth).sum(axis=0)
    places = np.zeros_like(truth) if places is None else places
    nearer = (((draws - places) ** 2).sum(axis=-1) < ((truth - places) ** 2).sum(axis=-1)).sum(0)
    inside = within(16, LEVELS)[:, ranks].mean(axis=-1).T
    entries = ranks.shape[1]
    return Starts({str(i): ranks[:, i] for i in range(entries)}, inside, nearer, 16, entries, 10**6)


def correlated(rng, *shape):
    """Unit normal entries, half of whose variance they share."""
    own, shared = rng.normal(size=shape), rng.normal(size=(*shape[:-1], 1))
    return np.sqrt(0.5) * (own + shared)


def test_one_lump_in_the_place_of_two_is_warned_of():
    """Right mean and right width, which coverage does not tell apart."""
    rng = np.random.default_rng(0)
    lumps = np.sign(rng.normal(size=(60, 1))) + 0.1 * rng.normal(size=(60, 1))
    (said,) = said_of(starts_of(lumps, rng.normal(size=(16, 60, 1))))
    assert "of another shape" in said


@pytest.mark.parametrize(("pairs", "entries"), [(240, 1), (150, 6), (700, 3)])
def test_right_posteriors_are_warned_of_in_one_fit_of_a_hundred(pairs, entries):
    """Entries that depend on each other; 13 of 400 are exceeded by chance 2e-4."""
    rng, said = np.random.default_rng(pairs), 0
    for _ in range(400):
        truth, places = correlated(rng, pairs, entries), rng.uniform(-3, 3, (pairs, entries))
        found = said_of(starts_of(truth, correlated(rng, 16, pairs, entries), places))
        assert not any("too few" in sentence for sentence in found)
        said += bool(found)
    assert said <= 13


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda x: 1.25 * x, "too narrow"),
        (lambda x: 0.8 * x, "too wide"),
        (lambda x: x + 0.3, "biased"),
        (lambda x: np.sinh(1.3 * x) / 2, "of another shape"),
    ],
)
def test_misses_are_told_by_their_kind(change, kind):
    """Draws of a unit normal; 600 pairs show these misses at more than 6 standard errors."""
    rng = np.random.default_rng(0)
    truth, draws = change(correlated(rng, 600, 3)), correlated(rng, 16, 600, 3)
    (said,) = said_of(starts_of(truth, draws))
    found, mended = said.split("What mends it")
    assert f"({kind})" in found.split("0: ")[1]
    assert kind in mended


def test_dependence_that_draws_lack_is_told_where_every_entry_is_right():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(800, 1)) * np.ones((1, 6))
    truth = 0.95 * shared + np.sqrt(1 - 0.95**2) * rng.normal(size=(800, 6))
    places = rng.uniform(-2, 2, (800, 6))
    (said,) = said_of(starts_of(truth, rng.normal(size=(16, 800, 6)), places))
    assert "joint law" in said
    assert not any(kind in said for kind in ("narrow", "wide", "biased", "shape"))


def test_too_few_unseen_paths_to_tell_are_told():
    """19 pairs of two numbers, right: what they could miss is what so many binomials vary by."""
    rng = np.random.default_rng(3)
    truth, draws = correlated(rng, 19, 2), correlated(rng, 16, 19, 2)
    (said,) = said_of(starts_of(truth, draws))
    assert "the 19 of 1000000 unseen paths" in said
    assert "too few" in said
    # 3.5 standard errors, more for so few, of 0.5 / sqrt(38 ... 19).
    seen = int(said.split("±")[1].split("%")[0])
    assert 28 < seen < 60


def test_what_few_paths_miss_asks_for_paths_first():
    rng = np.random.default_rng(4)
    truth, draws = 4 * correlated(rng, 19, 2), correlated(rng, 16, 19, 2)
    (said,) = said_of(starts_of(truth, draws))
    found, mended = said.split("What mends it: ")
    assert "too narrow" in found
    assert mended.startswith("more paths first")


def test_a_handful_of_pairs_tells_no_shape():
    """However far off: four ranks at the ends may be chance, and more paths are asked for."""
    rng = np.random.default_rng(4)
    truth, draws = 3 + correlated(rng, 4, 2), correlated(rng, 16, 4, 2)
    (said,) = said_of(starts_of(truth, draws))
    assert "too few" in said
    assert "may be off by ±53%" in said
