"""One update of a network's parameters, and an epoch of updates on the device."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.objectives import Objective
from smdp_jax.scores.learned import LearnedScore
from smdp_jax.scores.preconditioner import Preconditioner
from smdp_jax.scores.step import LearnedStep, StepScale
from smdp_jax.sde import SDE
from smdp_jax.trajectories import Trajectories, window

__all__ = ["Problem", "TrainingState", "Windows", "epoch_of"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainingState:
    """What changes in training."""

    params: Any
    ema: Any
    opt_state: Any
    step: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Windows:
    """Where random windows come from."""

    data: Trajectories
    constants: Any
    key: PRNGKeyArray


@dataclass(frozen=True)
class Problem:
    """What is trained, and how; nothing of it changes in training."""

    sde: SDE
    model: Any
    objective: Objective
    optimizer: optax.GradientTransformation
    batch_size: int
    ema: float
    constant_variables: Any = field(repr=False)
    preconditioner: Preconditioner | StepScale | None = field(repr=False)

    def learned(self, params: Any) -> LearnedScore | LearnedStep:
        """Return the network with these parameters."""
        variables = {**self.constant_variables, "params": params}
        if isinstance(self.preconditioner, StepScale):
            return LearnedStep(self.model, variables, self.preconditioner)
        return LearnedScore(self.model, variables, self.preconditioner)

    def batch_loss(self, params: Any, source: Windows, key: PRNGKeyArray, steps: int) -> Array:
        """Compute the mean loss over random windows of one length."""
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
        """Take one step of the optimiser."""
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
    """Compile many updates with windows of one length; how many is traced."""

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
