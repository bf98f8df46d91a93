"""The calibration report, and a certificate, on their way through ``samples.npz``."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from smdp_jax.evaluate import CalibrationReport, Metric
from smdp_jax.evaluate.calibration_record import Ratio

__all__ = ["calibration_of", "certified", "lost_of"]


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
