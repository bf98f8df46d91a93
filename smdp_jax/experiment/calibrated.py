"""The calibration report, and a certificate, on their way through ``samples.npz``."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from smdp_jax.evaluate import CalibrationReport, Metric, ReportFigure, calibration_report
from smdp_jax.evaluate.calibration_record import Ratio
from smdp_jax.evaluate.held_out import MIN_CASES, MIN_DRAWS
from smdp_jax.posterior.sampling import Posterior
from smdp_jax.sde import SDE
from smdp_jax.trajectories import Trajectories


def calibrated(
    sde: SDE,
    score: Any,
    test_paths: Trajectories,
    *,
    key: PRNGKeyArray,
    drawn: Posterior | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Test a sampler on held-out paths, for the run's report to show.

    Parameters
    ----------
    sde, score, test_paths, key, drawn, **options
        As for ``calibration_report``; ``drawn`` hands over draws that are there already.

    Returns
    -------
    dict
        What ``Experiment.sample`` returns beside its own arrays: the rows and the figure of
        "calibration" are added to those of ``evaluate`` and ``figures``. Nothing for fewer than
        20 paths or 9 draws: they could not tell a right posterior from a wrong one.
    """
    draws = None if drawn is None else jax.tree.leaves(drawn.samples)[0].shape[1]
    if test_paths.num_samples < MIN_CASES or (draws is not None and draws < MIN_DRAWS):
        return {}
    report = calibration_report(sde, score, test_paths, key=key, drawn=drawn, **options)
    return {"calibration": dataclasses.asdict(report)}


def metrics_of(arrays: Mapping[str, Any]) -> list[Metric]:
    """Rows of the calibration report, where there is one."""
    return calibration_of(arrays).metrics if "calibration" in arrays else []


def figures_of(arrays: Mapping[str, Any]) -> dict[str, ReportFigure]:
    """Figure of the calibration report, where there is one."""
    if "calibration" not in arrays:
        return {}
    report = calibration_of(arrays)
    caption = (
        "Coverage, and ranks of the true starts of held-out paths among their posterior samples "
        f"({report.cases_used} end states, {report.draws_used} samples each), with bands of chance."
    )
    return {"calibration": ReportFigure(report.figure(), caption)}


def calibration_of(arrays: Mapping[str, Any]) -> CalibrationReport:
    """Put together what ``dataclasses.asdict`` of a report became as arrays."""

    def plain(value: Any) -> Any:
        return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value

    stored: dict[str, Any] = {name: plain(v) for name, v in arrays["calibration"].items()}
    for name in ("observables", "constant"):
        stored[name] = tuple(map(str, stored[name]))
    for name in ("crps", "reconstruction"):
        leaves = stored[name].items()
        stored[name] = {
            leaf: Ratio(**{part: plain(v) for part, v in ratio.items()}) for leaf, ratio in leaves
        }
    return CalibrationReport(**stored)


def lost_of(arrays: Mapping[str, Any]) -> tuple[int, int] | None:
    """Paths that were lost, of how many, where a calibration report says so."""
    stored = arrays.get("calibration")
    if not isinstance(stored, Mapping) or not {"lost", "cases", "num_samples"} <= set(stored):
        return None
    paths = int(stored["cases"]) * int(stored["num_samples"])
    return round(float(stored["lost"]) * paths), paths


def certified(arrays: Mapping[str, Any]) -> list[Metric]:
    """Show how far a sampler is from the truth, where ``certify`` could say.

    Parameters
    ----------
    arrays : dict
        What ``Experiment.sample`` returned, with ``{"gap": c.gap, "line": str(c)}`` of a
        ``Certificate`` c as "certificate".

    Returns
    -------
    list of Metric
        One row, or none.
    """
    if "certificate" not in arrays:
        return []
    gap, line = float(arrays["certificate"]["gap"]), str(arrays["certificate"]["line"])
    return [Metric("nats from the truth, paths from one end state", gap, 0.0, note=line)]
