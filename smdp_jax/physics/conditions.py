"""A system's coefficients, and conditions that replace them state by state."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from smdp_jax.checks import check_positive, check_shape, check_within, concrete
from smdp_jax.sde import Args


def check_coefficients(system: Any, *names: str) -> None:
    """Check that fields of a system are finite and positive."""
    check_within("(0, inf)", owner=system, **{name: getattr(system, name) for name in names})


def check_draws(n: int, what: str) -> None:
    """Check that at least one draw is asked for."""
    check_positive(**{f"the number of {what}": n})


def check_even(name: str, size: int, least: int = 4) -> None:
    """Check the number of points on a side."""
    if size < least or size % 2:
        raise ValueError(f"{name} must be even and at least {least}, got {size}")


def coefficients(args: Args, owner: str, **defaults: Any) -> dict[str, Any]:
    """Replace a system's coefficients by those given as conditions."""
    if args is None:
        return defaults
    if not isinstance(args, Mapping) or not set(args) <= set(defaults):
        given = sorted(args) if isinstance(args, Mapping) else args
        said = f"args of {owner} must be some of {sorted(defaults)} by name, or None"
        raise ValueError(f"{said}, got {given}")
    for key, value in args.items():
        name = f"args[{key!r}] of {owner}"
        hint = ", a scalar: use jax.vmap over conditions, or args_axes=0"
        check_shape(name, jnp.asarray(value), (), hint)
        if concrete(value):
            check_within("[0, inf)", **{name: value})
    return defaults | dict(args)
