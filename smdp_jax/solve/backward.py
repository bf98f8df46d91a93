"""One path back in time: solver, corrector, and what there is to tell of it."""

import math
from dataclasses import dataclass
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.sde import SDE, Args, Scalar, ScoreFn, State, reverse_sde
from smdp_jax.solve.adaptive import solve_adaptive
from smdp_jax.solve.integrate import Save, integrate
from smdp_jax.solve.solvers import default_adaptive_solver, default_solver, evaluations_per_step

__all__ = ["BackwardSolve", "Langevin", "SolveInfo"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SolveInfo:
    """Diagnostics of a backward solve.

    Parameters
    ----------
    evaluations : int array
        Score evaluations per path.
    finite : bool array
        Whether each path ended finite.
    max_score : array
        Largest absolute entry of the score, looked at where the last and one
        in 32 or more of the other steps start.
    """

    evaluations: Any
    finite: Any
    max_score: Any


@dataclass(frozen=True)
class Langevin:
    """Corrector: after each step, ``steps`` moves ``x + eps s + sqrt(2 eps) z``.

    Each leaves p_t invariant, and so mends the marginal; but it also forgets the observed end
    state, at the rate of eps. Keep eps far below the variance of the posterior at that time.

    Parameters
    ----------
    step_size : float
        eps, in squared units of the state.
    steps : int
        Moves after each solver step.

    Raises
    ------
    ValueError
        If ``step_size`` or ``steps`` is not positive.

    References
    ----------
    Song et al. (2021), "Score-Based Generative Modeling through Stochastic Differential
    Equations", algorithm 1.
    """

    step_size: float
    steps: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.step_size < math.inf or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(
                f"Langevin needs a positive step_size and a positive int as steps, got {self}"
            )


class BackwardSolve(eqx.Module):
    """One backward solve of one path, with everything that is decided before it starts."""

    sde: SDE = eqx.field(static=True)
    ts: Array
    solver: diffrax.AbstractSolver | None
    substeps: int = eqx.field(static=True)
    noise_level: float = eqx.field(static=True)
    denoise_last: bool = eqx.field(static=True)
    corrector: Langevin | None = eqx.field(static=True)
    controller: diffrax.AbstractAdaptiveStepSizeController | None
    save: Any = eqx.field(static=True, converter=lambda s: s if isinstance(s, str) else tuple(s))

    def __call__(
        self, score: ScoreFn, x_end: State, key: PRNGKeyArray | None, args: Args
    ) -> tuple[State, SolveInfo]:
        """Solve."""
        process = reverse_sde(self.sde, score, noise_level=self.noise_level)
        if self.controller is not None:
            return self._adaptive(process, score, x_end, key, args)
        solver = default_solver(process) if self.solver is None else self.solver
        grid = -self.ts[::-1]

        def correct(key: PRNGKeyArray, tau: Scalar, x: State) -> State:
            assert self.corrector is not None
            return _langevin(self.corrector, score, key, -tau, x, args)

        last = grid.shape[0] - 1
        save: Save = self.save
        if not isinstance(save, str):
            save = [last - range(last + 1)[i] for i in save]
        xs, largest = integrate(
            process,
            x_end,
            grid,
            key=key,
            args=args,
            solver=solver,
            substeps=self.substeps,
            save=save,
            denoise_last=self.denoise_last,
            after_step=None if self.corrector is None else correct,
            monitor=lambda tau, x: _largest(score(-tau, x, args)),
        )
        if save != "last":
            xs = jax.tree.map(lambda x: x[::-1], xs)
        per_step = evaluations_per_step(solver)
        if self.corrector is not None:
            per_step += self.corrector.steps
        return xs, _info(xs, last * self.substeps * per_step, largest)

    def _adaptive(
        self, process: SDE, score: ScoreFn, x_end: State, key: PRNGKeyArray | None, args: Args
    ) -> tuple[State, SolveInfo]:
        if self.corrector is not None or self.denoise_last or self.substeps != 1:
            raise ValueError("corrector, denoise_last and substeps need fixed steps")
        assert self.controller is not None
        solver = default_adaptive_solver(process) if self.solver is None else self.solver
        xs, steps = solve_adaptive(
            process,
            x_end,
            -self.ts[::-1],
            controller=self.controller,
            key=key,
            args=args,
            solver=solver,
        )
        xs = jax.tree.map(lambda x: x[::-1], xs)
        sizes = jax.vmap(lambda t, x: _largest(score(t, x, args)))(self.ts, xs)
        largest = jnp.max(sizes[1:])
        per_step = evaluations_per_step(solver)
        if self.save == "last":
            xs = jax.tree.map(lambda x: x[0], xs)
        elif self.save != "all":
            chosen = jnp.array(sorted(range(self.ts.shape[0])[i] for i in self.save))
            xs = jax.tree.map(lambda x: x[chosen], xs)
        return xs, _info(xs, steps * per_step, largest)


def _largest(score: State) -> Scalar:
    leaves = [jnp.max(jnp.abs(s)) for s in jax.tree.leaves(score)]
    return jnp.max(jnp.stack([leaf.astype(leaves[0].dtype) for leaf in leaves]))


def _info(xs: State, evaluations: Any, largest: Scalar) -> SolveInfo:
    finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(xs)]).all()
    return SolveInfo(jnp.asarray(evaluations), finite, jnp.asarray(largest))


def _langevin(
    corrector: Langevin, score: ScoreFn, key: PRNGKeyArray, t: Scalar, x: State, args: Args
) -> State:
    leaves, tree = jax.tree.flatten(x)

    def move(x: State, i: Array) -> tuple[State, None]:
        keys = jax.random.split(jax.random.fold_in(key, i), len(leaves))
        size, kick = corrector.step_size, math.sqrt(2 * corrector.step_size)

        def one(x: Array, s: Array, key: PRNGKeyArray) -> Array:
            return x + size * s + kick * jax.random.normal(key, x.shape, x.dtype)

        keys_tree = jax.tree.unflatten(tree, list(keys))
        return jax.tree.map(one, x, score(t, x, args), keys_tree), None

    return jax.lax.scan(move, x, jnp.arange(corrector.steps))[0]
