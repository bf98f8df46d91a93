"""Figures of samples: densities, contours, weights, and what leaves the range."""

import numpy as np
import pytest

from smdp_jax import Conditioned
from smdp_jax.evaluate import plots
from smdp_jax.evaluate.plots import pairs

RNG = np.random.default_rng(0)


def test_posterior_histogram_is_a_density() -> None:
    samples = np.append(RNG.normal(size=9_000), np.full(1_000, np.nan))
    grid = np.linspace(-8, 8, 201)
    figure = plots.posterior_histogram(samples, grid, np.exp(-(grid**2) / 2))
    heights, edges, _ = figure.axes[0].patches[0].get_data()
    # One tenth of the samples is nowhere: it is missing from the histogram, and said.
    np.testing.assert_allclose(np.sum(heights * np.diff(edges)), 0.9)
    assert "1,000 outside" in figure.axes[0].get_title(loc="left")


def test_contours_hold_the_shares_they_say() -> None:
    """Half of a Gaussian lies within radius sqrt(2 log 2) = 1.18, 90 % within 2.15."""
    draws = np.random.default_rng(1).normal(size=(20_000, 2))
    contours = plots.pair_plot(draws, bins=40).axes[2].collections[0]
    rings = [path.vertices for path in contours.get_paths()]
    radii = sorted(np.median(np.hypot(*ring.T)) for ring in rings)
    np.testing.assert_allclose(radii, [1.18, 2.15], rtol=0.1)


def test_rank_histogram_of_uniform_ranks_is_flat() -> None:
    figure = plots.rank_histogram(np.arange(40), 39, bins=7)
    heights = figure.axes[0].patches[1].get_data().values
    np.testing.assert_allclose(heights, 1)


def test_profiles_and_space_time() -> None:
    points, ts = np.arange(8) / 8, np.linspace(0, 1, 5)
    samples = RNG.normal(size=(3, 8))
    wild = 1e3 * np.ones(8)
    figure = plots.profiles(points, samples[0], samples[1], samples, 2 * samples, wild)
    left, right = figure.axes[:2]
    np.testing.assert_array_equal(left.lines[1].get_ydata(), samples[1])
    np.testing.assert_array_equal(right.lines[2].get_ydata(), 2 * samples[2])
    assert left.get_ylim()[1] < 50  # a flow that left the data hides nothing
    assert left.lines[-1].get_label() == "flow (ODE), beyond this range"
    for flow, label in (
        (samples[2], "flow (ODE)"),
        (np.full(8, np.nan), "flow (ODE), beyond this range"),
    ):
        figure = plots.profiles(points, samples[0], samples[1], samples, samples, flow)
        assert figure.axes[0].lines[-1].get_label() == label
    path = RNG.normal(size=(5, 8))
    shown = plots.space_time(ts, points, path, np.stack([path + 1] * 4), max_samples=2)
    images = [axes.collections[0].get_array() for axes in shown.axes[:3]]
    np.testing.assert_allclose(np.ravel(images[0]), path.ravel())
    np.testing.assert_allclose(np.ravel(images[2]), path.ravel() + 1)
    with pytest.raises(ValueError, match=r"samples must have shape \(1, 5, 8\)"):
        plots.space_time(ts, points, path, path[None, :4])
    with pytest.raises(ValueError, match=r"sample_ends must have shape"):
        plots.profiles(points, path[0], path[0], path, path[:2])


def test_weights_are_heeded() -> None:
    """Draws of weight 0 are not drawn, and one of twice the weight counts twice."""
    draws = np.array([5.0, 1.0, 2.0, 2.5, 9.0])
    with np.errstate(divide="ignore"):
        weights = np.log(np.array([0, 2, 1, 1, 0]) / 4)
    weighted = Conditioned({"x": draws}, weights, 0.0, 0.0, None)
    columns = pairs.columns(weighted, 1, None, 4)
    assert np.unique(columns["x"]).tolist() == [1.0, 2.0, 2.5]
    # Five even places on the way through 1/2, 1/4, 1/4.
    assert np.bincount(columns["x"].astype(int)).tolist() == [0, 3, 2]
