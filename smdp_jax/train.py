"""Learn a score from trajectories: ``fit``."""

import hashlib
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray
from tqdm import tqdm

from smdp_jax.checkpoint import RunDirectory
from smdp_jax.checks import check_like, check_positive, check_process, check_time_grid
from smdp_jax.diagnostics import step_miss
from smdp_jax.objectives import Objective
from smdp_jax.scores import LearnedScore, Preconditioner, StepCorrection
from smdp_jax.sde import SDE
from smdp_jax.trajectories import Trajectories, window

__all__ = ["Fit", "TrainingDiverged", "fit"]

_MISS_WARNING = 3.0


class TrainingDiverged(FloatingPointError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Fit:
    """What training returns.

    Parameters
    ----------
    learned : LearnedScore or StepCorrection
        The EMA parameters, callable as ``(t, x, args)``.
    history : dict of arrays
        Per epoch: ``step`` (updates done), ``window`` (steps per window), ``loss``,
        ``validation_loss`` (NaN without validation data).
    step_miss : array (times - 1,)
        Squared miss of one backward step over its noise variance by time; see
        ``diagnostics.step_miss``.
    """

    learned: LearnedScore | StepCorrection
    history: dict[str, np.ndarray]
    step_miss: np.ndarray

    @property
    def score(self) -> LearnedScore:
        """The learned score.

        Raises
        ------
        TypeError
            If training learned a step correction.
        """
        if isinstance(self.learned, StepCorrection):
            raise TypeError(
                "this fit learned a step correction (windows on a flow map), not a score: use "
                "fit.correction on its own time grid, or train with PathScore()"
            )
        return self.learned

    @property
    def correction(self) -> StepCorrection:
        """The learned step correction.

        Raises
        ------
        TypeError
            If training learned a score.
        """
        if isinstance(self.learned, LearnedScore):
            raise TypeError("this fit learned a score: use fit.score")
        return self.learned


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _State:
    params: Any
    ema: Any
    opt_state: Any
    step: Any


@dataclass(frozen=True)
class _Problem:
    """Everything that the update needs and that does not change during training."""

    sde: SDE
    model: Any
    objective: Objective
    optimizer: optax.GradientTransformation
    batch_size: int
    ema: float
    constant_variables: Any = field(repr=False)
    preconditioner: Preconditioner | None = field(repr=False)

    def score(self, params: Any) -> LearnedScore:
        variables = {**self.constant_variables, "params": params}
        return LearnedScore(self.model, variables, self.preconditioner)

    def batch_loss(
        self, params: Any, data: Trajectories, constants: Any, key: PRNGKeyArray, steps: int
    ) -> Array:
        """Mean loss over random windows of one length."""
        k_sample, k_start, k_loss = jax.random.split(key, 3)
        shape = (self.batch_size,)
        samples = jax.random.randint(k_sample, shape, 0, data.num_samples)
        first, last = self.objective.first_time, data.num_times - 1 - steps
        starts = jax.random.randint(k_start, shape, first, last + 1)
        keys = jax.random.split(k_loss, self.batch_size)
        score = self.score(params)

        def one(sample: Array, start: Array, key: PRNGKeyArray) -> Array:
            piece = window(data, sample, start, steps)
            return self.objective.loss(score, self.sde, piece, constants, key)

        return jax.vmap(one)(samples, starts, keys).mean()

    def update(
        self, state: _State, data: Trajectories, constants: Any, key: PRNGKeyArray, steps: int
    ) -> tuple[_State, Array]:
        own_key = jax.random.fold_in(key, state.step)
        loss, grads = jax.value_and_grad(self.batch_loss)(
            state.params, data, constants, own_key, steps
        )
        # optax mixes integer counts and floats, which strict dtype promotion would refuse.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        # Early averages forget the initial parameters faster.
        count = state.step.astype(jnp.result_type(float))
        decay = jnp.minimum(self.ema, (1 + count) / (10 + count))
        ema = jax.tree.map(
            lambda e, p: e + jnp.asarray(1 - decay, p.dtype) * (p - e), state.ema, params
        )
        return _State(params, ema, opt_state, state.step + 1), loss


def fit(
    sde: SDE,
    model: Any,
    data: Trajectories,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    key: PRNGKeyArray,
    batch_size: int = 256,
    ema: float = 0.999,
    precondition: bool = True,
    validation: Trajectories | None = None,
    initial: LearnedScore | StepCorrection | None = None,
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
    data : Trajectories
        Training paths.
    objective : Objective
        ``OneStep()``, ``MultiStep(...)`` or ``PathScore()``.
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
        output is the score itself, as for networks that bring their own preconditioning.
    validation : Trajectories, optional
        Paths for the validation loss, evaluated with the averaged parameters after each epoch.
    initial : LearnedScore or StepCorrection, optional
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
        ``fit.score`` (or ``fit.correction``), ``fit.history``, ``fit.step_miss``.

    Raises
    ------
    ValueError
        If data, process, objective or directory do not fit (see the message).
    TrainingDiverged
        If the loss is not finite; the last good checkpoint is kept.
    """
    _check(sde, data, steps, batch_size, ema, epoch_steps)
    data.check()
    constants = objective.prepare(sde, data)
    init_key, batch_key, miss_key, val_key = jax.random.split(key, 4)
    t, x, args = data.ts[-1], data.at(0, -1), data.args_of(0)
    variables = initial.variables if initial else jax.jit(model.init)(init_key, t, x, args)
    others = {name: value for name, value in variables.items() if name != "params"}
    preconditioner = None
    if initial is not None:
        preconditioner = initial.preconditioner
    elif precondition:
        preconditioner = Preconditioner.of(sde, data)
    problem = _Problem(sde, model, objective, optimizer, batch_size, ema, others, preconditioner)
    check_like(x, jax.eval_shape(model.apply, variables, t, x, args), "the network")
    params = variables.get("params", {})
    state = _State(params, params, optimizer.init(params), jnp.zeros((), jnp.int32))
    held_out = None
    if validation is not None:
        validation.check()
        held_out = (validation, objective.prepare(sde, validation), val_key)
    store = None
    if directory is not None:
        identity = _identity(problem, data, steps, key)
        store = RunDirectory(directory, identity)
    try:
        state, records = _run(
            problem,
            state,
            data,
            constants,
            held_out,
            batch_key,
            steps,
            epoch_steps,
            store,
            checkpoint_seconds,
            progress,
        )
    finally:
        if store is not None:
            store.close()
    learned = _learned(problem, state, data)
    miss = np.asarray(
        step_miss(
            sde,
            learned,
            validation or data,
            key=miss_key,
            noise_level=objective.noise_level,
            solver=getattr(objective, "solver", None),
        )
    )
    _warn_of_miss(miss, data.ts)
    names = ("step", "window", "loss", "validation_loss")
    history = {n: np.array([r[n] if r[n] is not None else np.nan for r in records]) for n in names}
    return Fit(learned, history, miss)


def _check(
    sde: SDE, data: Trajectories, steps: int, batch_size: int, ema: float, epoch_steps: int
) -> None:
    check_time_grid(data.ts, sde)
    check_process(sde, data.ts, data.at(0, -1), data.args_of(0))
    check_positive(steps=steps, batch_size=batch_size, epoch_steps=epoch_steps)
    if not 0 <= ema < 1:
        raise ValueError(f"ema must be in [0, 1), got {ema}")


def _identity(problem: _Problem, data: Trajectories, steps: int, key: PRNGKeyArray) -> dict:
    """Describe a run by values that survive a restart of the process."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(data):
        digest.update(np.ascontiguousarray(leaf).tobytes())

    def describe(part: Any) -> str:
        # Functions print their address, which is another one after a restart.
        return re.sub(r" at 0x[0-9a-f]+", "", repr(part))

    return {
        "model": describe(problem.model),
        "precondition": problem.preconditioner is not None,
        "objective": describe(problem.objective),
        "steps": steps,
        "batch_size": problem.batch_size,
        "ema": problem.ema,
        "samples": data.num_samples,
        "times": data.num_times,
        "data": digest.hexdigest(),
        "key": np.asarray(jax.random.key_data(key)).tolist(),
    }


def _phases(objective: Objective, steps: int) -> list[tuple[int, int, int]]:
    """(window, first update, last update) for equal shares of the updates."""
    windows = objective.windows
    bounds = [round(steps * i / len(windows)) for i in range(len(windows) + 1)]
    return [(w, a, b) for w, a, b in zip(windows, bounds[:-1], bounds[1:], strict=True) if b > a]


def _epoch_of(problem: _Problem, size: int, held_out: tuple | None) -> Callable:
    """Compile one epoch for one window length; its number of updates is traced."""

    @jax.jit
    def epoch(
        state: _State, data: Trajectories, constants: Any, key: PRNGKeyArray, stop: Array, held: Any
    ) -> tuple[_State, Array, Array]:
        start = state.step

        def body(_: Array, carry: tuple) -> tuple:
            state, total = carry
            state, loss = problem.update(state, data, constants, key, size)
            return state, total + loss.astype(total.dtype)

        state, total = jax.lax.fori_loop(start, stop, body, (state, jnp.zeros(())))
        validation = jnp.full((), jnp.nan)
        if held is not None:
            validation = problem.batch_loss(state.ema, held[0], held[1], held[2], size)
        return state, total / (stop - start).astype(total.dtype), validation

    return lambda state, data, constants, key, stop: epoch(
        state, data, constants, key, stop, held_out
    )


def _run(
    problem: _Problem,
    state: _State,
    data: Trajectories,
    constants: Any,
    held_out: tuple | None,
    key: PRNGKeyArray,
    steps: int,
    epoch_steps: int,
    store: RunDirectory | None,
    checkpoint_seconds: float,
    progress: bool,
) -> tuple[_State, list[dict[str, Any]]]:
    records: list[dict[str, Any]] = []
    done = 0
    if store is not None:
        restored = store.restore(state)
        if restored is not None:
            done, state = restored
        records = store.read_metrics(done)
    saved_at = time.monotonic()
    epochs: dict[int, Callable] = {}
    with tqdm(total=steps, initial=done, disable=not progress, unit="update") as bar:
        try:
            for size, first, last in _phases(problem.objective, steps):
                if done >= last:
                    continue
                epoch = epochs.setdefault(size, _epoch_of(problem, size, held_out))
                while done < last:
                    # Epochs end at multiples of their length, so a resumed run repeats them.
                    stop = min(last, first + ((done - first) // epoch_steps + 1) * epoch_steps)
                    new, loss, validation = epoch(state, data, constants, key, jnp.asarray(stop))
                    loss, validation = float(loss), float(validation)
                    if not (np.isfinite(loss) and _all_finite(new.params)):
                        raise TrainingDiverged(_divergence_message(loss, done, stop, size, store))
                    start, state, done = done, new, stop
                    record = {"step": stop, "window": size, "loss": loss}
                    record["validation_loss"] = validation if np.isfinite(validation) else None
                    records.append(record)
                    if store is not None:
                        store.append_metrics(record)
                    bar.update(stop - start)
                    bar.set_postfix(window=size, loss=f"{loss:.4g}")
                    due = done == steps or time.monotonic() - saved_at >= checkpoint_seconds
                    if store is not None and due:
                        store.save(done, state)
                        saved_at = time.monotonic()
        except (KeyboardInterrupt, TrainingDiverged):
            if store is not None and done > 0:
                store.save(done, state)
            raise
    return state, records


def _all_finite(tree: Any) -> bool:
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))


def _divergence_message(
    loss: float, done: int, stop: int, size: int, store: RunDirectory | None
) -> str:
    kept = f"; the last good state is kept in {store.path}" if store and done > 0 else ""
    what = f"the loss became {loss}" if not np.isfinite(loss) else "a parameter became NaN"
    return (
        f"{what} between updates {done} and {stop} (window {size}){kept}. Try a "
        "smaller learning rate, optax.clip_by_global_norm, shorter windows first, or smaller steps"
    )


def _learned(problem: _Problem, state: _State, data: Trajectories) -> LearnedScore | StepCorrection:
    score = problem.score(state.ema)
    if problem.objective.kind(problem.sde) == "score":
        return score
    return StepCorrection(
        score.model,
        score.variables,
        score.preconditioner,
        ts=data.ts,
        noise_level=problem.objective.noise_level,
    )


def _warn_of_miss(miss: np.ndarray, ts: Float[Array, "times"]) -> None:
    worst = int(np.nanargmax(miss)) if np.isfinite(miss).any() else 0
    share = float(np.mean(~(miss <= _MISS_WARNING)))
    if share > 0.1:
        warnings.warn(
            f"one backward step misses the data by more than {_MISS_WARNING:g} times its noise "
            f"variance at {share:.0%} of the times (worst {miss[worst]:.3g} times at "
            f"t={float(ts[worst + 1]):g}; 1 is the optimum): train longer, or use smaller steps",
            stacklevel=3,
        )
