r"""Window losses: unroll backward steps along a path and compare with the path.

One backward step of weight c is ``D(x) = x - dt (P - c g^2 s)``, or ``inverse(x) + c dt g^2 s``
for a flow map. From the last state of a window of S + 1 states it is applied S times without
re-reading the path, and the squared distances to the path, each divided by ``g^2 dt`` per entry,
are averaged (Holzschuh et al. 2023, eqs. 4 and 5).
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.checks import check_choice, check_counts, check_within, is_count
from smdp_jax.objectives.base import Kind, Objective, check_fits
from smdp_jax.objectives.step_miss import mean_square, step_miss
from smdp_jax.scores.learned import StepCorrection
from smdp_jax.sde import SDE, Args, Scalar, ScoreFn, State, integrated_backward
from smdp_jax.solve.gaussian import GaussianStep, bound
from smdp_jax.solve.integrate import advance
from smdp_jax.solve.reversal import forward_flow, reverse_sde, scaled_noise
from smdp_jax.trajectories import Trajectories

Form = Literal["backward", "bidirectional", "penalised"]
_FEW_ENTRIES = 64


@dataclass(frozen=True)
class MultiStep(Objective):
    r"""Sliding-window loss over growing windows.

    All three forms have the score as their minimiser for S = 1 and dt -> 0, at its true scale:

    - ``"backward"``: c = 1, since E[x_{i-1} | x_i] = x_i - dt (P - g^2 s) (Nelson 1967). The loss
      of one step is 1 at the optimum.
    - ``"bidirectional"``: c = 1/2 (the probability flow of the paper); backward windows alone
      would learn 2 s, forward windows from their first state restore s.
    - ``"penalised"``: c = 1/2, with the forward term replaced by its expectation where s hardly
      changes within a window, the penalty ``w_i dt^2 g^4 |s|^2 / 4`` of step i of S, with
      ``w_i = i (2 S - i + 1) / 2``. The simulator is called backward alone.

    For linear physics and Gaussian data, c = 1 has the exact score as its minimiser for every S,
    the other forms up to O(S dt). In general long windows differ from it: they bound the likelihood
    of the probability flow. A loss is comparable within one length of window, not across them.

    Parameters
    ----------
    windows : tuple of int
        Steps per window, trained one after the other for equal shares of the updates; a length may
        come more than once.
    form : "backward", "bidirectional" or "penalised"
        Which loss.
    gradient_cut, training_noise : int, optional, float
        Stop gradients every that many steps, which must divide every longer window; add that
        multiple of ``g sqrt(dt) z`` after each unrolled step. It is part of what is compared with
        the path: the least loss of one step is then 1 plus its square.
    solver : diffrax.AbstractSolver or GaussianStep, optional
        Solver of the unrolled steps; default as for sampling. ``GaussianStep()`` needs
        ``form="backward"``.
    learns : "score" or "correction", optional
        What the result is. Default: a score for drifts (exact as dt -> 0), a step correction for
        flow maps, whose inverse has an error that the minimiser absorbs.
    rematerialise : bool, optional
        Recompute each step in the backward pass: memory of one step instead of a whole window, for
        about a third more time. Default: for states of more than 64 numbers.

    Raises
    ------
    ValueError
        For empty, non-positive or unknown settings.
    """

    windows: tuple[int, ...] = (1, 2, 4, 10)
    form: Form = "backward"
    gradient_cut: int | None = None
    training_noise: float = 0.0
    solver: diffrax.AbstractSolver[Any] | GaussianStep | None = None
    learns: Kind | None = None
    rematerialise: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "windows", check_counts(windows=self.windows)[0])
        check_choice("learns", self.learns, "score", "correction", None)
        check_choice("rematerialise", self.rematerialise, True, False, None)
        check_choice("form", self.form, "backward", "bidirectional", "penalised")
        if isinstance(self.solver, GaussianStep) and self.form != "backward":
            raise ValueError(f"form must be 'backward' with GaussianStep(), got {self.form!r}")
        check_within("[0, inf)", training_noise=self.training_noise)
        cut, windows = self.gradient_cut, self.windows
        fits = cut is None or (is_count(cut) and all(s <= cut or s % cut == 0 for s in windows))
        if not fits:
            raise ValueError(f"gradient_cut={cut} must divide every longer window {windows}")

    @property
    def noise_level(self) -> float:
        """The alpha with (1 + alpha^2)/2 = c."""
        return 1.0 if self.form == "backward" else 0.0

    def check(self, sde: SDE, data: Trajectories) -> None:
        """Every window fits into the paths, and what is learned has a use."""
        if self.learns == "correction" and sde.step is None:
            said = "sde must have a flow map, SDE(step=...), for learns='correction'"
            raise ValueError(f"{said}, got a drift, which has a score: leave learns out")
        check_fits(self.windows, data)

    def kind(self, sde: SDE) -> str:
        """A score, or a correction of these steps (``learns``)."""
        return self.learns or ("score" if sde.step is None else "correction")

    def learned(self, sde: SDE, model: Any, variables: Any, scales: Any, ts: Any) -> Any:
        """A score, which knows the first and last time, or a correction, which knows all."""
        if self.kind(sde) == "score":
            return super().learned(sde, model, variables, scales, ts)
        assert sde.step is not None
        walks = sde.inverse == integrated_backward(sde.step)
        how: dict[str, Any] = {"ts": ts, "noise_level": self.noise_level}
        how["inverse"] = "integrated_backward" if walks else None
        return StepCorrection(model, variables, scales, **how)

    def miss(self, sde: SDE, learned: Any, data: Trajectories, key: PRNGKeyArray) -> Array:
        """The step is that of the windows."""
        how: dict[str, Any] = {"noise_level": self.noise_level, "solver": self.solver}
        return step_miss(sde, learned, data, key=key, **how)

    def loss(
        self, learned: ScoreFn, sde: SDE, window: Trajectories, constants: None, key: PRNGKeyArray
    ) -> Scalar:
        """Mean over steps and entries of squared distance over noise variance, of one window."""
        ts, xs, args = window.ts, window.xs, window.args
        scale = _noise_scale(sde, ts, xs)
        back = reverse_sde(sde, learned, noise_level=self.noise_level)
        back = replace(back, diffusion=scaled_noise(sde.diffusion, self.training_noise, -1))
        last = jax.tree.map(lambda x: x[-1], xs)
        solver = bound(self.solver, sde, learned, last, self.noise_level)
        backward_key, forward_key = jax.random.split(key)
        reached = self._unroll(back, solver, last, -ts[::-1], args, backward_key)
        distance = jax.tree.map(lambda y, x: y[::-1] - x[:-1], reached, xs)
        total = mean_square(distance, scale)
        if self.form == "penalised":
            total += self._penalty(learned, window, scale)
        if self.form == "bidirectional":
            forth = forward_flow(sde, learned)
            forth = replace(forth, diffusion=scaled_noise(sde.diffusion, self.training_noise))
            first = jax.tree.map(lambda x: x[0], xs)
            reached = self._unroll(forth, solver, first, ts, args, forward_key)
            distance = jax.tree.map(lambda y, x: y - x[1:], reached, xs)
            total += mean_square(distance, scale)
        return total

    def _penalty(self, score: ScoreFn, window: Trajectories, scale: State) -> Scalar:
        """What the forward windows would add, per step: ``w_i g^2 dt |s|^2 / 4``.

        Step i of S moves all i states before it, and each of these S - j steps have moved by
        ``g^2 dt s / 2``: w_i is the sum over j < i of S - j, which is 1 for S = 1.
        """
        steps = window.ts.shape[0] - 1
        later = jax.tree.map(lambda x: x[1:], window.xs)
        s = jax.vmap(lambda t, x: score(t, x, window.args))(window.ts[1:], later)
        i = np.arange(1, steps + 1)
        root = np.sqrt(i * (2 * steps - i + 1) / 2)

        def shift(s: Any, sigma: Any) -> Any:
            weight = jnp.asarray(0.5 * root, s.dtype).reshape(sigma.shape)
            return weight * sigma**2 * s

        return mean_square(jax.tree.map(shift, s, scale), scale)

    def _unroll(
        self, process: SDE, solver: Any, x: State, ts: Any, args: Args, key: PRNGKeyArray
    ) -> State:
        """Return the states after each step, gradients cut between segments."""
        steps = ts.shape[0] - 1
        length = min(self.gradient_cut or steps, steps)
        again = self.rematerialise
        if again is None:
            again = sum(leaf.size for leaf in jax.tree.leaves(x)) > _FEW_ENTRIES
        how = {"args": args, "solver": solver, "rematerialise": again and steps > 1}

        def segment(x: State, inputs: tuple) -> tuple[State, State]:
            n, grid = inputs
            first, own = jax.lax.stop_gradient(x), jax.random.fold_in(key, n)
            states, _ = advance(process, first, grid, key=own, **how)
            return jax.tree.map(lambda s: s[-1], states), jax.tree.map(lambda s: s[1:], states)

        if length == steps:
            return segment(x, (0, ts))[1]
        grids = ts[jnp.arange(steps // length)[:, None] * length + jnp.arange(length + 1)[None]]
        _, states = jax.lax.scan(segment, x, (jnp.arange(steps // length), grids))
        return jax.tree.map(lambda s: s.reshape(steps, *s.shape[2:]), states)


@dataclass(frozen=True)
class OneStep(MultiStep):
    """The loss of a single backward step, equivalent to score matching up to O(dt).

    ``MultiStep`` with windows of one step (Holzschuh et al. 2023, eq. 4 and theorem 3.1).

    Parameters
    ----------
    form, gradient_cut, training_noise, solver, learns, rematerialise
        As for ``MultiStep``.
    """

    windows: tuple[int, ...] = field(default=(1,), init=False)


def _noise_scale(sde: SDE, ts: Any, xs: State) -> State:
    """``g sqrt(dt)`` of every step, leaves (steps, 1, ...) to divide distances by."""
    g = jax.vmap(lambda t0, t1: sde.g_of_step(t0, t1, xs))(ts[:-1], ts[1:])

    def scale(g: Any, x: Any) -> Any:
        sigma = g * jnp.sqrt(jnp.diff(ts)).astype(g.dtype)
        return sigma.reshape((-1,) + (1,) * (x.ndim - 1))

    return jax.tree.map(scale, g, xs)
