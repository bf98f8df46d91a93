"""What is said of paths back in time that were lost, or that left the range of the data."""

from typing import Any

import numpy as np

from smdp_jax.checks import concrete, not_finite, warn
from smdp_jax.sde import Args
from smdp_jax.solve.backward import SolveInfo

_STRAYS = 0.05


def warn_of_lost(info: SolveInfo, args: Args, ts: Any, grows: bool, kernel: bool) -> None:
    """Warn the caller of a verb of how many paths, from what time on, and what would do."""
    lost_at, left_at = map(_known, (info.lost_at, info.left_range_at))
    count, at = np.size(info.finite), lost_at if lost_at.size else left_at
    if lost_at.size:
        said, which = "were lost: not finite", "info.finite"
    elif left_at.size > _STRAYS * count:
        said, which = "left the range of the training paths,", "info.left_range_at"
    else:
        return
    why = f"{which} tells which; {_reason(args, ts, at, left_at, grows, kernel)}"
    when = f"from t={at.max():g} on the way back (half of them by t={np.median(at):g})"
    warn(f"{at.size} of {count} paths {said} {when}. {why}")


def _known(times: Any) -> np.ndarray:
    """Those that are times, as far as they can be looked at."""
    seen = times is not None and concrete(times) and times.is_fully_addressable
    return np.asarray(times)[np.asarray(times) > -np.inf] if seen else np.zeros(0)


def _reason(
    args: Args, ts: Any, at: np.ndarray, left_at: np.ndarray, grows: bool, kernel: bool
) -> str:
    """What would do, for paths that were lost (or left the data) at these times."""
    if where := not_finite(args, "args"):
        return f"args must be finite, got {where}"
    if grows:
        return "its steps amplify errors, as said before the solve"
    if kernel:  # has its own steps: no others to try
        return (
            "off the data a kernel is not right: learn it for longer, on more paths, or with "
            "input_noise (BackwardKernel)"
        )
    if left_at.size and left_at.max() >= at.max():
        return (
            "they left the data before: the score is not right off the data; train it for longer, "
            "on more paths or on windows (MultiStep), or learn a backward kernel with input_noise"
        )
    if ts is not None and concrete(ts) and at.max() <= float(ts[1]):
        return (
            f"only the last step loses them: the score is singular, or was not learned, near "
            f"ts[0]={float(ts[0]):g}; start ts later, or with shorter first steps (log_grid)"
        )
    return "try more steps or substeps there, another solver, or a score trained for longer"
