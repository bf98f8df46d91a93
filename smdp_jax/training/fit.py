"""Learn a score from trajectories: ``fit``."""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from smdp_jax.compiled import once
from smdp_jax.objectives import Objective
from smdp_jax.scores.kernel import LearnedKernel
from smdp_jax.scores.learned import LearnedScore, StepCorrection
from smdp_jax.scores.step import LearnedStep
from smdp_jax.sde import SDE
from smdp_jax.solve.batches import Split, on_auto_mesh, say_filled_up, split_of
from smdp_jax.training.asked import Asked, check_fit
from smdp_jax.training.checkpoints import RunDirectory
from smdp_jax.training.defaults import in_dtype, or_defaults
from smdp_jax.training.epochs import Blocks, Callback, run_epochs
from smdp_jax.training.finish import finished
from smdp_jax.training.identity import identity_of
from smdp_jax.training.pieces import on_device, start
from smdp_jax.training.updates import Problem
from smdp_jax.trajectories import Trajectories, TrajectoryStream, as_stream, filled


@dataclass(frozen=True)
class Fit:
    """What training returns.

    Parameters
    ----------
    learned : LearnedScore, StepCorrection, LearnedStep or LearnedKernel
        The EMA parameters, callable as ``(t, x, args)``; a step as ``(start, stop, x, args)``.
    history : dict of arrays
        Per epoch: ``step`` (updates done), ``window`` (steps per window), ``loss``,
        ``validation_loss`` (NaN without validation data). Losses compare within a window length.
    step_miss : array (times - 1,)
        Squared miss of one backward step over its noise variance by time; see
        ``smdp.step_miss``. For a learned step over the mean squared increment.
    """

    learned: LearnedScore | StepCorrection | LearnedStep | LearnedKernel
    history: dict[str, np.ndarray]
    step_miss: np.ndarray

    @property
    def score(self) -> LearnedScore:
        """The learned score; a TypeError if there is none."""
        return self._as("score")

    @property
    def correction(self) -> StepCorrection:
        """The learned step correction; a TypeError if there is none."""
        return self._as("correction")

    @property
    def kernel(self) -> LearnedKernel:
        """The learned backward kernel; a TypeError if there is none."""
        return self._as("kernel")

    @property
    def score_or_correction(self) -> LearnedScore | StepCorrection:
        """What a backward solve takes, whichever of the two it is; a TypeError if neither."""
        return self._as("correction" if self.learned.kind == "correction" else "score")

    @property
    def step(self) -> LearnedStep:
        """The learned step, ``SDE(step=..., inverse=fit.step)``; a TypeError if there is none."""
        return self._as("step")

    def _as(self, kind: str) -> Any:
        if self.learned.kind != kind:
            raise TypeError(f"this fit learned {self.learned.what}")
        return self.learned


def fit(
    sde: SDE,
    model: Any,
    data: Trajectories | TrajectoryStream | Iterable[Trajectories],
    objective: Objective | None = None,
    optimizer: optax.GradientTransformation | None = None,
    *,
    steps: int,
    key: PRNGKeyArray,
    batch_size: int | None = None,
    ema: float = 0.999,
    precondition: bool = True,
    dtype: DTypeLike | None = None,
    validation: Trajectories | None = None,
    initial: LearnedScore | StepCorrection | LearnedStep | LearnedKernel | None = None,
    epoch_steps: int = 500,
    directory: str | Path | None = None,
    mesh: Mesh | None = None,
    checkpoint_seconds: float = 10.0,
    progress: bool = True,
    callback: Callback | None = None,
) -> Fit:
    """Train a score network on trajectories.

    Epochs run on the device; one compilation per window length, shared by all trainings that
    compute the same on arrays of the same shapes.

    Parameters
    ----------
    sde : SDE
        The process that the trajectories follow. A step correction on a flow map whose inverse is
        not named takes, and keeps, the better of ``negated`` and ``integrated_backward``.
    model : flax.linen.Module
        Network ``model(t, x, args)``, unbatched: t a scalar, x one state, result like x.
    data : Trajectories, TrajectoryStream or iterable of Trajectories
        Training paths. Of a stream every epoch takes the next block; scales and constants of the
        loss are those of the first one. An iterable of blocks of equal shapes is gone through
        again and again; with ``directory`` it needs a ``fingerprint``.
    objective : Objective, optional
        ``BackwardKernel()``, the default, which learns a backward kernel; ``OneStep()``,
        ``MultiStep(...)`` or ``PathScore()``, which learn a score or a step correction;
        ``InverseStep()``, which learns a step.
    optimizer : optax.GradientTransformation, optional
        Of optax, also with extra arguments (``optax.lbfgs``); schedules count updates. Default:
        Muon from 1e-2 down to 0 as a cosine for a kernel, else Adam from 2e-3, gradients clipped
        at norm 1. ``optax.flatten`` spares small networks most of its operations.
    steps, key : int, PRNG key
        Updates in all, in equal shares for all window lengths; initial parameters and batches.
    batch_size : int, optional
        Windows per update. Default 256; for a kernel 16 to 512, by state and network.
    ema : float
        Decay of the exponential moving average of the parameters, which is what is returned.
    precondition : bool
        True: the network corrects, with normalised input and output, the score of a Gaussian with
        the data's mean and variance (``Preconditioner``). False: its output is the score itself,
        for networks that precondition. A learned step has its own scales (``StepScale``).
    dtype : dtype, optional
        What a network on fields computes in, such as ``jnp.bfloat16``, two to eight times as fast
        on accelerators; parameters, averages, times and the loss stay as they are.
    validation : Trajectories, optional
        Paths at the times of the data, for the averages' validation loss after each epoch.
    initial : LearnedScore, StepCorrection, LearnedStep or LearnedKernel, optional
        Start from these parameters, of the same model; its preconditioner is kept.
    epoch_steps : int
        Updates per dispatch.
    directory : path, optional
        Keep checkpoints and ``metrics.jsonl`` there. The same call goes on where it was stopped,
        to the same result bit for bit on CPU; another one is refused, told by what it computes
        (process, network, loss, optimiser, data, versions).
    mesh : jax.sharding.Mesh, optional
        Devices that share paths and batches along its axis ``data``, with one sum of the gradients
        per update, to the same result up to rounding; a run may be resumed on another number of
        them. Default: the mesh that the paths are split over already, if they are.
    checkpoint_seconds, progress : float, bool
        Least time between checkpoints; show a progress bar.
    callback : callable, optional
        ``callback(metrics, params)`` after every epoch, with its line of ``metrics.jsonl`` and the
        averaged parameters; True stops training.

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
        If an update leaves the finite numbers, with the reason; the last checkpoint is kept.
    """
    split = split_of(mesh, getattr(data, "xs", None))
    data, validation, initial, key = on_auto_mesh((as_stream(data), validation, initial, key))
    how = (objective, optimizer, batch_size)
    objective, optimizer, batch_size = or_defaults(*how, data, model, steps)
    model = model if dtype is None else in_dtype(model, dtype)
    terms = (sde, model, data, objective, optimizer, key, validation, initial, callback)
    numbers = (steps, batch_size, epoch_steps, ema, checkpoint_seconds, precondition, progress)
    asked, check_block = check_fit(Asked(*terms, *numbers))
    say_filled_up("windows: a batch of", asked.batch_size, split)
    return _trained(asked, check_block, split, directory)


def _trained(
    asked: Asked,
    check_block: Callable[[Trajectories], None],
    split: Split | None,
    directory: str | Path | None,
) -> Fit:
    """What is learned from what was asked."""
    sde, data, objective, validation = asked.sde, asked.data, asked.objective, asked.validation
    init_key, batch_key, val_key, order_key, *last_keys = _keys(asked.key)
    set_aside = validation
    # What all processes hold whole anyway is laid out for the updates alone.
    laid = None if split is None or split.gathered else split
    if isinstance(data, Trajectories):
        data = on_device(filled(data), laid)
        if validation is None:
            data, set_aside = objective.split(data)
    blocks, held_out = Blocks(data, order_key, check_block), None
    paths = next(blocks.after(0))
    optimizer = optax.with_extra_args_support(asked.optimizer)
    problem = Problem(sde, asked.model, objective, optimizer, asked.batch_size, asked.ema, split)
    how = {"precondition": asked.precondition, "initial": asked.initial}
    training, state = start(problem, paths, init_key, **how)
    fixed, constants = training.fixed, training.constants
    if validation is not None:
        validation = on_device(filled(validation), laid)
        held_out = problem.windows(validation, constants, val_key)
    with contextlib.ExitStack() as stack:
        store = None
        if directory is not None:
            identity = identity_of(asked, training, state, paths, validation)
            store = stack.enter_context(contextlib.closing(RunDirectory(directory, identity)))
        source = problem.windows(paths, constants, batch_key)
        state, records = run_epochs(problem, state, fixed, source, blocks, held_out, asked, store)
    kept = objective.split(paths)[1] if set_aside is None else set_aside
    learned = problem.averaged(state, fixed)
    if split is not None and split.gathered:
        learned = split.returned(learned)
    if kept is not None:
        kept = on_device(kept, laid)
    learned, miss = finished(objective, sde, learned, paths, kept, validation or paths, *last_keys)
    return Fit(learned if split is None else split.returned(learned), _history(records), miss)


@once
def _keys(key: PRNGKeyArray) -> tuple[PRNGKeyArray, ...]:
    """Of parameters, batches, validation, blocks, the last touch, and the miss; in one program."""
    init, batch, validation, last, order = jax.random.split(key, 5)
    return init, batch, validation, order, *jax.random.split(last)


def _history(records: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    names = ("step", "window", "loss", "validation_loss")
    return {n: np.array([r[n] if r[n] is not None else np.nan for r in records]) for n in names}
