"""Simulated or measured paths, and the windows that training cuts from them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from smdp_jax.checks import (
    check_conditions,
    check_floating,
    check_holds,
    check_that,
    check_within,
    concrete,
)
from smdp_jax.compiled import once
from smdp_jax.sde import Args, State


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Trajectories:
    """Paths of a process on a common time grid.

    Parameters
    ----------
    ts : array (times,)
        Increasing times, in the simulator's unit of time.
    xs : pytree
        States; leaves (samples, times, *state), in the state's units.
    args : pytree, optional
        Conditions of the simulator (obstacles, parameters).
    score_targets : pytree, optional
        Unbiased targets of the score (path score matching); leaves like ``xs``, in 1 / state;
        zero at ``ts[0]``, where the prior, not the path, decides.
    args_axes : int or None
        None: the same ``args`` for all samples; 0: one entry per sample on the leading axis.
    mask : bool array (samples, times), optional
        Where a state was seen: paths of unequal lengths, missing times. What ``xs`` holds elsewhere
        does not matter; ``fit`` learns from the windows that were seen whole.
    """

    ts: Any
    xs: Any
    args: Any = None
    score_targets: Any = None
    args_axes: int | None = field(default=None, metadata={"static": True})
    mask: Any = None

    @property
    def num_samples(self) -> int:
        """Number of paths."""
        return jax.tree.leaves(self.xs)[0].shape[0]

    @property
    def num_times(self) -> int:
        """Number of stored times."""
        return self.ts.shape[0]

    def at(self, sample: Int[Array, ""] | int, time: Int[Array, ""] | int) -> State:
        """Return one state.

        Parameters
        ----------
        sample, time : int
            Indices.

        Returns
        -------
        pytree
            Unbatched state.
        """
        return jax.tree.map(lambda x: x[sample, time], self.xs)

    def args_of(self, sample: Int[Array, ""] | int) -> Args:
        """Return the conditions of one path.

        Parameters
        ----------
        sample : int
            Index.

        Returns
        -------
        pytree
            Unbatched conditions.
        """
        if self.args_axes is None:
            return self.args
        return jax.tree.map(lambda a: a[sample], self.args)

    def shapes(self) -> tuple[State, Args]:
        """Shape and dtype of one state, and of the conditions of one path.

        Returns
        -------
        tuple of pytrees
            Of ``jax.ShapeDtypeStruct``; conditions that all paths share are returned as they are.
        """

        def after(axes: int, tree: Any) -> Any:
            like = lambda x: jax.ShapeDtypeStruct(jnp.shape(x)[axes:], jnp.result_type(x))
            return jax.tree.map(like, tree)

        return after(2, self.xs), self.args if self.args_axes is None else after(1, self.args)

    def __getitem__(self, samples: Any) -> "Trajectories":
        """Paths ``data[:100]``, or of an array of indices or booleans, with all that is theirs."""
        if isinstance(samples, (int, np.integer)):
            one = f"data[{samples}:{samples + 1}] is one path, data.at(sample, time) one state"
            raise TypeError(f"samples must be a slice or array of indices, got {samples}: {one}")
        cut = lambda tree: jax.tree.map(lambda leaf: leaf[samples], tree)
        own = ("xs", "score_targets", "mask", *(() if self.args_axes is None else ("args",)))
        return replace(self, **{name: cut(getattr(self, name)) for name in own})

    def split(
        self, share: float, *, key: PRNGKeyArray | None = None
    ) -> "tuple[Trajectories, Trajectories]":
        """Set a share of the paths aside, for ``fit(validation=...)`` or a calibration report.

        Parameters
        ----------
        share : float
            Of the paths, between 0 and 1; at least one path goes to either side.
        key : PRNG key, optional
            Which ones, at random; default the last ones.

        Returns
        -------
        tuple of Trajectories
            The paths that are left to learn from, and those set aside.

        Raises
        ------
        ValueError
            If the share is not between 0 and 1, or there is but one path.
        """
        check_within("(0, 1)", share=share)
        count = self.num_samples
        check_holds("data", count, 2, "paths to be split")
        kept = count - min(max(round(share * count), 1), count - 1)
        if key is None:
            return self[:kept], self[kept:]
        order = jax.random.permutation(key, count)
        return self[order[:kept]], self[order[kept:]]

    def check(self, *, masked: bool = False) -> None:
        """Check shapes, and that every state is finite.

        Parameters
        ----------
        masked : bool
            Whether states may be missing, as ``mask`` says.

        Raises
        ------
        ValueError
            If there is no sample, if leaves disagree on samples or times with ``ts`` or with each
            other or are not floating point, if targets do not look like states, if a state is NaN
            or infinite (which sample, which time), or is missing where all are needed.
        """
        states = jax.tree_util.tree_leaves_with_path(self.xs)
        check_that(states, "Trajectories.xs must hold arrays of states", self.xs)
        first = jnp.shape(states[0][1])
        want = (max(first[0], 1) if first else 1, self.num_times)
        for path, leaf in states:
            where, shape = f"Trajectories.xs{jax.tree_util.keystr(path)}", jnp.shape(leaf)
            said = f"{where} must have leading axes (samples, times)={want}, got shape {shape}"
            check_that(shape[:2] == want, said)
            check_floating(where, leaf)
        check_conditions(self.args, self.args_axes, self.num_samples, "Trajectories.xs")
        if self.mask is not None:
            self._check_mask(want, masked)
        if self.score_targets is not None:
            shapes, got = (jax.tree.map(jnp.shape, t) for t in (self.xs, self.score_targets))
            said = f"Trajectories.score_targets must have the shapes of xs {shapes}"
            check_that(shapes == got, said, got)
        for name in ("xs", "score_targets"):
            _check_finite(name, getattr(self, name), self.ts, self.mask)

    def _check_mask(self, want: tuple[int, ...], masked: bool) -> None:
        kind, shape = jnp.result_type(self.mask), jnp.shape(self.mask)
        said = f"Trajectories.mask must be bool (samples, times)={want}, got {kind}{list(shape)}"
        check_that(kind == jnp.bool_ and shape == want, said)
        if not concrete(self.mask):
            return
        seen, whole = (f(np.asarray(self.mask), axis=1) for f in (np.any, np.all))
        said = "Trajectories.mask must leave every path a state, got none in sample"
        check_that(seen.all(), f"{said} {seen.argmin()}: leave such paths out")
        said = f"paths must be whole here, got {(~whole).sum()} of {len(whole)} with missing states"
        remedy = "only fit honours a mask; data[data.mask.all(axis=1)] are whole"
        check_that(masked or whole.all(), f"{said}: {remedy}")


@runtime_checkable
class TrajectoryStream(Protocol):
    """Paths that do not fit into memory, as blocks that do; ``datasets.open_stream`` makes one."""

    @property
    def fingerprint(self) -> str:
        """What tells these data from others, the same after a restart of the process."""
        ...

    def blocks(self, key: PRNGKeyArray, first: int = 0) -> Iterator[Trajectories]:
        """Go through the data without end.

        Parameters
        ----------
        key, first
            PRNG key that decides the order, and the number of the block to start with; a block
            depends on these two alone.

        Yields
        ------
        Trajectories
            Blocks of equal shapes, on the same times.
        """
        ...


@dataclass(frozen=True)
class _Iterated:
    """An iterable of blocks as a stream that goes through it again and again."""

    source: Iterable[Trajectories]

    @property
    def fingerprint(self) -> str:
        """That of the source; "" where it has none."""
        own = getattr(self.source, "fingerprint", None)
        return own if isinstance(own, str) else ""

    def blocks(self, key: PRNGKeyArray, first: int = 0) -> Iterator[Trajectories]:
        """Blocks in the order in which they come."""
        number, before = 0, -1
        while before < number:
            before = number
            for block in self.source:
                if number >= first:
                    yield block
                number += 1


def as_stream(data: Any) -> Any:
    """Take an iterable of blocks for a stream; whatever else is handed on."""
    plain = isinstance(data, (jax.Array, np.ndarray, str, Mapping, tuple))
    if plain or hasattr(data, "blocks") or not hasattr(data, "__iter__"):
        return data
    return _Iterated(data)


@once
def _all_finite(x: Any) -> Array:
    return jnp.isfinite(x).all()  # without a mask as large as the data


def filled(data: Trajectories) -> Trajectories:
    """Missing states are those last seen before, or the first: finite numbers, that never count."""
    if data.mask is None:
        return data
    mask = jnp.asarray(data.mask)
    times = jnp.arange(mask.shape[1])
    last = jax.lax.cummax(jnp.where(mask, times, -1), axis=1)
    index = jnp.where(last < 0, jnp.argmax(mask, axis=1)[:, None], last)

    def fill(tree: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.vmap(lambda path, i: path[i])(jnp.asarray(x), index), tree
        )

    return replace(data, xs=fill(data.xs), score_targets=fill(data.score_targets), mask=mask)


def whole_windows(mask: Any, steps: int, first: int) -> Array:
    """Which windows of ``steps`` steps, from time ``first`` on, were seen whole."""
    missing = jnp.cumsum(~jnp.asarray(mask), axis=1)
    missing = jnp.pad(missing, ((0, 0), (1, 0)))
    return missing[:, steps + 1 :][:, first:] == missing[:, : -steps - 1][:, first:]


def _seen(tree: Any, mask: Any) -> Any:
    if mask is None:
        return tree
    where = lambda x: np.reshape(mask, np.shape(mask) + (1,) * (x.ndim - 2))
    return jax.tree.map(lambda x: np.where(where(x), x, np.zeros_like(x)), tree)


def _check_finite(name: str, tree: Any, ts: Any, mask: Any) -> None:
    if not concrete(tree, mask):
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(_seen(tree, mask)):
        if jax.device_get(_all_finite(leaf)):
            continue
        bad = ~np.isfinite(np.asarray(leaf)).reshape(*leaf.shape[:2], -1).all(axis=-1)
        (sample, time), count = np.argwhere(bad)[0], np.any(bad, axis=1).sum()
        said = f"Trajectories.{name}{jax.tree_util.keystr(path)} is not finite in {count} of"
        first = f"first in sample {sample} at t={float(ts[time]):g} (time index {time})"
        remedy = "use smaller steps, or check the simulator there"
        raise ValueError(f"{said} {leaf.shape[0]} samples; {first}: {remedy}")


def grid_axes(x: State) -> int:
    """How many leading axes of the leaves are their grid; a short trailing one holds channels."""
    leaves = jax.tree.leaves(x)
    axes = min(leaf.ndim for leaf in leaves)
    channels = axes > 1 and all(leaf.shape[-1] <= 4 < min(leaf.shape[:-1]) for leaf in leaves)
    return axes - 1 if channels else axes


def window(
    data: Trajectories, sample: Int[Array, ""], start: Int[Array, ""], steps: int
) -> Trajectories:
    """Cut one window of ``steps + 1`` consecutive states from one path."""

    def cut(x: Array) -> Array:
        begin = (sample, start) + (0,) * (x.ndim - 2)
        return jax.lax.dynamic_slice(x, begin, (1, steps + 1, *x.shape[2:]))[0]

    return Trajectories(
        ts=jax.lax.dynamic_slice(data.ts, (start,), (steps + 1,)),
        xs=jax.tree.map(cut, data.xs),
        args=data.args_of(sample),
        score_targets=jax.tree.map(cut, data.score_targets),
        mask=jax.tree.map(cut, data.mask),
    )
