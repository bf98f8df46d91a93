"""What the ranks of unseen starts among their draws prove of posteriors, and what they can't.

Pairs of a start and an end are independent, entries of a start are not: all errors are over pairs.
A posterior that is right is warned of in about one fit of a hundred (Bonferroni over all tests).
"""

import math
from typing import Any, NamedTuple

import numpy as np
from scipy.special import chdtri, stdtrit

ALARM = 0.01
"""False-alarm rate of all tests of a fit together."""
LEVELS = np.array([0.5, 0.9])
# Misses that matter: of a share, and of the mean square of smooth components (std off by a tenth).
_MISS, _UNEVEN = 0.02, 0.1
# Fewer pairs could not show even this miss of 50 % intervals; still fewer tell none of one number.
_SEEN, _LEAST = 0.15, 8

_REMEDY = {
    "too narrow": "too narrow: more paths, what is learned errs more on unseen ones than it knows",
    "too wide": "too wide: more updates or a larger network, what they miss counts as noise",
    "biased": "biased: more updates, more paths, or times stored closer together",
    "of another shape": "of another shape (two lumps, long tails, a width of their own in places): "
    "a larger network, more updates, BackwardKernel(directions=8)",
    "joint law": "joint law: another BackwardKernel(transform=), more directions",
}


class Starts(NamedTuple):
    """Ranks of the starts of unseen paths among draws that begin at the paths' ends."""

    looks: dict[str, np.ndarray]
    """Draws below the start, by what is looked at (pairs,)."""
    inside: np.ndarray
    """Share of the entries within central intervals of LEVELS (pairs, levels)."""
    nearer: np.ndarray
    """Draws nearer to a random place than the start is (pairs,)."""
    draws: int
    """Of each pair."""
    entries: int
    """Numbers of one state."""
    held_out: int
    """Paths that there were, of which the pairs are the first."""


def within(draws: int, levels: Any) -> Any:
    """Which of the ranks 0 ... draws lie in central intervals (levels, ranks)."""
    off_centre = np.abs((2 * np.arange(draws + 1) + 1) / (draws + 1) - 1).astype(levels.dtype)
    return off_centre[None] <= levels[:, None]


def said_of(starts: Starts) -> list[str]:
    """What is to be warned of, in sentences: misses with their kind and remedy; too few pairs."""
    pairs, nominal = len(starts.inside), within(starts.draws, LEVELS).mean(axis=1)
    error = _errors(starts, nominal)
    each = ALARM / (len(starts.looks) + len(LEVELS) + 1)
    beyond = stdtrit(max(pairs - 1, 1), 1 - each / 2)
    off = starts.inside.mean(axis=0) - nominal
    found: list[tuple[str, str]] = []
    shown = [
        f"intervals of {n:.0%} hold {n + d:.1%} ± {e:.1%}"
        for n, d, e in zip(nominal, off, error, strict=True)
    ]
    far = (np.abs(off) > beyond * error) & (np.abs(off) > _MISS)
    if far.any():
        kinds = {"too wide" if d > 0 else "too narrow" for d in off[far]}
        kind = kinds.pop() if len(kinds) == 1 else "of another shape"
        found.append((f"over all entries {', '.join(shown)}", kind))
    few = pairs < _LEAST
    for name, ranks in () if few else starts.looks.items():
        if kind := _kind(ranks, starts.draws, each):
            held = within(starts.draws, LEVELS)[:, ranks].mean(axis=1)
            figures = f"{held[0]:.0%} and {held[1]:.0%}, {ranks.mean() / starts.draws:.0%} below"
            found.append((f"{name}: {figures}", kind))
    if not (found or few) and _kind(starts.nearer, starts.draws, each):
        found.append((f"{', '.join(shown)}, but distances to random places are off", "joint law"))
    # Not by more than what there is.
    seen = min(beyond * error[0], nominal[0])
    return _sentences(starts, found, nominal, seen)


def _sentences(
    starts: Starts, found: list[tuple[str, str]], nominal: np.ndarray, seen: float
) -> list[str]:
    pairs, said, few = len(starts.inside), [], not seen < _SEEN
    if found:
        kinds = dict.fromkeys(kind for _, kind in found)
        first = [f"more paths first ({starts.held_out} set aside are few)"] if few else []
        said.append(
            f"posteriors of {pairs} unseen paths miss their starts: "
            + "; ".join(f"{what} ({kind})" for what, kind in found)
            + f". Where right, {nominal[0]:.0%} and {nominal[1]:.0%} are within, and 50% of the "
            "draws below the start. What mends it: "
            + "; ".join(first + [_REMEDY[kind] for kind in kinds])
            + ". smdp.calibration_report shows all of it"
        )
    elif few:
        walked = "" if pairs == starts.held_out else f" of {starts.held_out}"
        said.append(
            f"the {pairs}{walked} unseen paths that posteriors were tried on are too few to tell "
            f"whether they are right: intervals of {nominal[0]:.0%} may be off by ±{seen:.0%} "
            "unseen. Train on more paths (a tenth of them, of small states a quarter, is set "
            "aside), or ask smdp.calibration_report with many paths of their own"
        )
    return said


def _errors(starts: Starts, nominal: np.ndarray) -> np.ndarray:
    """Standard errors of the shares within: over pairs, no less than of independent entries."""
    pairs = len(starts.inside)
    if pairs < 2:
        return np.full(len(LEVELS), math.inf)
    variance = np.maximum(
        starts.inside.var(axis=0, ddof=1), nominal * (1 - nominal) / starts.entries
    )
    return np.sqrt(variance / pairs)


def _kind(ranks: np.ndarray, draws: int, alarm: float) -> str:
    """What is wrong with ranks that are not uniform, beyond chance (Neyman 1937); '' if nothing.

    Means along the first four orthonormal polynomials are independent normal numbers.
    """
    means = _components(draws)[:, ranks].mean(axis=1)
    chance = chdtri(len(means), alarm) / len(ranks)
    if means @ means < max(chance, _UNEVEN**2):
        return ""
    worst = int(np.argmax(np.abs(means)))
    if worst == 1:
        return "too narrow" if means[1] > 0 else "too wide"
    return "biased" if worst == 0 else "of another shape"


def _components(draws: int) -> np.ndarray:
    """Orthonormal polynomials of degree 1 to 4 on the ranks (4, draws + 1), rising at the end."""
    x = np.linspace(-1, 1, draws + 1)
    basis = np.linalg.qr(x[:, None] ** np.arange(5))[0].T[1:] * math.sqrt(draws + 1)
    return basis * np.sign(basis[:, -1:])
