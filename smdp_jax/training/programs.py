"""Compiled epochs, shared by all trainings that compute the same, and what a function computes."""

import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import Array

from smdp_jax.compiled import run_often
from smdp_jax.files import digest_of
from smdp_jax.training.shares import Windows
from smdp_jax.training.updates import Fixed, Problem, TrainingState

_KEPT = 16
_programs: OrderedDict[Hashable, Callable] = OrderedDict()


def computes(function: Callable, *inputs: Any) -> str:
    """Digest of the jaxpr of a function with its constants, the same in every process."""
    text, values, _ = _described(jax.make_jaxpr(function)(*inputs))
    return f"computes {digest_of([text, *values])[:16]}"


def _described(closed: ClosedJaxpr) -> tuple[str, list[Any], bool]:
    """Text, constants, and whether that is all: what Python does in a callback does not show."""
    inner = list(_inner(closed))
    values = [value for part in inner if isinstance(part, ClosedJaxpr) for value in part.consts]
    names = {str(e.primitive) for part in inner for e in _plain(part).eqns}
    # Functions print their address, which is another one after a restart.
    text = re.sub(r" at 0x[0-9a-f]+", "", str(closed))
    return text, values, not any("callback" in name for name in names)


def _plain(part: Any) -> Jaxpr:
    return part.jaxpr if isinstance(part, ClosedJaxpr) else part


def _inner(part: Any) -> Iterator[Any]:
    """A jaxpr and all those in its equations."""
    yield part
    for equation in _plain(part).eqns:
        for value in equation.params.values():
            for item in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(item, (ClosedJaxpr, Jaxpr)):
                    yield from _inner(item)


class Epochs:
    """The epochs of one training, by window length and by where and what their inputs are."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._known: dict[Hashable, Callable] = {}

    def __call__(
        self,
        size: int,
        state: TrainingState,
        fixed: Fixed,
        source: Windows,
        held_out: Windows | None,
        stop: int,
    ) -> tuple[TrainingState, Array, Array | None]:
        """Run one; of an update that leaves the finite numbers those before it are done again."""
        *found, good = self._run(size, state, fixed, source, held_out, stop)
        if not good:
            before = int(found[0].step) - 1
            *found, _ = self._run(size, state, fixed, source, held_out, before)
        return tuple(found)

    def _run(self, size: int, *inputs: Any) -> tuple:
        leaves, tree = jax.tree.flatten((*inputs[:-1], jnp.asarray(inputs[-1], jnp.int32)))
        kinds = tuple((x.shape, x.dtype, x.sharding) for x in leaves)
        if (size, kinds) not in self._known:
            self._known[size, kinds] = _program(self._problem, size, leaves, tree, kinds)
        return self._known[size, kinds](*leaves)


def _program(problem: Problem, size: int, leaves: list, tree: Any, kinds: Hashable) -> Callable:
    """Compile an epoch of a flat list of arrays, or find one that computes the same."""

    def epoch(*leaves: Any) -> Any:
        return problem.epoch(*jax.tree.unflatten(tree, leaves), steps=size)

    traced = jax.jit(epoch).trace(*leaves)
    text, values, all_shows = _described(traced.jaxpr)
    if not all_shows:
        return traced.lower().compile(run_often())
    key = (kinds, tree, traced.out_tree, digest_of([text, *values]))
    if key not in _programs:
        _programs[key] = traced.lower().compile(run_often())
    _programs.move_to_end(key)
    while len(_programs) > _KEPT:
        _programs.popitem(last=False)
    return _programs[key]
