"""The calibration report on its way through ``samples.npz``."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from smdp_jax.evaluate import CalibrationReport
from smdp_jax.evaluate.calibration_record import Ratio

__all__ = ["calibration_of"]


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
