"""One update of a network's parameters, and an epoch of updates on the device."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.objectives import Objective
from smdp_jax.sde import SDE
from smdp_jax.solve.batches import Split
from smdp_jax.training.shares import Shares, Windows, specs_of
from smdp_jax.trajectories import Trajectories, filled, whole_windows


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainingState:
    """What changes in training.

    Parameters
    ----------
    params, ema : pytree
        Parameters, and their moving averages, which are what is returned.
    opt_state : pytree
        The optimiser's state.
    step : int array
        Updates done.
    """

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
    split: Split | None = None

    def learned(self, params: Any, fixed: Fixed) -> Any:
        """Return what the objective learns, with these parameters."""
        variables = {**fixed.variables, "params": params}
        return self.objective.learned(self.sde, self.model, variables, fixed.scales, fixed.ts)

    def averaged(self, state: TrainingState, fixed: Fixed) -> Any:
        """Return it with the averages, in the parameters' dtype."""
        ema = jax.tree.map(lambda e, p: e.astype(p.dtype), state.ema, state.params)
        return self.learned(ema, fixed)

    def shares(self, source: Windows) -> Shares:
        """Which paths are drawn where."""
        return Shares(source.paths, self.batch_size, 1 if self.split is None else self.split.count)

    def windows(self, data: Trajectories, constants: Any, key: PRNGKeyArray) -> Windows:
        """Lay paths out for the devices that there are."""
        data, weights = filled(data), self._weights(data.mask)
        source = Windows(data, constants, key, data.num_samples, weights)
        if self.split is None:
            return source
        constants, key, weights = self.split.put((constants, key, weights), whole=True)
        there = self.shares(source).laid_out(data, self.split)
        return Windows(there, constants, key, data.num_samples, weights)

    def _weights(self, mask: Any) -> Any:
        """By steps of a window: all there are over those seen whole."""
        if mask is None:
            return None
        first = self.objective.first_time
        share = lambda n: jnp.mean(whole_windows(mask, n, first), dtype=float)
        return {n: 1 / share(n) for n in self.objective.windows}

    def places(
        self, source: Windows, key: PRNGKeyArray, steps: int, part: Any = 0
    ) -> tuple[Array, Array, Array, Array]:
        """Random windows of one part of a batch: entries, its samples, first times, keys."""
        k_window, k_loss = jax.random.split(key)
        shares = self.shares(source)
        entries = jnp.asarray(part, jnp.int32) * shares.each + jnp.arange(
            shares.each, dtype="int32"
        )
        keys = [jax.vmap(jax.random.fold_in, (None, 0))(k, entries) for k in (k_window, k_loss)]
        # A key and a number are folded by a hash, whose words are as random as any drawn from it:
        # two calls of randint compile for longer than the rest of a small update.
        words = jax.random.key_data(keys[0])
        first, last = self.objective.first_time, source.data.num_times - 1 - steps
        starts = first + (words[:, 1] % jnp.uint32(last + 1 - first)).astype(jnp.int32)
        return entries, shares.draw(words[:, 0], part), starts, keys[1]

    def all_places(
        self, source: Windows, key: PRNGKeyArray, steps: int
    ) -> tuple[Array, Array, Array]:
        """The windows of all parts, among the paths as they are laid out."""
        found = []
        for part, rows in enumerate(self.shares(source).rows):
            _, samples, starts, keys = self.places(source, key, steps, part)
            found.append((part * len(rows) + samples, starts, keys))
        samples, starts, keys = (jnp.concatenate(parts) for parts in zip(*found, strict=True))
        return samples, starts, keys

    def batch_loss(self, learned: Any, source: Windows, key: PRNGKeyArray, steps: int) -> Array:
        """Mean loss over random windows; of a split, this device's part of that sum."""

        def one(sample: Array, start: Array, key: PRNGKeyArray) -> Array:
            piece = self.objective.cut(source.data, sample, start, steps)
            loss = self.objective.loss(learned, self.sde, piece, source.constants, key)
            if piece.mask is None:
                return loss
            weight = source.weights[steps].astype(loss.dtype)
            return jnp.where(piece.mask.all(), weight * loss, jnp.zeros_like(loss))

        if self.split is None:
            return jax.vmap(one)(*self.places(source, key, steps)[1:]).mean()
        part = jax.lax.axis_index(self.split.axis)
        entries, *places = self.places(source, key, steps, part)
        losses = jax.vmap(one)(*places)
        return jnp.where(entries < self.batch_size, losses, 0).sum() / self.batch_size

    def _sum(self, tree: Any) -> Any:
        """Sum over the parts, all leaves at once."""
        if self.split is None:
            return tree
        flat, unravel = _flat(tree)
        return unravel(jax.lax.psum(flat, self.split.axis))

    def _gradient(self, loss_of: Callable[[Any], Array], params: Any) -> tuple[Array, Any]:
        """Value and gradient of the whole batch, by one sum over the devices."""
        return self._sum(jax.value_and_grad(loss_of)(params))

    def _whole(self, loss_of: Callable[[Any], Array]) -> Callable[[Any], Array]:
        """The loss of the whole batch, for optimisers that look along a line."""
        # A sum over devices does not know that what is derived is the same on all of them.
        if self.split is None:
            return loss_of
        whole = jax.custom_vjp(lambda params: self._sum(loss_of(params)))
        whole.defvjp(
            lambda params: self._gradient(loss_of, params),
            lambda grads, by: (jax.tree.map(lambda g: g * by.astype(g.dtype), grads),),
        )
        return whole

    def loss_of(
        self, fixed: Fixed, source: Windows, number: Any, steps: int
    ) -> Callable[[Any], Array]:
        """Return the loss of the batch of update ``number`` as a function of the parameters."""
        key = jax.random.fold_in(source.key, number)
        return lambda params: self.batch_loss(self.learned(params, fixed), source, key, steps)

    def one_update(
        self, state: TrainingState, fixed: Fixed, source: Windows, steps: int
    ) -> tuple[TrainingState, Array]:
        """Take one step of the optimiser; the averages are like the parameters."""
        flat, unravel = _flat(state.ema)
        state, loss = self.update(replace(state, ema=flat), fixed, source, steps)
        return replace(state, ema=unravel(state.ema)), loss

    def update(
        self, state: TrainingState, fixed: Fixed, source: Windows, steps: int
    ) -> tuple[TrainingState, Array]:
        """Take one step of the optimiser; the averages are one flat array."""
        loss_of = self.loss_of(fixed, source, state.step, steps)
        loss, grads = self._gradient(loss_of, state.params)
        # optax mixes integer counts and floats, which strict dtype promotion would refuse.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = self.optimizer.update(
                grads,
                state.opt_state,
                state.params,
                value=loss,
                grad=grads,
                value_fn=self._whole(loss_of),
            )
            params = optax.apply_updates(state.params, updates)
        # Early averages forget the initial parameters faster.
        count = state.step.astype(jnp.result_type(float))
        decay = jnp.minimum(self.ema, (1 + count) / (10 + count))
        now = _flat(params)[0].astype(state.ema.dtype)
        ema = state.ema + jnp.asarray(1 - decay, now.dtype) * (now - state.ema)
        return TrainingState(params, ema, opt_state, state.step + 1), loss

    def epoch(self, *inputs: Any, steps: int) -> tuple[TrainingState, Array, Array | None, Array]:
        """Update until ``stop``, or until one leaves the finite numbers, which the last tells."""
        one = partial(self._epoch, steps=steps)
        if self.split is None:
            return one(*inputs)
        whole, spread = PartitionSpec(), [specs_of(source, self.split) for source in inputs[2:4]]
        return self.split.map(one, (whole, whole, *spread, whole), whole)(*inputs)

    def _epoch(
        self,
        state: TrainingState,
        fixed: Fixed,
        source: Windows,
        held_out: Windows | None,
        stop: Array,
        steps: int,
    ) -> tuple[TrainingState, Array, Array | None, Array]:
        # One operation for all averages, not one for each parameter: small networks wait for these.
        flat, unravel = _flat(state.ema)

        def going(carry: tuple) -> Array:
            state, _, good = carry
            return good & (state.step < stop)

        def body(carry: tuple) -> tuple:
            state, total, _ = carry
            state, loss = self.update(state, fixed, source, steps)
            good = jnp.isfinite(loss) & _finite(state.params)
            return state, total + loss.astype(total.dtype), good

        carry = (replace(state, ema=flat), jnp.zeros(()), jnp.array(True))
        done, total, good = jax.lax.while_loop(going, body, carry)
        done = replace(done, ema=unravel(done.ema))
        validation = None
        if held_out is not None:
            learned, key = self.averaged(done, fixed), held_out.key
            validation = self._sum(self.batch_loss(learned, held_out, key, steps))
        count = jnp.maximum(stop - state.step, 1)
        return done, total / count.astype(total.dtype), validation, good


def _flat(tree: Any) -> tuple[Array, Callable[[Array], Any]]:
    """All entries in one array, and the way back."""
    with jax.numpy_dtype_promotion("standard"):
        return ravel_pytree(tree)


def _finite(tree: Any) -> Array:
    """Whether all numbers are, by one sum: infinities and NaN survive it."""
    return jnp.isfinite(jnp.sum(jnp.abs(_flat(tree)[0])))
