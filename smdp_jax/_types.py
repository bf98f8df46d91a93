"""Shared type names: what a drift, a flow map, a score and a state are."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jaxtyping import ArrayLike, Float, PyTree

if TYPE_CHECKING:
    Scalar = Any
else:
    Scalar = Float[ArrayLike, ""]
State = PyTree[Any]
Args = PyTree[Any]

Drift = Callable[[Any, Any, Any], Any]
"""``drift(t, x, args)`` returns dx/dt, a tree like ``x``."""

FlowMap = Callable[[Any, Any, Any, Any], Any]
"""``step(t0, t1, x, args)`` returns the state at ``t1``, a tree like ``x``."""

ScoreFn = Callable[[Any, Any, Any], Any]
"""``score(t, x, args)`` returns the gradient of log p_t at ``x``, a tree like ``x``."""

Diffusion = Any
"""A positive number, a function ``g(t)``, a tree of these matching the state, or None."""
