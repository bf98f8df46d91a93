"""Learn a score from trajectories: ``fit``."""

import contextlib
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.checks import (
    check_data,
    check_key,
    check_kinds,
    check_like,
    check_positive,
    check_validation,
)
from smdp_jax.objectives import Objective
from smdp_jax.scores.learned import LearnedScore, StepCorrection, apply_network
from smdp_jax.scores.preconditioner import Preconditioner
from smdp_jax.scores.step import LearnedStep
from smdp_jax.sde import SDE
from smdp_jax.training.checkpoints import RunDirectory
from smdp_jax.training.epochs import Blocks, Pace, TrainingDiverged, run_epochs
from smdp_jax.training.identity import identity_of
from smdp_jax.training.step_miss import learned_step_miss, step_miss
from smdp_jax.training.updates import Problem, TrainingState, Windows
from smdp_jax.trajectories import Trajectories, TrajectoryStream

__all__ = ["Fit", "TrainingDiverged", "fit"]

_MISS_WARNING = 3.0


@dataclass(frozen=True)
class Fit:
    """What training returns.

    Parameters
    ----------
    learned : LearnedScore, StepCorrection or LearnedStep
        The EMA parameters, callable as ``(t, x, args)``; a step as ``(start, stop, x, args)``.
    history : dict of arrays
        Per epoch: ``step`` (updates done), ``window`` (steps per window), ``loss``,
        ``validation_loss`` (NaN without validation data).
    step_miss : array (times - 1,)
        Squared miss of one backward step over its noise variance by time; see
        ``diagnostics.step_miss``. For a learned step over the mean squared increment.
    """

    learned: LearnedScore | StepCorrection | LearnedStep
    history: dict[str, np.ndarray]
    step_miss: np.ndarray

    @property
    def score(self) -> LearnedScore:
        """The learned score.

        Raises
        ------
        TypeError
            If training learned a step correction, or a step.
        """
        if isinstance(self.learned, StepCorrection):
            raise TypeError(
                "this fit learned a step correction (windows on a flow map), not a score: use "
                "fit.correction on its own time grid, or train with PathScore()"
            )
        if isinstance(self.learned, LearnedStep):
            raise TypeError("this fit learned a step of the physics: use fit.step")
        return self.learned

    @property
    def correction(self) -> StepCorrection:
        """The learned step correction.

        Raises
        ------
        TypeError
            If training learned a score, or a step.
        """
        if isinstance(self.learned, LearnedScore):
            raise TypeError("this fit learned a score: use fit.score")
        if isinstance(self.learned, LearnedStep):
            raise TypeError("this fit learned a step of the physics: use fit.step")
        return self.learned

    @property
    def score_or_correction(self) -> LearnedScore | StepCorrection:
        """What a backward solve takes, whichever of the two it is.

        Raises
        ------
        TypeError
            If training learned a step.
        """
        return self.correction if isinstance(self.learned, StepCorrection) else self.score

    @property
    def step(self) -> LearnedStep:
        """The learned step, for ``SDE(step=..., inverse=fit.step)``.

        Raises
        ------
        TypeError
            If training learned a score or a step correction.
        """
        if not isinstance(self.learned, LearnedStep):
            raise TypeError("this fit learned no step: train with InverseStep()")
        return self.learned


def fit(
    sde: SDE,
    model: Any,
    data: Trajectories | TrajectoryStream,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    key: PRNGKeyArray,
    batch_size: int = 256,
    ema: float = 0.999,
    precondition: bool = True,
    validation: Trajectories | None = None,
    initial: LearnedScore | StepCorrection | LearnedStep | None = None,
    epoch_steps: int = 500,
    directory: str | Path | None = None,
    checkpoint_seconds: float = 10.0,
    progress: bool = True,
) -> Fit:
    """Train a score network on trajectories.

    Epochs run on the device without returning to Python; one compilation per window length.

    Parameters
    ----------
    sde : SDE
        The process that the trajectories follow.
    model : flax.linen.Module
        Network ``model(t, x, args)``, unbatched: t a scalar, x one state, result like x.
    data : Trajectories or TrajectoryStream
        Training paths. Of a stream every epoch takes the next block; scales and constants of the
        loss are those of the first one.
    objective : Objective
        ``OneStep()``, ``MultiStep(...)`` or ``PathScore()``, which learn a score or a step
        correction; ``InverseStep()``, which learns a step.
    optimizer : optax.GradientTransformation
        Any optax optimiser; schedules count updates.
    steps : int
        Updates in all; several window lengths share them equally.
    key : PRNG key
        Initial parameters and batches.
    batch_size : int
        Windows per update.
    ema : float
        Decay of the exponential moving average of the parameters, which is what is returned.
    precondition : bool
        True: the network is a correction, with normalised input and output, of the score of a
        Gaussian with the data's mean and variance (``Preconditioner``). False: the network's
        output is the score itself, as for networks that bring their own preconditioning. A
        learned step always has its own scales (``StepScale``).
    validation : Trajectories, optional
        Paths for the validation loss, evaluated with the averaged parameters after each epoch;
        at the times of the data.
    initial : LearnedScore, StepCorrection or LearnedStep, optional
        Start from these parameters, of the same model; its preconditioner is kept.
    epoch_steps : int
        Updates per dispatch.
    directory : path, optional
        Keep checkpoints and ``metrics.jsonl`` there. The same call on the same directory goes on
        where it was stopped, to the same result bit for bit on CPU.
    checkpoint_seconds : float
        Least time between checkpoints.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Fit
        ``fit.score`` (or ``fit.correction``, ``fit.step``), ``fit.history``, ``fit.step_miss``.

    Raises
    ------
    ValueError
        If data, process, objective, key or directory do not fit (see the message).
    TypeError
        If an argument is of another kind, as a number in place of an optimiser.
    TrainingDiverged
        If the loss is not finite; the last good checkpoint is kept.
    """
    check_kinds(model, data, objective, optimizer, validation, initial)
    check_key(key)
    init_key, batch_key, end_key, val_key = jax.random.split(key, 4)
    miss_key, order_key = jax.random.split(end_key)
    stream = None if isinstance(data, Trajectories) else data
    data = _on_device(data if isinstance(data, Trajectories) else next(data.blocks(order_key)))
    validation = _on_device(validation) if validation is not None else None
    steps, batch_size, epoch_steps = check_positive(
        steps=steps, batch_size=batch_size, epoch_steps=epoch_steps
    )
    check_data(sde, data, ema)
    constants = objective.prepare(sde, data)
    preconditioner = None
    if initial is not None:
        preconditioner = initial.preconditioner
    elif objective.kind(sde) == "step":
        preconditioner = constants
    elif precondition:
        preconditioner = Preconditioner.of(sde, data)
    params, others = _start(model, initial, data, init_key)
    problem = Problem(sde, model, objective, optimizer, batch_size, ema, others, preconditioner)
    state = TrainingState(params, params, optimizer.init(params), jnp.zeros((), jnp.int32))
    source = Windows(data, constants, batch_key)
    held_out = None
    if validation is not None:
        check_validation(sde, objective, data, validation)
        held_out = Windows(validation, constants, val_key)
    pace = Pace(steps, epoch_steps, checkpoint_seconds, progress)
    with contextlib.ExitStack() as stack:
        store = None
        if directory is not None:
            identity = identity_of(problem, params, data, steps, key, initial)
            if stream is not None:
                identity |= {"data": stream.fingerprint, "epoch_steps": epoch_steps}
            store = RunDirectory(directory, identity)
            stack.callback(store.close)
        blocks = Blocks(data, stream, order_key)
        state, records = run_epochs(problem, state, source, blocks, held_out, pace, store)
    learned = _learned(problem, state, data)
    miss = _miss(problem, learned, validation or data, miss_key)
    names = ("step", "window", "loss", "validation_loss")
    history = {n: np.array([r[n] if r[n] is not None else np.nan for r in records]) for n in names}
    return Fit(learned, history, miss)


def _start(
    model: Any,
    initial: LearnedScore | StepCorrection | LearnedStep | None,
    data: Trajectories,
    key: PRNGKeyArray,
) -> tuple[Any, dict[str, Any]]:
    """Parameters to start from, and the network's other variables."""
    t, x, args = data.ts[-1], data.at(0, -1), data.args_of(0)
    variables = jax.jit(model.init)(key, t, x, args) if initial is None else initial.variables
    result = jax.eval_shape(partial(apply_network, model), variables, t, x, args)
    check_like(x, result, "the network")
    others = {name: value for name, value in variables.items() if name != "params"}
    return variables.get("params", {}), others


def _on_device(data: Trajectories) -> Trajectories:
    """Numpy's arrays, as read from files, take no traced index and would be moved every epoch."""
    return jax.tree.map(jnp.asarray, data)


def _learned(
    problem: Problem, state: TrainingState, data: Trajectories
) -> LearnedScore | StepCorrection | LearnedStep:
    learned = problem.learned(state.ema)
    if isinstance(learned, LearnedStep) or problem.objective.kind(problem.sde) == "score":
        return learned
    return StepCorrection(
        learned.model,
        learned.variables,
        learned.preconditioner,
        ts=data.ts,
        noise_level=problem.objective.noise_level,
    )


def _miss(
    problem: Problem,
    learned: LearnedScore | StepCorrection | LearnedStep,
    data: Trajectories,
    key: PRNGKeyArray,
) -> np.ndarray:
    if isinstance(learned, LearnedStep):
        return np.asarray(learned_step_miss(learned, data, key=key))
    objective = problem.objective
    miss = np.asarray(
        step_miss(
            problem.sde,
            learned,
            data,
            key=key,
            noise_level=objective.noise_level,
            solver=getattr(objective, "solver", None),
        )
    )
    _warn_of_miss(miss, data.ts)
    return miss


def _warn_of_miss(miss: np.ndarray, ts: Float[Array, "times"]) -> None:
    worst = int(np.nanargmax(miss)) if np.isfinite(miss).any() else 0
    share = float(np.mean(~(miss <= _MISS_WARNING)))
    if share > 0.1:
        warnings.warn(
            f"one backward step misses the data by more than {_MISS_WARNING:g} times its noise "
            f"variance at {share:.0%} of the times (worst {miss[worst]:.3g} times at "
            f"t={float(ts[worst + 1]):g}; 1 is the optimum): train longer, or use smaller steps",
            stacklevel=4,
        )
