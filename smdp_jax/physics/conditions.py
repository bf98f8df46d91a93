"""A system's coefficients, and conditions that replace them state by state."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from smdp_jax.checks import check_floating, check_shape, check_within, concrete
from smdp_jax.sde import Args


def check_coefficients(system: Any, *names: str) -> None:
    """Check that fields of a system are finite and positive."""
    check_within("(0, inf)", owner=system, **{name: getattr(system, name) for name in names})


def check_even(name: str, size: int, least: int = 4, most: int | None = None) -> None:
    """Check the number of points on a side."""
    if size < least or size % 2 or (most is not None and size > most):
        said = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be even and {said}, got {size}")


def check_fields(owner: str, x: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    """Check that a state is a mapping of fields of these shapes."""
    got = jax.tree.map(jnp.shape, dict(x)) if isinstance(x, Mapping) else type(x).__name__
    if got != shapes:
        raise ValueError(f"the state of {owner} must have shapes {shapes}, got {got}")
    check_floating(f"the state of {owner}", *x.values())


def coefficients(args: Args, owner: str, **defaults: Any) -> dict[str, Any]:
    """Replace a system's coefficients by those given as conditions."""
    if args is None:
        return defaults
    given = sorted(args) if isinstance(args, Mapping) else args
    if not isinstance(args, Mapping) or not set(args) <= set(defaults):
        said = f"args of {owner} must be some of {sorted(defaults)} by name, or None"
        raise ValueError(f"{said}, got {given}")
    for key, value in args.items():
        name, hint = f"args[{key!r}] of {owner}", ", a scalar: use jax.vmap, or args_axes=0"
        check_shape(name, jnp.asarray(value), (), hint)
        if concrete(value):
            check_within("[0, inf)", **{name: value})
    return defaults | dict(args)
