"""Steps for a simulation that names no solver: Heun's where they resolve the drift.

Else a field whose physics is linear, and everywhere the same, is advanced exactly, and any other
drift in more substeps.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from jax.core import eval_context
from jaxtyping import Array

from smdp_jax.checks import concrete
from smdp_jax.sde import SDE, Args, State
from smdp_jax.solve.chain import ChainSplitting, chain_of
from smdp_jax.solve.linearise import Linearised, misfit_of, waves_of
from smdp_jax.solve.looked import Ends, told
from smdp_jax.solve.pilot import Pilot, Stepper, pilot_of
from smdp_jax.solve.process import known

_UNRESOLVED, _BUDGET, _MOST, _LINEAR = 0.1, 0.05, 256, 1e-3


def forward_way(sde: SDE, ts: Array, starts: Ends, substeps: int) -> tuple[SDE, int]:
    """A drift whose default steps are too long: with its linear part, or in more substeps."""
    if sde.drift is None or sde.linear is not None or not concrete(starts, ts):
        return sde, substeps
    looked = starts.chosen()

    def decide() -> tuple[Any, int]:
        with eval_context():
            return _forward_verdict(sde, ts, looked, substeps)

    identity = ("forward", *map(told, (sde, ts, looked)), substeps)
    linear, substeps = known.get(identity, decide)
    return (replace(sde, linear=linear) if linear is not None else sde), substeps


def _forward_verdict(
    sde: SDE, ts: Array, looked: list[tuple[State, Args]], substeps: int
) -> tuple[Any, int]:
    def pilots(n: int) -> list[Pilot] | None:
        found = [pilot_of(_forward, (sde, n), x, ts, own) for x, own in looked]
        return None if any(p is None for p in found) else [p for p in found if p is not None]

    seen = pilots(substeps)
    if seen is None or not max(p.error for p in seen) > _UNRESOLVED:
        return None, substeps
    x, own = looked[0]
    transform = waves_of(x)
    if transform is not None:
        fit = misfit_of(sde, None, x, x, ts, own, transform)
        if np.asarray(fit.physics).max() < _LINEAR:
            return Linearised(sde, transform), substeps
    n = substeps
    while seen is not None and n < _MOST:
        n = min(_MOST, max(2 * n, *(p.substeps(_BUDGET) for p in seen)))
        seen = pilots(n)
        if seen is not None and max(p.error for p in seen) <= _UNRESOLVED:
            return None, n
    return None, substeps


def _forward(what: tuple[SDE, int]) -> Stepper:
    sde, substeps = what
    process, halves = chain_of(sde)
    return Stepper(process, ChainSplitting(sde.linear, halves), substeps, sde.drift)
