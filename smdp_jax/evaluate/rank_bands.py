"""Where the cumulative shares of uniform ranks lie, all at once."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import bdtr, bdtrc

from smdp_jax.checks import check_positive, check_within


class RankBand(NamedTuple):
    """Band for the cumulative shares of uniform ranks.

    Parameters
    ----------
    expected, low, high : array
        P(rank <= r), r = 0 ... L - 1, if ranks are uniform; the band, in which the shares of all r
        lie, ends included, with the chosen probability.
    """

    expected: Float[np.ndarray, " ranks"]
    low: Float[np.ndarray, " ranks"]
    high: Float[np.ndarray, " ranks"]


def rank_band(num_cases: int, num_draws: int, *, level: float = 0.95) -> RankBand:
    """Simultaneous confidence band for the cumulative shares of uniform ranks.

    The number of ranks <= r is binomial. The band holds all counts whose tail probability is at
    least gamma, the same for all r, with gamma such that a share ``level`` of 4000 simulated sets
    of uniform ranks lies inside everywhere (Säilynoja, Bürkner & Vehtari 2022, algorithm 1).

    Parameters
    ----------
    num_cases, num_draws, level : int, int, float
        Cases; posterior draws per case, L; probability that uniform ranks stay inside, in (0, 1).

    Returns
    -------
    RankBand
        Shares in [0, 1], each of shape (num_draws,).

    Raises
    ------
    ValueError
        If a number is not positive, or ``level`` not in (0, 1).
    """
    check_positive(num_cases=num_cases, num_draws=num_draws)
    check_within("(0, 1)", level=level)
    expected = np.arange(1, num_draws + 1) / (num_draws + 1)
    counts, share = np.arange(num_cases + 1), expected[:, None]
    below, above = bdtr(counts, num_cases, share), bdtrc(counts - 1, num_cases, share)
    tails = np.minimum(below, above)
    cells = np.full(num_draws + 1, 1 / (num_draws + 1))
    counts = np.random.default_rng(0).multinomial(num_cases, cells, size=4000)
    counts = counts.cumsum(axis=1)[:, :-1]
    rarest = tails[np.arange(num_draws), counts].min(axis=1)
    inside = tails >= np.quantile(rarest, 1 - level)
    high = num_cases - inside[:, ::-1].argmax(axis=1)
    return RankBand(expected, inside.argmax(axis=1) / num_cases, high / num_cases)
