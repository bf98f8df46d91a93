"""A system's coefficients, and conditions that replace them state by state."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from smdp_jax.sde import Args


def check_coefficients(system: Any, *names: str) -> None:
    """Check that fields of a system are finite and positive."""
    for name in names:
        if not 0 < (value := getattr(system, name)) < math.inf:
            owner = type(system).__name__
            raise ValueError(f"{owner}.{name} must be finite and positive, got {value}")


def check_draws(n: int, what: str) -> None:
    """Check that at least one draw is asked for."""
    if n < 1:
        raise ValueError(f"the number of {what} must be at least 1, got {n}")


def check_even(name: str, size: int) -> None:
    """Check the number of points on a side."""
    if size < 4 or size % 2:
        raise ValueError(f"{name} must be even and at least 4, got {size}")


def coefficients(args: Args, owner: str, **defaults: Any) -> dict[str, Any]:
    """Replace a system's coefficients by those given as conditions."""
    if args is None:
        return defaults
    if not isinstance(args, Mapping) or not set(args) <= set(defaults):
        given = sorted(args) if isinstance(args, Mapping) else args
        raise ValueError(
            f"args of {owner} must be some of {sorted(defaults)} by name, or None, got {given}"
        )
    for name, value in args.items():
        if jnp.shape(value) != ():
            raise ValueError(
                f"args[{name!r}] of {owner} must be a scalar, got shape {jnp.shape(value)}: use "
                "jax.vmap over conditions, or args_axes=0"
            )
        if not isinstance(value, Tracer) and not 0 <= np.asarray(value) < np.inf:
            raise ValueError(
                f"args[{name!r}] of {owner} must be finite and not negative, got {value}"
            )
    return defaults | dict(args)
