"""Evaluation: metrics, spectra, calibration, plots and the report; arrays in, arrays out.

``evaluate.plots`` needs matplotlib and is imported on first use; everything else does without.
Arrays whose shapes do not belong together are refused with a ValueError that names them; what only
values tell is refused outside of ``jit`` and gives NaN (ranks: -1) under it.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from smdp_jax.evaluate._html_parts import save_figures
from smdp_jax.evaluate.calibration import (
    UniformityTest,
    expected_coverage,
    marginal_coverage,
    sbc_ranks,
    tarp_ranks,
    uniformity_test,
)
from smdp_jax.evaluate.calibration_record import CalibrationReport, Ratio
from smdp_jax.evaluate.ensembles import (
    SpreadSkill,
    crps_ensemble,
    crps_gaussian,
    energy_score,
    spread_skill,
)
from smdp_jax.evaluate.environment import describe_environment
from smdp_jax.evaluate.held_out import calibration_report
from smdp_jax.evaluate.images import lpips, lpips_weights, ssim
from smdp_jax.evaluate.metrics import (
    HitShares,
    ensemble_mse,
    hit_shares,
    mse,
    posterior_hit_metric,
    reached_times,
    reconstruction_mse,
    relative_error,
    rmse,
    weighted_score_error,
)
from smdp_jax.evaluate.observables import default_observables
from smdp_jax.evaluate.rank_bands import RankBand, rank_band
from smdp_jax.evaluate.report import Metric, ReportFigure, Section, write_report
from smdp_jax.evaluate.scored_samplers import SamplerScore, read_task, score_sampler, write_tasks
from smdp_jax.evaluate.spectra import (
    amplitude_spectrum,
    power_spectrum,
    published_spectral_error,
    shell_indices,
    spectral_error,
)
from smdp_jax.evaluate.two_sample import TwoSample, c2st

if TYPE_CHECKING:
    from smdp_jax.evaluate import plots


def __getattr__(name: str) -> ModuleType:
    """Import ``plots``, and with it matplotlib, when it is first asked for."""
    if name == "plots":
        return importlib.import_module("smdp_jax.evaluate.plots")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "CalibrationReport",
    "HitShares",
    "Metric",
    "RankBand",
    "Ratio",
    "ReportFigure",
    "SamplerScore",
    "Section",
    "SpreadSkill",
    "TwoSample",
    "UniformityTest",
    "amplitude_spectrum",
    "c2st",
    "calibration_report",
    "crps_ensemble",
    "crps_gaussian",
    "default_observables",
    "describe_environment",
    "energy_score",
    "ensemble_mse",
    "expected_coverage",
    "hit_shares",
    "lpips",
    "lpips_weights",
    "marginal_coverage",
    "mse",
    "plots",
    "posterior_hit_metric",
    "power_spectrum",
    "published_spectral_error",
    "rank_band",
    "reached_times",
    "read_task",
    "reconstruction_mse",
    "relative_error",
    "rmse",
    "save_figures",
    "score_sampler",
    "sbc_ranks",
    "shell_indices",
    "spectral_error",
    "spread_skill",
    "ssim",
    "tarp_ranks",
    "uniformity_test",
    "weighted_score_error",
    "write_report",
    "write_tasks",
]
