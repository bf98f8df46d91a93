"""Obstacles: what is drawn, what is refused, and connectedness against scipy's labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from smdp_jax.physics import Smoke

SMOKE = Smoke()


def parts(fluid):
    """Number of connected regions, by faces."""
    return ndimage.label(fluid)[1]


@pytest.fixture(scope="module")
def drawn():
    masks = jax.jit(SMOKE.geometries, static_argnums=1)(jax.random.key(0), 256)["obstacles"]
    return np.asarray(masks)


@pytest.mark.slow
def test_random_obstacles_keep_their_promises(drawn):
    assert drawn.shape == (256, 64, 64)
    assert drawn.dtype == bool
    assert all(parts(~mask) == 1 for mask in drawn)
    assert not (drawn & (np.asarray(SMOKE.inflow()) > 0)).any()
    assert not drawn[:, :, :12].any()  # nothing below y = 0.2
    assert drawn.any(axis=(1, 2)).all()
    SMOKE.check_obstacles(drawn[0])


@pytest.mark.slow
def test_random_obstacles_differ_and_follow_their_key(drawn):
    """Cells in the middle of the upper half are covered in about 13 % of the draws.

    The expected share comes from 20000 draws of the same shapes by numpy. 256 binary draws: the
    std is 0.021, so 5 of them give a false alarm of 6e-7.
    """
    assert len({mask.tobytes() for mask in drawn}) == 256
    key = jax.random.key(3)
    once, again = SMOKE.random_obstacles(key), SMOKE.random_obstacles(key)
    np.testing.assert_array_equal(once, again)
    expected = share_by_numpy(np.array([0.5, 0.75]), 20_000)
    assert abs(drawn[:, 32, 48].mean() - expected) < 5 * np.sqrt(expected / 256)


def share_by_numpy(point, draws):
    random = np.random.default_rng(0)
    lowest, highest = [0.01, 0.5], [1.0, 1.0]
    covered = np.zeros(draws, bool)
    for second in (False, True):
        there = (random.random(draws) < 0.5) | (not second)
        corner = random.uniform(lowest, highest, (draws, 2))
        sides = random.uniform([0.1, 0.05], [1.0, 0.12], (draws, 2))
        turned = random.random(draws) < 0.5
        sides[turned] = sides[turned][:, ::-1]
        other = corner + sides * np.where(random.random(draws) < 0.5, 1, -1)[:, None]
        low, high = np.minimum(corner, other), np.maximum(corner, other)
        covered |= there & ((point >= low) & (point <= high)).all(axis=1)
        there = (random.random(draws) < 0.5) | (not second)
        centre, radius = (
            random.uniform(lowest, highest, (draws, 2)),
            random.uniform(0.05, 0.12, draws),
        )
        covered |= there & (((point - centre) ** 2).sum(axis=1) <= radius**2)
    return covered.mean()


@pytest.mark.parametrize("density", [0.2, 0.35, 0.5])
def test_enclosed_cells_are_those_of_other_labels(density):
    """Random cells, near the threshold where paths wind most."""
    random = np.random.default_rng(1)
    fill = jax.jit(SMOKE.fill_enclosed)
    for _ in range(4):
        solid = random.random((64, 64)) < density
        solid[32, 6] = False  # the centre of the inflow
        labels, _ = ndimage.label(~solid)
        np.testing.assert_array_equal(fill(jnp.asarray(solid)), labels != labels[32, 6])


def test_shapes_cover_their_area():
    """Within a cell along the outline."""
    box = np.asarray(SMOKE.box((20, 40), (60, 55)))
    disc = np.asarray(SMOKE.disc((70.0, 70.0), 12))
    assert np.sum(box) * SMOKE.spacing**2 == pytest.approx(40 * 15, abs=110 * SMOKE.spacing)
    assert np.sum(disc) * SMOKE.spacing**2 == pytest.approx(np.pi * 144, rel=0.02)
    assert box[20, 30]  # centre (32.0, 47.7)
    assert not box[30, 20]
    assert not (box & disc).any()
    cut_off = np.asarray(SMOKE.disc((100, 100), 10))
    assert np.sum(cut_off) * SMOKE.spacing**2 == pytest.approx(np.pi * 25, rel=0.1)


def test_inflow_is_a_soft_disc():
    """Area pi 5^2; the soft edge of a convex shape adds a little."""
    for size, tolerance in ((32, 0.06), (64, 0.01), (256, 0.001)):
        inflow = Smoke(size).inflow()
        assert jnp.max(inflow) == 1
        total = float(jnp.sum(inflow)) * (100 / size) ** 2
        assert total == pytest.approx(25 * np.pi, rel=tolerance)
    np.testing.assert_allclose(inflow, inflow[::-1], atol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SMOKE.box((101, 50), (130, 60)), r"from \(101, 50\) to \(130, 60\) must cover"),
        (lambda: SMOKE.box((60, 50), (40, 60)), "must cover a cell of the box .*, got none"),
        (lambda: SMOKE.box((50, 50), (50.1, 60)), "outside, or too thin"),
        (lambda: SMOKE.disc((50, 50), -5), "radius of a disc must be finite and positive, got -5"),
        (lambda: SMOKE.disc((50, -20), 12), r"disc of radius 12 at \(50, -20\) must cover a cell"),
        (
            lambda: SMOKE.check_obstacles(SMOKE.box((52, 0), (60, 30))),
            r"leave the inflow free, a disc of radius 5 at \(50, 10\), got 13 of its cells covered",
        ),
        (
            lambda: SMOKE.check_obstacles(SMOKE.box((0, 40), (100, 50))),
            r"got 2048 fluid cells, one of them at \(0.78\d*, 50.78\d*\)",
        ),
        (
            lambda: SMOKE.check_obstacles(np.zeros((32, 32), bool)),
            r"must have shape \(64, 64\) of the grid, got \(32, 32\)",
        ),
    ],
)
def test_bad_obstacles(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_enclosed_cells_can_be_filled():
    mask = SMOKE.fill_enclosed(SMOKE.box((0, 40), (100, 50)))
    SMOKE.check_obstacles(mask)
    assert mask[:, 32:].all()
    SMOKE.check_obstacles(np.zeros((64, 64)))
