"""The least that a function costs on a device: operations and bytes, counted on its jaxpr.

Loops of known length count every turn, others one. Bytes are those that even the best compiler
moves: what goes in and comes out, and of a loop what it carries from turn to turn.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SOLD = {
    "H200": {"bfloat16": 989e12, "float32": 495e12, "other": 67e12, "bytes": 4.8e12},
    "H100": {"bfloat16": 989e12, "float32": 495e12, "other": 67e12, "bytes": 3.35e12},
    "A100": {"bfloat16": 312e12, "float32": 156e12, "other": 19.5e12, "bytes": 2.0e12},
    "TPU v5 lite": {"bfloat16": 197e12, "float32": 197e12, "bytes": 0.82e12},
    "TPU v6 lite": {"bfloat16": 918e12, "float32": 918e12, "bytes": 1.64e12},
}
"""By the kind of a device: operations / s of dense products (float32: rounded to TF32, on TPUs to
bfloat16) and of everything else, and bytes / s of its memory, as data sheets say."""
FREE = (
    "reshape",
    "squeeze",
    "expand_dims",
    "broadcast_in_dim",
    "convert_element_type",
    "iota",
    "platform_index",
)


@dataclass(frozen=True)
class Work:
    """Operations of products, other operations, and bytes."""

    products: float = 0.0
    other: float = 0.0
    bytes: float = 0.0

    def __add__(self, more: "Work") -> "Work":
        return Work(self.products + more.products, self.other + more.other, self.bytes + more.bytes)

    def __mul__(self, times: float) -> "Work":
        return Work(self.products * times, self.other * times, self.bytes * times)

    def seconds(self, peaks: Mapping[str, float], dtype: str = "float32") -> float:
        """Return the time of the roofline: what takes longest, the rest beside it."""
        kinds = ((self.products, dtype), (self.other, "other"), (self.bytes, "bytes"))
        return max(amount / peaks[kind] for amount, kind in kinds)


def work_of(function: Callable[..., Any], *inputs: Any) -> Work:
    """Count what a function does at least.

    Parameters
    ----------
    function : callable
        Traced, not run.
    *inputs : Any
        Arrays, or descriptions of them.

    Returns
    -------
    Work
        Of one call.
    """
    closed = jax.make_jaxpr(function)(*inputs)
    ends = Work(bytes=_bytes(closed.jaxpr.invars) + _bytes(closed.jaxpr.outvars))
    return ends + _of(closed.jaxpr)


def _of(jaxpr: Any) -> Work:
    return sum((_one(equation) for equation in jaxpr.eqns), Work())


def _one(equation: Any) -> Work:
    name = equation.primitive.name
    if name in _COUNTED:
        return _COUNTED[name](equation, _size(equation.outvars[0]))
    inner = [_of(j) for j in _inner(equation)]
    if name == "cond":  # also of what differs by platform: the branch that is the least work
        return min(inner, key=lambda w: w.products + w.other)
    if inner:
        return sum(inner, Work())
    if name in FREE:
        return Work()
    reduces = name.startswith(("reduce", "cum", "arg"))
    return Work(other=_size(equation.invars[0] if reduces else equation.outvars[0]))


def _dot(equation: Any, size: float) -> Work:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return Work(products=2 * size * math.prod(left[i] for i in contracted))


def _convolution(equation: Any, size: float) -> Work:
    kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
    return Work(products=2 * size * math.prod(kernel) / kernel[numbers.rhs_spec[0]])


def _fft(equation: Any, size: float) -> Work:
    """Of real numbers: half of the 5 n log2 n of complex ones."""
    length = max(math.prod(equation.params["fft_lengths"]), 2)
    return Work(other=2.5 * max(size, _size(equation.invars[0])) * math.log2(length))


def _scan(equation: Any, size: float) -> Work:
    body = equation.params["jaxpr"].jaxpr
    # What is carried leaves a turn as it leaves the loop; all else is stacked.
    pairs = zip(equation.outvars, body.outvars, strict=True)
    carried = [whole for whole, one in pairs if whole.aval.ndim == one.aval.ndim]
    turn = _of(body) + Work(bytes=2 * _bytes(carried))
    return turn * equation.params["length"]


_COUNTED: dict[str, Callable[[Any, float], Work]] = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "fft": _fft,
    "scan": _scan,
}


def _size(variable: Any) -> float:
    return float(math.prod(getattr(variable.aval, "shape", ())))


def _inner(equation: Any) -> Iterator[Any]:
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(item, "eqns"):
                yield getattr(item, "jaxpr", item)


def _bytes(variables: Any) -> float:
    avals = [v.aval for v in variables if hasattr(v.aval, "shape")]
    plain = [a for a in avals if not jnp.issubdtype(a.dtype, jax.dtypes.extended)]
    return float(sum(math.prod(a.shape) * np.dtype(a.dtype).itemsize for a in plain))
