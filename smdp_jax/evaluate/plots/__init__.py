"""Figures from arrays: each function returns a `matplotlib.figure.Figure` and shows nothing.

Needs matplotlib (``pip install "smdp_jax[plots]"``); nothing else in the package does. Arrays that
do not belong together, or hold nothing to draw, are refused with a ValueError that names them.
"""

from smdp_jax.evaluate.plots import _needed
from smdp_jax.evaluate.plots.animation import field_animation as field_animation
from smdp_jax.evaluate.plots.animation import posterior_animation as posterior_animation
from smdp_jax.evaluate.plots.calibration import calibration_panel as calibration_panel
from smdp_jax.evaluate.plots.calibration import coverage_curve as coverage_curve
from smdp_jax.evaluate.plots.calibration import rank_histogram as rank_histogram
from smdp_jax.evaluate.plots.fields import field_panel as field_panel
from smdp_jax.evaluate.plots.fields import power_spectra as power_spectra
from smdp_jax.evaluate.plots.pairs import histograms as histograms
from smdp_jax.evaluate.plots.pairs import pair_plot as pair_plot
from smdp_jax.evaluate.plots.particles import evidence_panel as evidence_panel
from smdp_jax.evaluate.plots.particles import particles as particles
from smdp_jax.evaluate.plots.profiles import profiles as profiles
from smdp_jax.evaluate.plots.profiles import sensor_profiles as sensor_profiles
from smdp_jax.evaluate.plots.profiles import space_time as space_time
from smdp_jax.evaluate.plots.scalar import posterior_histogram as posterior_histogram
from smdp_jax.evaluate.plots.scalar import posterior_probability as posterior_probability
from smdp_jax.evaluate.plots.scalar import score_field as score_field
from smdp_jax.evaluate.plots.scalar import trajectories as trajectories
from smdp_jax.evaluate.plots.training import step_miss as step_miss
from smdp_jax.evaluate.plots.training import training_curve as training_curve
