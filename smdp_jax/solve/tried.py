"""How a way back fares before it is taken: what it amplifies, and how wide it leaves paths."""

from dataclasses import replace
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from smdp_jax.sde import Args, Scalar, ScoreFn, State, integrated_backward
from smdp_jax.solve.backward import BackwardSolve
from smdp_jax.solve.gaussian import GaussianStep, bind
from smdp_jax.solve.inverses import miss_of_inverse
from smdp_jax.solve.pilot import Pilot, Stepper, pilot_of
from smdp_jax.solve.reversal import reverse_sde
from smdp_jax.solve.solvers import default_solver
from smdp_jax.solve.spread import Off, off_by

# Decades of spurious growth over a whole solve that are too many: of what is exact, learned.
_DRIFT, _LEARNED = 0.1, 0.3
# Decades of stretching along a flow map that are looked at again, and what share may be errors.
_STRETCHES, _SPURIOUS = 1.0, 0.3


class NotBefore(eqx.Module):
    """A learned score, asked at no time before the first one that it was trained at."""

    score: Any
    first: Array

    @property
    def seen(self) -> Any:
        """Range of the data."""
        return getattr(self.score, "seen", None)

    def __call__(self, t: Scalar, x: State, args: Args) -> State:
        """Evaluate."""
        return self.score(jnp.maximum(t, self.first.astype(jnp.result_type(t))), x, args)


class Trial(NamedTuple):
    """What is needed to try a way back."""

    verb: str
    asked: BackwardSolve
    score: ScoreFn
    looked: list[tuple[State, Args]]
    learned: bool

    @property
    def limit(self) -> float:
        """Decades that are too many for a default."""
        return _LEARNED if self.learned else _DRIFT

    def tried(self, way: BackwardSolve) -> tuple[float, list[Pilot]] | None:
        """Decades by which a way amplifies (infinite where paths are lost), and its pilots."""
        score = self.score
        if self.learned and not isinstance(way.solver, (GaussianStep, diffrax.Euler, type(None))):
            score = NotBefore(score, jnp.asarray(way.ts)[1])
        pilots = self.pilots(way, score)
        if pilots is None:
            return None
        decades = max(pilot.decades for pilot in pilots)
        stretch = max(pilot.stretch for pilot in pilots)
        if self.asked.sde.step is not None and stretch > _STRETCHES:
            # What a flow map stretches by is the same in shorter steps; what errors do is not.
            finer = self.pilots(replace(way, substeps=2 * way.substeps), score)
            if finer is not None:
                spurious = stretch - max(pilot.stretch for pilot in finer)
                decades = max(decades, spurious if spurious > _SPURIOUS * stretch else 0.0)
        return np.inf if any(pilot.lost for pilot in pilots) else decades, pilots

    def pilots(self, way: BackwardSolve, score: ScoreFn) -> list[Pilot] | None:
        """A path from each state that is looked at; None where one can't be differentiated."""
        grid = -jnp.asarray(way.ts)[::-1]
        found = [pilot_of(_backward, (way, score), x, grid, own) for x, own in self.looked]
        pilots = [pilot for pilot in found if pilot is not None]
        return pilots if len(pilots) == len(found) else None

    @property
    def spreads(self) -> bool:
        """Whether there are steps of a drift that have a spread of their own, on every leaf."""
        sde, (x, _) = self.asked.sde, self.looked[0]
        if sde.drift is None or not self.asked.noise_level > 0:
            return False
        # What gets its noise from another leaf has none in the first step, however short.
        return all(np.asarray(g).all() for g in jax.tree.leaves(sde.g(self.asked.ts[-1], x)))

    def off_by(self, way: BackwardSolve) -> Off | None:
        """By how much the steps of a way are off, where that is most."""
        grid = -jnp.asarray(way.ts)[::-1]
        (x, own), what = self.looked[0], (way, self.score)
        # A score that was learned in steps has taken up the errors of their means.
        return off_by(_backward, what, x, grid, own, means=not self.learned)

    def says(self, pilots: list[Pilot], remedy: str, decades: float | None = None) -> str:
        """The figures, and what would do."""
        growth, at = max(pilot.worst for pilot in pilots)
        if decades is None or not np.isfinite(decades):
            decades = max(pilot.decades for pilot in pilots)
        return (
            f"{self.verb}: one backward step amplifies errors up to {growth:.3g} times (at "
            f"t={-at:g}), all steps together 1e{decades:.0f} times or more: {remedy}"
        )

    def figures(self, name: str, pilots: list[Pilot]) -> str:
        """How a way back along a flow map misses and amplifies."""
        sde, (x, own), ts = self.asked.sde, self.looked[0], jnp.asarray(self.asked.ts)
        assert sde.step is not None
        inverse: Any = sde.inverse
        inverse = integrated_backward(sde.step) if name == "integrated_backward" else inverse
        miss = miss_of_inverse(replace(sde, inverse=inverse), x, ts[-2], ts[-1], own)
        growth = max(pilot.worst[0] for pilot in pilots)
        return f"misses by {miss:.2g} times the noise of a step and amplifies {growth:.3g} times"


def _backward(what: tuple[BackwardSolve, ScoreFn]) -> Stepper:
    way, score = what
    process = reverse_sde(way.sde, score, noise_level=way.noise_level)
    solver: Any = default_solver(process) if way.solver is None else way.solver
    if isinstance(solver, GaussianStep):
        solver = bind(solver, way.sde, score, None, way.noise_level, way.ts[0])
    return Stepper(process, solver, way.substeps, process.drift)
