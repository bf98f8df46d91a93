"""Evaluation: metrics, spectra, calibration, plots and the report; arrays in, arrays out.

``evaluate.plots`` needs matplotlib and is imported on first use; everything else does without.
Arrays whose shapes do not belong together are refused with a ValueError that names them; what only
values tell is refused outside of ``jit`` and gives NaN (ranks: -1) under it.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from smdp_jax.evaluate._html_parts import save_figures as save_figures
from smdp_jax.evaluate.calibration import UniformityTest as UniformityTest
from smdp_jax.evaluate.calibration import expected_coverage as expected_coverage
from smdp_jax.evaluate.calibration import marginal_coverage as marginal_coverage
from smdp_jax.evaluate.calibration import sbc_ranks as sbc_ranks
from smdp_jax.evaluate.calibration import tarp_ranks as tarp_ranks
from smdp_jax.evaluate.calibration import uniformity_test as uniformity_test
from smdp_jax.evaluate.calibration_record import CalibrationReport as CalibrationReport
from smdp_jax.evaluate.calibration_record import Ratio as Ratio
from smdp_jax.evaluate.ensembles import SpreadSkill as SpreadSkill
from smdp_jax.evaluate.ensembles import crps_ensemble as crps_ensemble
from smdp_jax.evaluate.ensembles import crps_gaussian as crps_gaussian
from smdp_jax.evaluate.ensembles import energy_score as energy_score
from smdp_jax.evaluate.ensembles import spread_skill as spread_skill
from smdp_jax.evaluate.environment import describe_environment as describe_environment
from smdp_jax.evaluate.held_out import calibration_report as calibration_report
from smdp_jax.evaluate.images import lpips as lpips
from smdp_jax.evaluate.images import lpips_weights as lpips_weights
from smdp_jax.evaluate.images import ssim as ssim
from smdp_jax.evaluate.metrics import HitShares as HitShares
from smdp_jax.evaluate.metrics import ensemble_mse as ensemble_mse
from smdp_jax.evaluate.metrics import hit_shares as hit_shares
from smdp_jax.evaluate.metrics import mse as mse
from smdp_jax.evaluate.metrics import posterior_hit_metric as posterior_hit_metric
from smdp_jax.evaluate.metrics import reached_times as reached_times
from smdp_jax.evaluate.metrics import reconstruction_mse as reconstruction_mse
from smdp_jax.evaluate.metrics import relative_error as relative_error
from smdp_jax.evaluate.metrics import rmse as rmse
from smdp_jax.evaluate.metrics import weighted_score_error as weighted_score_error
from smdp_jax.evaluate.observables import default_observables as default_observables
from smdp_jax.evaluate.rank_bands import RankBand as RankBand
from smdp_jax.evaluate.rank_bands import rank_band as rank_band
from smdp_jax.evaluate.report import Metric as Metric
from smdp_jax.evaluate.report import ReportFigure as ReportFigure
from smdp_jax.evaluate.report import Section as Section
from smdp_jax.evaluate.report import write_report as write_report
from smdp_jax.evaluate.scored_samplers import SamplerScore as SamplerScore
from smdp_jax.evaluate.scored_samplers import read_task as read_task
from smdp_jax.evaluate.scored_samplers import score_sampler as score_sampler
from smdp_jax.evaluate.scored_samplers import write_tasks as write_tasks
from smdp_jax.evaluate.spectra import amplitude_spectrum as amplitude_spectrum
from smdp_jax.evaluate.spectra import power_spectrum as power_spectrum
from smdp_jax.evaluate.spectra import published_spectral_error as published_spectral_error
from smdp_jax.evaluate.spectra import shell_indices as shell_indices
from smdp_jax.evaluate.spectra import spectral_error as spectral_error
from smdp_jax.evaluate.two_sample import TwoSample as TwoSample
from smdp_jax.evaluate.two_sample import c2st as c2st

if TYPE_CHECKING:
    from smdp_jax.evaluate import plots as plots


def __getattr__(name: str) -> ModuleType:
    """Import ``plots``, and with it matplotlib, when it is first asked for."""
    if name == "plots":
        return importlib.import_module("smdp_jax.evaluate.plots")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
