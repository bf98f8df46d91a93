"""One update of a network's parameters, and an epoch of updates on the device."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.learned_step import LearnedStep, StepScale
from smdp_jax.objectives import Objective
from smdp_jax.scores import LearnedScore, Preconditioner
from smdp_jax.sde import SDE
from smdp_jax.trajectories import Trajectories, window

__all__ = ["Problem", "TrainingState", "Windows", "epoch_of"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainingState:
    """What changes in training.

    Parameters
    ----------
    params, ema : pytree
        Parameters and their moving average.
    opt_state : pytree
        Of the optimiser.
    step : int array ()
        Updates done.
    """

    params: Any
    ema: Any
    opt_state: Any
    step: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Windows:
    """Where random windows come from.

    Parameters
    ----------
    data : Trajectories
        Paths.
    constants : pytree
        Of the loss; see ``Objective.prepare``.
    key : PRNG key
        Which windows; training folds in the number of the update.
    """

    data: Trajectories
    constants: Any
    key: PRNGKeyArray


@dataclass(frozen=True)
class Problem:
    """What is trained, and how; nothing of it changes in training.

    Parameters
    ----------
    sde : SDE
        The process.
    model : flax.linen.Module
        The network.
    objective : Objective
        The loss of one window.
    optimizer : optax.GradientTransformation
        Any.
    batch_size : int
        Windows per update.
    ema : float
        Decay of the moving average.
    constant_variables : dict
        Collections of the network that are not trained.
    preconditioner : Preconditioner, StepScale or None
        Scales inputs and output of the network.
    """

    sde: SDE
    model: Any
    objective: Objective
    optimizer: optax.GradientTransformation
    batch_size: int
    ema: float
    constant_variables: Any = field(repr=False)
    preconditioner: Preconditioner | StepScale | None = field(repr=False)

    def learned(self, params: Any) -> LearnedScore | LearnedStep:
        """Return the network with these parameters.

        Parameters
        ----------
        params : pytree
            Parameters.

        Returns
        -------
        LearnedScore or LearnedStep
            Callable as ``(t, x, args)``, or as ``(start, stop, x, args)``.
        """
        variables = {**self.constant_variables, "params": params}
        if isinstance(self.preconditioner, StepScale):
            return LearnedStep(self.model, variables, self.preconditioner)
        return LearnedScore(self.model, variables, self.preconditioner)

    def batch_loss(self, params: Any, source: Windows, key: PRNGKeyArray, steps: int) -> Array:
        """Compute the mean loss over random windows of one length.

        Parameters
        ----------
        params : pytree
            Parameters.
        source : Windows
            Paths and constants.
        key : PRNG key
            Which windows.
        steps : int
            Steps per window.

        Returns
        -------
        array ()
            The mean.
        """
        data = source.data
        k_sample, k_start, k_loss = jax.random.split(key, 3)
        shape = (self.batch_size,)
        samples = jax.random.randint(k_sample, shape, 0, data.num_samples)
        first, last = self.objective.first_time, data.num_times - 1 - steps
        starts = jax.random.randint(k_start, shape, first, last + 1)
        keys = jax.random.split(k_loss, self.batch_size)
        learned = self.learned(params)

        def one(sample: Array, start: Array, key: PRNGKeyArray) -> Array:
            piece = window(data, sample, start, steps)
            return self.objective.loss(learned, self.sde, piece, source.constants, key)

        return jax.vmap(one)(samples, starts, keys).mean()

    def update(
        self, state: TrainingState, source: Windows, steps: int
    ) -> tuple[TrainingState, Array]:
        """Take one step of the optimiser.

        Parameters
        ----------
        state : TrainingState
            Before.
        source : Windows
            Where the batch comes from.
        steps : int
            Steps per window.

        Returns
        -------
        tuple (TrainingState, array ())
            After, and the loss before.
        """
        key = jax.random.fold_in(source.key, state.step)
        loss, grads = jax.value_and_grad(self.batch_loss)(state.params, source, key, steps)
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
        return TrainingState(params, ema, opt_state, state.step + 1), loss


Epoch = Callable[[TrainingState, Windows, Windows | None, Any], tuple[TrainingState, Array, Array]]


def epoch_of(problem: Problem, steps: int) -> Epoch:
    """Compile many updates with windows of one length; how many is traced.

    Parameters
    ----------
    problem : Problem
        What is trained.
    steps : int
        Steps per window.

    Returns
    -------
    callable
        ``epoch(state, source, held_out, stop)`` updates until ``stop`` updates are done, and
        returns the state, the mean loss, and the loss of the average on ``held_out`` (NaN
        without).
    """

    @jax.jit
    def epoch(
        state: TrainingState, source: Windows, held_out: Windows | None, stop: Array
    ) -> tuple[TrainingState, Array, Array]:
        start = state.step

        def body(_: Array, carry: tuple) -> tuple:
            state, total = carry
            state, loss = problem.update(state, source, steps)
            return state, total + loss.astype(total.dtype)

        state, total = jax.lax.fori_loop(start, stop, body, (state, jnp.zeros(())))
        validation = jnp.full((), jnp.nan)
        if held_out is not None:
            validation = problem.batch_loss(state.ema, held_out, held_out.key, steps)
        return state, total / (stop - start).astype(total.dtype), validation

    return epoch
