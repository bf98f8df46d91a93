"""One update of a network's parameters, and an epoch of updates on the device."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.objectives import Objective
from smdp_jax.sde import SDE
from smdp_jax.solve.batches import Split
from smdp_jax.training.shares import Shares
from smdp_jax.trajectories import Trajectories, filled, whole_windows

__all__ = ["Fixed", "Problem", "TrainingState", "Windows", "averages"]


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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Windows:
    """Where random windows come from; ``paths`` of them, however they are laid out.

    Where states are missing, ``weights`` make the mean over all windows that over the whole ones.
    """

    data: Trajectories
    constants: Any
    key: Any
    paths: int = field(metadata={"static": True})
    weights: Any = None


class Places(NamedTuple):
    """A batch of windows: numbers of the entries, samples (of a part), first times, keys."""

    entries: Any
    samples: Any
    starts: Any
    keys: Any


_DRAWN_UPDATES, _DRAWN_WINDOWS = 64, 16384


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

    def places(self, source: Windows, key: PRNGKeyArray, steps: int, part: Any = 0) -> Places:
        """Choose random windows of one length, those of one part of the batch."""
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
        return Places(entries, shares.draw(words[:, 0], part), starts, keys[1])

    def all_places(self, source: Windows, key: PRNGKeyArray, steps: int) -> Places:
        """The windows of all parts, among the paths as they are laid out."""
        found = []
        for part, rows in enumerate(self.shares(source).rows):
            places = self.places(source, key, steps, part)
            found.append(places._replace(samples=part * len(rows) + places.samples))
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)

    def own_places(self, source: Windows, number: Any, steps: int) -> Places:
        """The windows of one update, those of this device."""
        part = 0 if self.split is None else jax.lax.axis_index(self.split.axis)
        return self.places(source, jax.random.fold_in(source.key, number), steps, part)

    def batch_loss(self, learned: Any, source: Windows, places: Places, steps: int) -> Array:
        """Compute the mean loss over windows of one length; of a split, this device's part.

        The parts' sum is the mean.
        """

        def one(sample: Array, start: Array, key: PRNGKeyArray) -> Array:
            piece = self.objective.cut(source.data, sample, start, steps)
            loss = self.objective.loss(learned, self.sde, piece, source.constants, key)
            if piece.mask is None:
                return loss
            weight = source.weights[steps].astype(loss.dtype)
            return jnp.where(piece.mask.all(), weight * loss, jnp.zeros_like(loss))

        losses = jax.vmap(one)(places.samples, places.starts, places.keys)
        if self.split is None:
            return losses.mean()
        return jnp.where(places.entries < self.batch_size, losses, 0).sum() / self.batch_size

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
        """The loss of the whole batch, for optimisers that look along a line.

        A sum over devices does not know that what is derived is the same on all of them.
        """
        if self.split is None:
            return loss_of
        whole = jax.custom_vjp(lambda params: self._sum(loss_of(params)))
        whole.defvjp(
            lambda params: self._gradient(loss_of, params),
            lambda grads, by: (jax.tree.map(lambda g: g * by.astype(g.dtype), grads),),
        )
        return whole

    def loss_of(
        self, fixed: Fixed, source: Windows, places: Places, steps: int
    ) -> Callable[[Any], Array]:
        """Return the loss of a batch as a function of the parameters."""
        return lambda params: self.batch_loss(self.learned(params, fixed), source, places, steps)

    def one_update(
        self, state: TrainingState, fixed: Fixed, source: Windows, steps: int
    ) -> tuple[TrainingState, Array]:
        """Take one step of the optimiser; the averages are like the parameters."""
        flat, unravel = _flat(state.ema)
        places = self.own_places(source, state.step, steps)
        state, loss = self.update(replace(state, ema=flat), fixed, source, places, steps)
        return replace(state, ema=unravel(state.ema)), loss

    def update(
        self, state: TrainingState, fixed: Fixed, source: Windows, places: Places, steps: int
    ) -> tuple[TrainingState, Array]:
        """Take one step of the optimiser; the averages are one flat array."""
        loss_of = self.loss_of(fixed, source, places, steps)
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

    def epoch(
        self,
        state: TrainingState,
        fixed: Fixed,
        source: Windows,
        held_out: Windows | None,
        stop: Array,
        steps: int,
    ) -> tuple[TrainingState, Array, Array | None]:
        """Update until ``stop``; one that leaves the finite numbers is undone, and the last.

        Of a split all devices do the same, each with the gradient of its part of the batch.
        """
        if self.split is None:
            return self._epoch(state, fixed, source, held_out, stop, steps)
        whole = PartitionSpec()
        specs = (whole, whole, _specs(source, self.split), _specs(held_out, self.split), whole)
        call = self.split.map(partial(self._epoch, steps=steps), specs, whole)
        return call(state, fixed, source, held_out, stop)

    def _epoch(
        self,
        state: TrainingState,
        fixed: Fixed,
        source: Windows,
        held_out: Windows | None,
        stop: Array,
        steps: int,
    ) -> tuple[TrainingState, Array, Array | None]:
        first = state.step
        # One operation for all averages, not one for each parameter: small networks wait for these.
        flat, unravel = _flat(state.ema)
        start = replace(state, ema=flat)

        def until(target: Array, body: Callable[[tuple], tuple], carry: tuple) -> tuple:
            going = lambda carry: carry[2] & (carry[0].step < target)
            return jax.lax.while_loop(going, body, carry)

        # The windows of some updates are drawn at once: hashing a few numbers costs a small update
        # as much as its network does.
        some = max(1, min(_DRAWN_UPDATES, _DRAWN_WINDOWS // self.batch_size))

        def updates(target: Array) -> tuple:
            def block(carry: tuple) -> tuple:
                first = carry[0].step
                numbers = first + jnp.arange(some, dtype=first.dtype)
                drawn = jax.vmap(lambda number: self.own_places(source, number, steps))(numbers)

                def body(carry: tuple) -> tuple:
                    state, total, _ = carry
                    places = jax.tree.map(lambda x: x[state.step - first], drawn)
                    state, loss = self.update(state, fixed, source, places, steps)
                    good = jnp.isfinite(loss) & _finite(state.params)
                    return state, total + loss.astype(total.dtype), good

                return until(jnp.minimum(target, first + some), body, carry)

            return until(target, block, (start, jnp.zeros(()), jnp.array(True)))

        # To undo an update, those before it are done again: to keep what it changes costs more.
        def again(carry: tuple) -> tuple:
            _, _, good, target = carry
            state, total, good = updates(target)
            return state, total, good, jnp.where(good, target, state.step - 1)

        carry = (start, jnp.zeros(()), jnp.array(False), stop)
        state, total, _, _ = jax.lax.while_loop(lambda carry: ~carry[2], again, carry)
        state = replace(state, ema=unravel(state.ema))
        validation = None
        if held_out is not None:
            learned = self.averaged(state, fixed)
            part = 0 if self.split is None else jax.lax.axis_index(self.split.axis)
            places = self.places(held_out, held_out.key, steps, part)
            validation = self._sum(self.batch_loss(learned, held_out, places, steps))
        return state, total / (stop - first).astype(total.dtype), validation


def _specs(source: Windows | None, split: Split) -> Any:
    """Where the arrays are split: paths, their targets and their conditions."""
    if source is None:
        return None
    data, whole = source.data, PartitionSpec()
    return replace(
        source,
        constants=whole,
        key=whole,
        weights=whole,
        data=Trajectories(
            ts=whole,
            xs=split.spec(),
            args=whole if data.args_axes is None else split.spec(),
            score_targets=split.spec(),
            args_axes=data.args_axes,
            mask=split.spec(),
        ),
    )


def _flat(tree: Any) -> tuple[Array, Callable[[Array], Any]]:
    """All entries in one array, and the way back."""
    with jax.numpy_dtype_promotion("standard"):
        return ravel_pytree(tree)


def _finite(tree: Any) -> Array:
    """Whether all numbers are, by one sum: infinities and NaN survive it."""
    return jnp.isfinite(jnp.sum(jnp.abs(_flat(tree)[0])))
