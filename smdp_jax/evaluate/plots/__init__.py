"""Figures from arrays: each function returns a `matplotlib.figure.Figure` and shows nothing.

Needs matplotlib (``pip install "smdp_jax[plots]"``); nothing else in the package does. Arrays that
do not belong together, or hold nothing to draw, are refused with a ValueError that names them.
"""

from smdp_jax.evaluate.plots import _needed
from smdp_jax.evaluate.plots.animation import field_animation, posterior_animation
from smdp_jax.evaluate.plots.calibration import calibration_panel, coverage_curve, rank_histogram
from smdp_jax.evaluate.plots.fields import field_panel, power_spectra
from smdp_jax.evaluate.plots.pairs import histograms, pair_plot
from smdp_jax.evaluate.plots.particles import evidence_panel, particles
from smdp_jax.evaluate.plots.profiles import profiles, sensor_profiles, space_time
from smdp_jax.evaluate.plots.scalar import (
    posterior_histogram,
    posterior_probability,
    score_field,
    trajectories,
)
from smdp_jax.evaluate.plots.training import step_miss, training_curve

__all__ = [
    "calibration_panel",
    "coverage_curve",
    "evidence_panel",
    "field_animation",
    "field_panel",
    "histograms",
    "pair_plot",
    "particles",
    "posterior_animation",
    "posterior_histogram",
    "posterior_probability",
    "power_spectra",
    "profiles",
    "rank_histogram",
    "score_field",
    "sensor_profiles",
    "space_time",
    "step_miss",
    "trajectories",
    "training_curve",
]
