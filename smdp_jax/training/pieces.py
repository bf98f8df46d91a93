"""What ``fit`` is made of, for training loops of one's own."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.checks import check_key, check_like, check_positive, check_within
from smdp_jax.compiled import once
from smdp_jax.objectives import Objective
from smdp_jax.scores.learned import apply_network, readable_errors
from smdp_jax.sde import SDE
from smdp_jax.solve.batches import Split
from smdp_jax.training.asked import check_initial, check_kinds, check_paths
from smdp_jax.training.defaults import or_defaults
from smdp_jax.training.shares import Shares
from smdp_jax.training.updates import Fixed, Problem, TrainingState, averages
from smdp_jax.trajectories import Trajectories, filled


@dataclass(frozen=True)
class Training:
    """Pure functions that train: what ``fit`` calls in its loop.

    Parameters
    ----------
    problem : Problem
        Process, network, objective, optimiser, batch size and decay of the averages.
    fixed : Fixed
        The network's other variables, scales of the data, times.
    constants : pytree
        Of the objective's loss.
    """

    problem: Problem
    fixed: Fixed
    constants: Any

    def gradient(
        self,
        params: Any,
        data: Trajectories,
        key: PRNGKeyArray,
        number: Any = 0,
        *,
        window: int | None = None,
    ) -> tuple[Array, Any]:
        """Compute the mean loss of a random batch, and its gradient.

        Parameters
        ----------
        params, data : pytree, Trajectories
            Such as ``state.params``; paths on the times of those that ``prepare`` was given.
        key, number : PRNG key, int
            The batch is drawn from ``fold_in(key, number)``.
        window : int, optional
            Steps per window, known when this is compiled; default the objective's first.

        Returns
        -------
        tuple (scalar, pytree)
            Loss and gradient.
        """
        source, steps = self._cut(data, key, window)
        return jax.value_and_grad(self.problem.loss_of(self.fixed, source, number, steps))(params)

    def update(
        self,
        state: TrainingState,
        data: Trajectories,
        key: PRNGKeyArray,
        *,
        window: int | None = None,
    ) -> tuple[TrainingState, Array]:
        """Take one step of the optimiser, and move the averages.

        Parameters
        ----------
        state, data : TrainingState, Trajectories
            Where training has come to; paths on the times of those that ``prepare`` was given.
        key : PRNG key
            The batch is drawn from ``fold_in(key, state.step)``: the same key may be given always.
        window : int, optional
            As for ``gradient``.

        Returns
        -------
        tuple (TrainingState, scalar)
            The new state, and the loss before it.
        """
        return self.problem.one_update(state, self.fixed, *self._cut(data, key, window))

    def learned(
        self,
        state: TrainingState,
        held_out: Trajectories | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Any:
        """Return what was learned, with the averaged parameters.

        Parameters
        ----------
        state : TrainingState
            After the last update.
        held_out, key : Trajectories, PRNG key, optional
            Paths not trained on, and randomness: a kernel measures the noise left on them.

        Returns
        -------
        LearnedScore, StepCorrection, LearnedStep or LearnedKernel
            Like ``fit.learned``.

        Raises
        ------
        ValueError
            If there are held-out paths and no key.
        """
        term = self.problem.averaged(state, self.fixed)
        if held_out is not None:
            if key is None:
                raise ValueError("key must be given where there are held-out paths, got None")
            check_key(key)
            term = self.problem.objective.finish(term, on_device(held_out), key)
        return term

    def _cut(self, data: Trajectories, key: PRNGKeyArray, window: int | None) -> Any:
        """Where batches are cut from, and the steps of their windows."""
        steps = self.problem.objective.windows[0] if window is None else window
        return self.problem.windows(data, self.constants, key), steps


def prepare(
    sde: SDE,
    model: Any,
    data: Trajectories,
    objective: Objective | None = None,
    optimizer: optax.GradientTransformation | None = None,
    *,
    batch_size: int | None = None,
    ema: float = 0.999,
    precondition: bool = True,
    initial: Any = None,
    key: PRNGKeyArray,
) -> tuple[Training, TrainingState]:
    """Prepare a training whose loop is yours: checks, scales of the data, first parameters.

    Parameters
    ----------
    sde, model, data, objective, optimizer, batch_size, ema, precondition, initial
        As for ``fit``, and with its defaults; the optimiser's rate is constant.
        ``data`` are in memory: scales and constants of the loss come from them.
    key : PRNG key
        Initial parameters.

    Returns
    -------
    tuple (Training, TrainingState)
        Pure functions, to be compiled by ``jax.jit``, and the state they start from.

    Raises
    ------
    ValueError, TypeError
        As ``fit``.
    """
    how = (objective, optimizer, batch_size)
    objective, optimizer, batch_size = or_defaults(*how, data, model, None)
    given = {"model": model, "data": data, "objective": objective, "optimizer": optimizer}
    check_kinds(**given, initial=initial)
    check_key(key)
    (size,) = check_positive(batch_size=batch_size)
    check_within("[0, 1)", ema=ema)
    check_initial(sde, data, objective, initial)
    check_paths(sde, objective, data)
    optimizer = optax.with_extra_args_support(optimizer)
    problem = Problem(sde, model, objective, optimizer, size, ema)
    return start(problem, on_device(filled(data)), key, precondition=precondition, initial=initial)


def start(
    problem: Problem, paths: Trajectories, key: PRNGKeyArray, *, precondition: bool, initial: Any
) -> tuple[Training, TrainingState]:
    """Scales, constants and first parameters of a training on paths that are checked."""
    objective, sde = problem.objective, problem.sde
    constants = objective.prepare(sde, paths)
    scales = initial.preconditioner if initial else objective.scales(sde, paths, precondition)
    seen = _seen(objective, problem.model, scales, paths)
    params, others = _first(problem.model, initial, seen, key)
    state = TrainingState(params, *_initial(problem.optimizer, params), jnp.array(0))
    fixed = Fixed(others, scales, paths.ts)
    if problem.split is not None:
        state, fixed = problem.split.put((state, fixed), whole=True)
    return Training(problem, fixed, constants), state


def _first(
    model: Any, initial: Any, seen: tuple[Any, Any, Any], key: PRNGKeyArray
) -> tuple[Any, dict[str, Any]]:
    """Parameters to start from, and the network's other variables."""
    t, x, args = seen
    if initial is None:
        with readable_errors(model, x, args):
            variables = _drawn(model, key, t, x, args)
    else:
        variables = jax.tree.map(jnp.array, initial.variables)
        with readable_errors(model, x, args):
            _check_parameters(variables, jax.eval_shape(model.init, key, t, x, args))
    result = jax.eval_shape(partial(apply_network, model), variables, t, x, args)
    check_like(x, result, "the network")
    others = {name: value for name, value in variables.items() if name != "params"}
    return variables.get("params", {}), others


def _check_parameters(given: Any, own: Any) -> None:
    shapes = lambda v: {jax.tree_util.keystr(p): x.shape for p, x in jax.tree.leaves_with_path(v)}
    found, want = shapes(given.get("params", {})), shapes(own.get("params", {}))
    for name in {**want, **found}:
        if found.get(name) != want.get(name):
            said = f"initial must have the parameters of the model, got {found.get(name)} where"
            remedy = "build the network that was trained"
            raise ValueError(f"{said} {want.get(name)} is wanted for {name}: {remedy}")


@once
def _seen(objective: Objective, model: Any, scales: Any, paths: Trajectories) -> Any:
    return objective.seen(model, scales, paths)


@once
def _drawn(model: Any, key: PRNGKeyArray, t: Any, x: Any, args: Any) -> Any:
    """Random variables of a network."""
    return model.init(key, t, x, args)


def _initial(optimizer: optax.GradientTransformation, params: Any) -> tuple[Any, Any]:
    """Averages and the optimiser's state, their own from the start: the first epoch uses them."""
    with jax.numpy_dtype_promotion("standard"):
        return once(lambda params: (averages(params), optimizer.init(params)))(params)


def on_device(data: Trajectories, split: Split | None = None) -> Trajectories:
    """Put paths where they are trained on; equal parts go to their devices at once.

    Numpy's arrays, as read from files, take no traced index and would be moved every epoch.
    """
    if split is None or data.num_samples % split.count:
        return jax.tree.map(jnp.asarray, data)
    return Shares(data.num_samples, split.count, split.count).laid_out(data, split)
