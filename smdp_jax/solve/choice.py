"""What solves a process where the caller names no solver; what is said of one that is named.

Euler's step (``Splitting`` for flow maps) wherever it amplifies nothing that the true flow does
not. Where it does, or is long for the rates that are met and so has the wrong spread:
``GaussianStep`` for fields whose physics is linear and everywhere the same, its linear part and
Gaussian taken from the derivatives of physics and score. For any other drift where it amplifies,
or where the spread of a few paths shows that it is too long: ``ShARK`` (without noise ``Ralston``)
in as many substeps as that asks for; a learned score keeps long steps, and is warned of. For a flow
map that amplifies and whose inverse was not named: the other one. A traced call can't be looked at:
it takes the first.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import eval_context

from smdp_jax.checks import concrete, warn
from smdp_jax.sde import FlowMap, integrated_backward, negated
from smdp_jax.solve.backward import BackwardSolve
from smdp_jax.solve.gaussian import GaussianStep, bind
from smdp_jax.solve.linear_fields import LINEAR, drift_of_variances, with_linear_part
from smdp_jax.solve.linearise import Curvature, Linearised, mean_field, misfit_of, waves_of
from smdp_jax.solve.looked import Ends, told
from smdp_jax.solve.pilot import Pilot
from smdp_jax.solve.process import known
from smdp_jax.solve.tried import NotBefore, Trial

# Decades of spurious growth over a whole solve that are too many for what was named.
_NAMED = 1.0
_BUDGET, _MOST = 0.05, 256
_GAUSSIAN, _GAUSSIANS, _COARSE, _ROUNDING = 1e-2, 0.2, 1.0, 1e-5
# Of rate times step, up to which Euler's spread is right to a few per cent.
_LONG = 0.1
# From which on paths are looked at, and what share of their spread may be wrong.
_LONGER, _WRONG, _WRONG_LEARNED = 0.2, 0.1, 0.3


class Verdict(NamedTuple):
    """How a solve differs from the one that was asked for, and what is to be said."""

    solver: Any = None
    substeps: int = 1
    inverse: FlowMap | None = None
    warning: str | None = None
    amplifies: bool = False


# Backward ----------------------------------------------------------------------------------------


def way_back(
    verb: str, asked: BackwardSolve, score: Any, ends: Ends
) -> tuple[BackwardSolve, Any, bool]:
    """Choose what was not named; warn of errors that would grow, and tell whether they would."""
    named = asked.solver is not None
    correction = getattr(score, "kind", "score") != "score"
    known_steps = asked.controller is not None or correction
    if known_steps or not concrete(ends, asked.ts, score, asked.corrector):
        return asked, score, False
    if isinstance(asked.solver, GaussianStep):
        return with_linear_part(asked, asked.solver, score, ends), score, False
    looked = ends.chosen()
    learned = hasattr(score, "check_use")
    parts = map(told, (asked.solver, asked.sde, asked.ts, score, looked))
    identity = (verb, named, *parts, asked.substeps, asked.noise_level)

    def decide() -> Verdict:
        with eval_context():  # inside of a caller's jit, too; and nothing is unrolled
            look = _Choice(verb, asked, score, looked, learned)
            return look.of_drift(named) if asked.sde.drift is not None else look.of_step(named)

    verdict: Verdict = known.get(identity, decide)
    if verdict.warning:
        warn(verdict.warning)
    solver, sde = verdict.solver, asked.sde
    if solver is None and verdict.inverse is None:
        return asked, score, verdict.amplifies
    if verdict.inverse is not None:
        sde = replace(sde, inverse=verdict.inverse)
    elif isinstance(solver, GaussianStep):
        solver = _gaussian(asked, score, ends, solver)
    elif learned:
        score = NotBefore(score, jnp.asarray(asked.ts)[1])
    way = replace(asked, sde=sde, solver=solver, substeps=max(asked.substeps, verdict.substeps))
    return way, score, verdict.amplifies


def _gaussian(asked: BackwardSolve, score: Any, ends: Ends, template: GaussianStep) -> GaussianStep:
    """Fill in where the score is looked at: the mean of the end states."""
    reference = template.reference
    if not isinstance(reference, Curvature):
        return template
    mean = mean_field(jax.tree.map(lambda v: jnp.mean(v, axis=0), ends.x))
    return replace(template, reference=replace(reference, x=mean))


class _Choice(Trial):
    """What is taken in the place of a way that amplifies, or is off."""

    def of_drift(self, named: bool) -> Verdict:
        seen = self.tried(self.asked)
        # What is lost without having grown is not lost by its steps: that is said after the solve.
        grown = 0.0 if seen is None else max(p.decades for p in seen[1])
        if seen is None or grown < (_NAMED if named else self.limit):
            return self.kept(named, seen)
        if named:
            return Verdict(warning=self.says(seen[1], _NAMED_SAYS), amplifies=True)
        linear = self.linear_fields()
        best = Verdict(linear) if linear is not None else self.in_substeps(seen[1])
        if best is None and grown >= _NAMED:
            best = Verdict(warning=self.says(seen[1], _NONE), amplifies=True)
        return best or Verdict()

    def kept(self, named: bool, seen: tuple[float, list[Pilot]] | None) -> Verdict:
        """Stable steps are taken, but for those that are too long for the right spread."""
        if named or seen is None:
            return Verdict()
        longest = max(p.longest for p in seen[1])
        linear = self.linear_fields() if longest > _LONG else None
        if linear is not None or longest < _LONGER or not self.spreads:
            return Verdict(linear)
        off = self.off_by(self.asked)
        if off is None or off.error < (_WRONG_LEARNED if self.learned else _WRONG):
            return Verdict()
        better = None if self.learned else self.of_right_spread(seen[1])
        says = _SPREAD.format(self=self, off=off._replace(time=-off.time))
        return better or Verdict(warning=says)

    def of_right_spread(self, pilots: list[Pilot]) -> Verdict | None:
        """A solver of second order, in as many substeps as that takes."""
        n = min(_MOST, max(self.asked.substeps, *(p.substeps(_BUDGET) for p in pilots)))
        for substeps in (n, 2 * n, 4 * n):
            way = replace(self.asked, solver=diffrax.ShARK(), substeps=substeps)
            off = self.off_by(way)
            if off is not None and off.error < _WRONG:
                return Verdict(way.solver, substeps)
        return None

    def in_substeps(self, pilots: list[Pilot]) -> Verdict | None:
        """A solver of second order, in substeps for which its own pilots find enough."""
        asked, best = self.asked, None
        solver = diffrax.ShARK() if asked.noise_level else diffrax.Ralston()
        substeps = min(_MOST, max(asked.substeps, *(p.substeps(_BUDGET) for p in pilots)))
        while True:
            now, needed = self.tried(replace(asked, solver=solver, substeps=substeps)), 0
            if now is not None and now[0] < self.limit:
                best = Verdict(solver, substeps)
                needed = max(p.substeps(_BUDGET) for p in now[1])
                if needed <= substeps:
                    return best
            if substeps >= _MOST:
                return best
            substeps = min(_MOST, max(needed, 2 * substeps))

    def of_step(self, named: bool) -> Verdict:
        asked, step = self.asked, self.asked.sde.step
        assert step is not None
        seen = self.tried(asked)
        if seen is None or seen[0] < (_NAMED if named else self.limit):
            return self.kept(named, seen)
        ways = {"negated" if asked.sde.inverse == negated(step) else "given": seen}
        if not named:
            linear = self.linear_fields()
            if linear is not None:
                return Verdict(linear)
            if "negated" in ways:
                inverse = integrated_backward(step)
                other = self.tried(replace(asked, sde=replace(asked.sde, inverse=inverse)))
                if other is not None and other[0] < self.limit:
                    return Verdict(inverse=inverse)
                if other is not None:
                    ways["integrated_backward"] = other
        if seen[0] < _NAMED:
            return Verdict()
        told = [f"{name}: {self.figures(name, pilots)}" for name, (_, pilots) in ways.items()]
        warning = self.says(seen[1], _INVERSE.format("; ".join(told)), seen[0])
        return Verdict(warning=warning, amplifies=True)

    def linear_fields(self) -> GaussianStep | None:
        """``GaussianStep`` for physics that is linear and diagonal in Fourier modes."""
        asked, (x, own) = self.asked, self.looked[0]
        transform, ts = waves_of(x), jnp.asarray(asked.ts)
        noise = jax.tree.leaves(asked.sde.g(ts[0], x))
        if transform is None or not all(bool(g > 0) for g in noise):
            return None
        try:
            at = mean_field(x)
            fit = misfit_of(asked.sde, self.score, x, at, ts, own, transform)
            physics, score, sharpness = (np.asarray(v) for v in fit)
        except Exception:  # what it says of other states than its own
            return None
        if not physics.max() < LINEAR:
            return None
        linear: Any = asked.sde.linear
        linear = linear or Linearised(replace(asked.sde, linear=None), transform)
        starts = not self.learned and np.isfinite(sharpness[0]) and sharpness[0] > 0
        learned = GaussianStep(linear=linear)
        if asked.sde.linear is not None or not (sharpness[1:] > -_ROUNDING).all():
            return learned if self.stable(learned) else None
        reference = Curvature(at, ts[0] if starts else ts[1], transform)
        looked_up = GaussianStep(linear=linear, reference=reference)
        if score[1:].max() < _GAUSSIAN and self.consistent(looked_up, int(not starts)):
            return looked_up
        # What a learned score starts from is better known than what its network adds.
        return next((step for step in (learned, looked_up) if self.stable(step)), None)

    def consistent(self, solver: GaussianStep, first: int) -> bool:
        """Tell whether the Gaussians of the score follow from each other by the physics."""
        asked, (x, own) = self.asked, self.looked[0]
        ratios = np.asarray(drift_of_variances(solver, asked.sde, self.score, x, asked.ts, own))
        misses = np.abs(ratios[first:] - 1).max(axis=1)
        # Next to a singular start single precision leaves few digits of what is widest.
        return not misses.size or bool(np.quantile(misses, 0.9, method="higher") < _GAUSSIANS)

    def stable(self, solver: GaussianStep) -> bool:
        """Tell whether a step amplifies little; coarse as it is, the flow changes within it."""
        try:
            bind(solver, self.asked.sde, self.score, self.looked[0][0])
        except ValueError:  # no Gaussian is known
            return False
        seen = self.tried(replace(self.asked, solver=solver))
        return seen is not None and seen[0] < _COARSE


_NAMED_SAYS = (
    "name no solver (one that does not is chosen then), take substeps, or a step that is exact "
    "for what is linear, solver=smdp.GaussianStep()"
)
_NONE = (
    f"{_MOST} substeps of a second-order solver do not mend it. Take a step that is exact for what "
    "is linear, solver=smdp.GaussianStep(linear=..., reference=...), or an implicit solver"
)
_SPREAD = (
    "{self.verb}: steps are too long for this drift: paths spread {off.width:.2g} times as much as "
    "in shorter steps, and are shifted by {off.shift:.2g} of that, by t={off.time:g}. Take "
    "substeps, solver=diffrax.ShARK(), or store more times and learn from them"
)
_INVERSE = (
    "no way back along this flow map is stable with this score ({}). Give an inverse that is, "
    "SDE(..., inverse=...), shorter steps, a drift, or solver=smdp.GaussianStep()"
)
