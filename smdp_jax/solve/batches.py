"""Many solves: all at once, a chunk at a time, or dealt out over the devices of a mesh."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from smdp_jax.checks import check_that, concrete, warn

AXIS = "data"
"""The axis of a mesh over which batches, paths and particles are split."""


@dataclass(frozen=True)
class Split:
    """Entries of leading axes dealt out over one axis of a mesh, in equal parts.

    Inside, the mesh has automatic axes, as gathers ask for; ``asked`` is the caller's own. Where
    results are ``gathered``, they come back as arrays of this process, whole.
    """

    asked: Mesh
    axis: str
    gathered: bool = False

    @property
    def mesh(self) -> Mesh:
        """The same devices, with automatic axes."""
        return Mesh(self.asked.devices, self.asked.axis_names)

    @property
    def count(self) -> int:
        """Number of parts."""
        return self.asked.shape[self.axis]

    def spec(self, axes: int = 0) -> PartitionSpec:
        """The split of one axis, after others that are whole."""
        return PartitionSpec(*(None,) * axes, self.axis)

    def put(self, tree: Any, *, whole: bool = False) -> Any:
        """Lay arrays out: every device holds its part of the leading axis, or all of it."""
        spec = PartitionSpec() if whole else self.spec()
        there = NamedSharding(self.mesh, spec)
        if jax.process_count() == 1:
            return jax.device_put(tree, there)
        return jax.tree.map(lambda x: _over_processes(x, there), tree)

    def known(self, tree: Any) -> Any:
        """Of several processes: what each of them has alike becomes one array of all."""
        if jax.process_count() == 1:
            return tree

        def one(x: Any) -> Any:
            local = isinstance(x, jax.Array) and concrete(x) and x.is_fully_addressable
            return self.put(x, whole=True) if local else x

        return jax.tree.map(one, tree)

    def over(self, function: Callable, *inputs: Any, whole: tuple[Any, ...] = ()) -> Any:
        """Call on every device with what is ``whole`` and its parts of the inputs.

        Arrays that lie on the mesh must come so, not by closure. Types do not tell what varies over
        the devices: diffrax's loops over stages would not bear it.
        """
        leaves, tree = jax.tree.flatten(whole)
        arrays = [x if eqx.is_array(x) else None for x in leaves]

        def call(arrays: list, *parts: Any) -> Any:
            pairs = zip(arrays, leaves, strict=True)
            own = jax.tree.unflatten(tree, [x if a is None else a for a, x in pairs])
            return function(*own, *parts)

        specs = (PartitionSpec(),) + (self.spec(),) * len(inputs)
        return self.map(call, specs, self.spec())(arrays, *inputs)

    def map(self, function: Callable, in_specs: Any, out_specs: Any) -> Callable:
        """``jax.shard_map`` over the axis."""
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names={self.axis},
            check_vma=False,
        )

    def pin(self, tree: Any) -> Any:
        """Ask the compiler to keep arrays split, where the parts are equal."""

        def one(x: Any) -> Any:
            if x.shape[0] % self.count:
                return x
            return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, self.spec()))

        return jax.tree.map(one, tree)

    def returned(self, tree: Any) -> Any:
        """Results as the caller's mesh has them: nothing moves, unless they are gathered."""

        def one(x: Any) -> Any:
            sharding = getattr(x, "sharding", None)
            if not concrete(x) or not isinstance(sharding, NamedSharding):
                return x
            if self.gathered:
                whole = NamedSharding(self.mesh, PartitionSpec())
                return jnp.asarray(np.asarray(jax.jit(_same, out_shardings=whole)(x)))
            there = NamedSharding(self.asked, sharding.spec)
            parts = [shard.data for shard in x.addressable_shards]
            return jax.make_array_from_single_device_arrays(x.shape, there, parts)

        explicit = AxisType.Explicit in self.asked.axis_types
        return jax.tree.map(one, tree) if explicit or self.gathered else tree


def _same(x: Any) -> Any:
    return x


_everywhere: ContextVar[Mesh | None] = ContextVar("_everywhere", default=None)


@contextlib.contextmanager
def dealt_out(mesh: Mesh | None) -> Iterator[None]:
    """Deal the work of all verbs called in this block out over a mesh; results come back whole."""
    before = _everywhere.set(mesh)
    try:
        yield
    finally:
        _everywhere.reset(before)


def _over_processes(x: Any, there: NamedSharding) -> jax.Array:
    """Lay out what every process has, or all have together."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        words = _over_processes(jax.random.key_data(x), there)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(x))
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.jit(_same, out_shardings=there)(x)
    here = np.asarray(x)
    return jax.make_array_from_callback(here.shape, there, lambda index: here[index])


def split_of(mesh: Any, tree: Any = None) -> Split | None:
    """What ``mesh=`` asks for; without one, what the leading axes of a caller's arrays show."""
    if mesh is None:
        for x in jax.tree.leaves(tree):
            sharding = x.sharding if isinstance(x, jax.Array) and concrete(x) else None
            if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
                first = next(iter(sharding.spec), None)
                if isinstance(first, str) and sharding.mesh.shape[first] > 1:
                    return Split(sharding.mesh, first)
        everywhere = _everywhere.get()
        # Inside of a caller's jit, which is compiled once for all, nothing is dealt out.
        if everywhere is None or not concrete(tree, jnp.zeros(())):
            return None
        return Split(everywhere, AXIS, gathered=True)
    such = f"such as jax.make_mesh((8,), ('{AXIS}',))"
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, {such}, got {type(mesh).__name__}")
    said = f"mesh must have an axis '{AXIS}' to split paths over, {such}, got {mesh.axis_names}"
    check_that(AXIS in mesh.axis_names, said)
    return Split(mesh, AXIS)


def in_chunks(
    function: Callable,
    inputs: Any,
    size: int | None,
    split: Split | None = None,
    shared: tuple[Any, ...] = (),
) -> Any:
    """Map over the leading axis of ``inputs``, ``size`` entries at a time (None: all at once).

    What is ``shared`` comes first. The last chunk, or part of a split, is filled up with copies of
    the last entry: one of another length would be compiled on its own.
    """
    count = jax.tree.leaves(inputs)[0].shape[0]
    if split is not None:
        filled = filled_up(inputs, count, split)

        def part(*given: Any) -> Any:
            return in_chunks(function, given[-1], size, shared=given[:-1])

        results = split.over(part, filled, whole=shared)
        return jax.tree.map(lambda x: x[:count], results) if count % split.count else results
    function = partial(function, *shared)
    if size is None or size >= count:
        return jax.vmap(function)(inputs)
    chunks = -(-count // size)
    rows = jnp.minimum(jnp.arange(chunks * size), count - 1).reshape(chunks, size)
    results = jax.lax.map(
        lambda row: jax.vmap(function)(jax.tree.map(lambda x: x[row], inputs)), rows
    )
    return jax.tree.map(lambda x: x.reshape(chunks * size, *x.shape[2:])[:count], results)


def filled_up(tree: Any, count: int, split: Split) -> Any:
    """Repeat the last of ``count`` entries until the parts are equal."""
    if not count % split.count:
        return tree
    rows = jnp.minimum(jnp.arange(-(-count // split.count) * split.count), count - 1)
    return jax.tree.map(lambda x: x[rows], tree)


def say_filled_up(what: str, count: int, split: Split | None) -> None:
    """Warn where parts of a split are not equal: some work is done for nothing."""
    if split is not None and not split.gathered and count % split.count:
        said = f"{what} {count} do not divide over {split.count} devices: some are solved for"
        warn(f"{said} nothing ({-count % split.count}), and the result is not split")


def on_auto_mesh(tree: Any) -> Any:
    """Let the compiler place what comes in on an explicit mesh, whose types a gather has not."""

    def auto(x: Any) -> Any:
        sharding = x.sharding if isinstance(x, jax.Array) and concrete(x) else None
        if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
            return x
        if AxisType.Explicit not in sharding.mesh.axis_types:
            return x
        mesh = Mesh(sharding.mesh.devices, sharding.mesh.axis_names)
        return jax.device_put(x, NamedSharding(mesh, sharding.spec))

    return jax.tree.map(auto, tree)
