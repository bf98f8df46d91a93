"""What `calibration_report` found, as rows beside their targets, a table, and a figure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from smdp_jax.evaluate.report import Metric, status_of, text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALARM = 0.01
"""False-alarm rate of the SBC rows together, and of the TARP row."""


@dataclass(frozen=True)
class Ratio:
    """A mean over cases beside what it is measured against.

    Parameters
    ----------
    value, reference : float
        Means over cases, in one unit. NaN where they can't be said.
    error : float
        Standard error of their ratio over cases.
    """

    value: float
    reference: float
    error: float

    @property
    def ratio(self) -> float:
        """The value over the reference, NaN where that is 0."""
        return self.value / self.reference if self.reference > 0 else math.nan


@dataclass(frozen=True)
class CalibrationReport:
    """Whether posteriors of held-out end states mean what they say; ``print`` shows a table.

    Parameters
    ----------
    cases, num_samples : int
        End states, and posterior draws asked for each.
    lost : float
        Share of the draws that are not finite.
    cases_used, draws_used : int
        All other figures are of these cases (at least half of their draws are finite), each with
        this many of its finite draws, the same number in all.
    levels, nominal, coverage, coverage_error : array (levels,)
        Credibility; the share that ranks of ``draws_used`` draws give if calibrated; the share of
        true entries in the central interval; its standard error over cases.
    observables : tuple of str
        What is ranked.
    constant : tuple of str
        Observables left out because all true starts agree in them.
    sbc_ranks : array (cases_used, observables)
        Draws below the truth.
    sbc_p : array (observables,)
        Chi-squared test of uniform ranks; NaN with fewer than 20 cases.
    tarp_ranks : array (cases_used,)
        Draws nearer than the truth to a random reference.
    tarp_p : float
        The same test.
    crps : mapping of str to Ratio
        By leaf of the state ("" for an array), mean over entries, in units of the leaf: the
        posterior's, over that of the other true starts (draws from the prior).
    reconstruction : mapping of str to Ratio
        By leaf, in squared units: |F(draw) - x_end|^2 over |F(true start) - x_end|^2.
    """

    cases: int
    num_samples: int
    lost: float
    cases_used: int
    draws_used: int
    levels: np.ndarray = field(repr=False)
    nominal: np.ndarray = field(repr=False)
    coverage: np.ndarray = field(repr=False)
    coverage_error: np.ndarray = field(repr=False)
    observables: tuple[str, ...]
    constant: tuple[str, ...]
    sbc_ranks: np.ndarray = field(repr=False)
    sbc_p: np.ndarray = field(repr=False)
    tarp_ranks: np.ndarray = field(repr=False)
    tarp_p: float
    crps: Mapping[str, Ratio]
    reconstruction: Mapping[str, Ratio]

    @property
    def metrics(self) -> list[Metric]:
        """One row per figure, beside what the exact posterior would have.

        An exact sampler misses one of them in about 3 % of all reports: 1 % for SBC (over all
        observables), 1 % for TARP, and 3 standard errors for each of the others.
        """
        left = f"{self.cases_used} of {self.cases} cases, {self.draws_used} draws each"
        note = f"{self._lost[0]} of {self._lost[1]} not finite; all else is of {left}"
        rows = [Metric("lost paths", self.lost, 0.0, note=note, bound="at most")]
        for level, nominal, share, error in zip(
            self.levels, self.nominal, self.coverage, self.coverage_error, strict=True
        ):
            name, wide = f"coverage of {level:.0%} intervals", 3 * float(error)
            rows.append(Metric(name, float(share), float(nominal), tolerance=wide))
        number = max(len(self.observables), 1)
        least = int(np.argmin(self.sbc_p)) if self.observables else 0
        name, what = f"SBC p, smallest of {number}", "".join(self.observables[least : least + 1])
        smallest = float(np.min(self.sbc_p, initial=math.inf)) if self.observables else math.nan
        rows += [
            Metric(name, smallest, ALARM / number, note=what, bound="at least"),
            Metric("TARP p", self.tarp_p, ALARM, note="joint law of all entries", bound="at least"),
        ]
        for leaf, found in self.crps.items():
            note = f"{found.value:.4g} of {found.reference:.4g}"
            rows.append(_at_most_one(f"CRPS / prior's {leaf}", found, note))
        for leaf, found in self.reconstruction.items():
            ran_off = "ran off: give the forward solver, simulator=dict(solver=, substeps=)"
            note = "both simulated without noise" if math.isfinite(found.ratio) else ran_off
            rows.append(_at_most_one(f"reconstruction / noise floor {leaf}", found, note))
        return rows

    @property
    def passed(self) -> bool:
        """Whether every row could be computed and is where it should be, and no path was lost."""
        return all(row.met is not False for row in self.metrics)

    @property
    def status(self) -> str:
        """One line: how many rows are met, which are missed, and what was lost."""
        return status_of(self.metrics, self._lost)

    @property
    def _lost(self) -> tuple[int, int]:
        """Draws that are lost, of how many."""
        draws = self.cases * self.num_samples
        return round(self.lost * draws), draws

    def __str__(self) -> str:
        head = f"Calibration over {self.cases} end states, {self.num_samples} draws each"
        parts = [head, self.status, text_table(self.metrics)]
        if self.lost:
            parts.append(
                "Lost draws have no rank: a posterior that loses paths is not the posterior, and\n"
                "the figures above are of what is left, which may be the easy part."
            )
        if self.constant:
            parts.append(f"Left out, the same in all true starts: {', '.join(self.constant)}")
        return "\n".join(parts)

    def figure(self) -> "Figure":
        """Draw coverage over level, and cumulative ranks of SBC and TARP in their 95 % bands.

        Returns
        -------
        Figure
            Of `plots.calibration_panel`; needs matplotlib, and a case that is left to draw.

        Raises
        ------
        ValueError
            If no case is left to draw.
        """
        from smdp_jax.evaluate import plots  # matplotlib is optional

        return plots.calibration_panel(self)


def _at_most_one(name: str, found: Ratio, note: str) -> Metric:
    limit = 1 + 3 * found.error if math.isfinite(found.error) else 1.0
    return Metric(name.strip(), found.ratio, limit, note=note, bound="at most")
