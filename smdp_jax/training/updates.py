"""One update of a network's parameters, and an epoch of updates on the device."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.objectives import Objective
from smdp_jax.sde import SDE
from smdp_jax.trajectories import Trajectories

__all__ = ["Fixed", "Problem", "TrainingState", "Windows", "averages"]


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
class Fixed:
    """What the learned term has beside its parameters: other variables, scales, times."""

    variables: Any
    scales: Any
    ts: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Windows:
    """Where random windows come from."""

    data: Trajectories
    constants: Any
    key: PRNGKeyArray


def averages(params: Any) -> Any:
    """Start the moving averages; half precision would lose what each update adds."""

    def wide(p: Array) -> Array:
        half = jnp.issubdtype(p.dtype, jnp.floating) and p.dtype.itemsize < 4
        return p.astype(jnp.float32) if half else jnp.array(p)

    return jax.tree.map(wide, params)


@dataclass(frozen=True)
class Problem:
    """What is trained, and how: functions and numbers, no arrays."""

    sde: SDE
    model: Any
    objective: Objective
    optimizer: optax.GradientTransformationExtraArgs
    batch_size: int
    ema: float

    def learned(self, params: Any, fixed: Fixed) -> Any:
        """Return what the objective learns, with these parameters."""
        variables = {**fixed.variables, "params": params}
        return self.objective.learned(self.sde, self.model, variables, fixed.scales, fixed.ts)

    def averaged(self, state: TrainingState, fixed: Fixed) -> Any:
        """Return it with the averages, in the parameters' dtype."""
        ema = jax.tree.map(lambda e, p: e.astype(p.dtype), state.ema, state.params)
        return self.learned(ema, fixed)

    def places(
        self, data: Trajectories, key: PRNGKeyArray, steps: int
    ) -> tuple[Array, Array, Array]:
        """Choose random windows of one length: samples, first times, and a key for each."""
        k_window, k_loss = jax.random.split(key)
        first, last = self.objective.first_time, data.num_times - 1 - steps
        # Two calls of randint compile for longer than the rest of a small update.
        bits = jax.random.bits(k_window, (2, self.batch_size), jnp.uint32)
        samples, starts = (
            (row % jnp.uint32(count)).astype(jnp.int32)
            for row, count in zip(bits, (data.num_samples, last + 1 - first), strict=True)
        )
        return samples, first + starts, jax.random.split(k_loss, self.batch_size)

    def batch_loss(self, learned: Any, source: Windows, key: PRNGKeyArray, steps: int) -> Array:
        """Compute the mean loss over random windows of one length."""

        def one(sample: Array, start: Array, key: PRNGKeyArray) -> Array:
            piece = self.objective.cut(source.data, sample, start, steps)
            return self.objective.loss(learned, self.sde, piece, source.constants, key)

        return jax.vmap(one)(*self.places(source.data, key, steps)).mean()

    def update(
        self, state: TrainingState, fixed: Fixed, source: Windows, steps: int
    ) -> tuple[TrainingState, Array]:
        """Take one step of the optimiser."""
        key = jax.random.fold_in(source.key, state.step)

        def loss_of(params: Any) -> Array:
            return self.batch_loss(self.learned(params, fixed), source, key, steps)

        loss, grads = jax.value_and_grad(loss_of)(state.params)
        # optax mixes integer counts and floats, which strict dtype promotion would refuse.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = self.optimizer.update(
                grads, state.opt_state, state.params, value=loss, grad=grads, value_fn=loss_of
            )
            params = optax.apply_updates(state.params, updates)
        # Early averages forget the initial parameters faster.
        count = state.step.astype(jnp.result_type(float))
        decay = jnp.minimum(self.ema, (1 + count) / (10 + count))
        ema = jax.tree.map(
            lambda e, p: e + jnp.asarray(1 - decay, e.dtype) * (p.astype(e.dtype) - e),
            state.ema,
            params,
        )
        return TrainingState(params, ema, opt_state, state.step + 1), loss

    def epoch(
        self,
        state: TrainingState,
        fixed: Fixed,
        source: Windows,
        held_out: Windows | None,
        stop: Array,
        steps: int,
    ) -> tuple[TrainingState, Array, Array | None]:
        """Update until ``stop``; one that leaves the finite numbers is undone, and the last."""
        start = state.step

        def going(carry: tuple) -> Array:
            state, _, good = carry
            return good & (state.step < stop)

        def body(carry: tuple) -> tuple:
            state, total, _ = carry
            new, loss = self.update(state, fixed, source, steps)
            good = jnp.isfinite(loss) & _finite(new.params)
            new = jax.tree.map(lambda new, old: jnp.where(good, new, old), new, state)
            return new, total + loss.astype(total.dtype), good

        carry = (state, jnp.zeros(()), jnp.array(True))
        state, total, _ = jax.lax.while_loop(going, body, carry)
        validation = None
        if held_out is not None:
            learned = self.averaged(state, fixed)
            validation = self.batch_loss(learned, held_out, held_out.key, steps)
        return state, total / (stop - start).astype(total.dtype), validation


def _finite(tree: Any) -> Array:
    """Whether all numbers are, by one sum: infinities and NaN survive it."""
    total = jnp.zeros(())
    for x in jax.tree.leaves(tree):
        total += jnp.sum(jnp.abs(x).astype(total.dtype))
    return jnp.isfinite(total)
