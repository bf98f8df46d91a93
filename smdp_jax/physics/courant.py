"""A warning before a time step that is too long for advection, naming the step that would do."""

import math
import warnings

__all__ = ["CourantWarning", "check_stable", "warn_step"]


class CourantWarning(UserWarning):
    """A time step breaks the Courant-Friedrichs-Lewy condition."""


def check_stable(stable: float, owner: str) -> None:
    """Refuse states that no step is stable for."""
    if not stable > 0:
        raise ValueError(f"the states of {owner} must be finite, got NaN or infinity")


def warn_step(step: float, stable: float, owner: str, inner_steps: int) -> None:
    """Warn if the inner steps of a flow map are longer than what is stable."""
    check_stable(stable, owner)
    if abs(step) <= inner_steps * stable:
        return
    warnings.warn(
        f"{owner}: a step of {abs(step):.3g} in {inner_steps} inner steps breaks the CFL "
        f"condition; steps of at most {inner_steps * stable:.3g} would do, or "
        f"inner_steps={math.ceil(abs(step) / stable)}",
        CourantWarning,
        stacklevel=3,
    )
