"""Conditions that replace a system's own coefficients, state by state."""

from collections.abc import Mapping
from typing import Any

from smdp_jax._types import Args

__all__ = ["coefficients"]


def coefficients(args: Args, owner: str, **defaults: Any) -> dict[str, Any]:
    """Replace a system's coefficients by those given as conditions.

    Parameters
    ----------
    args : dict or None
        Some of the coefficients, by name; None for none of them.
    owner : str
        Name of the system, for the message.
    **defaults : scalar
        Its own coefficients.

    Returns
    -------
    dict
        Every coefficient.

    Raises
    ------
    ValueError
        If ``args`` is no dict, or names a coefficient that the system does not have.
    """
    if args is None:
        return defaults
    if not isinstance(args, Mapping) or not set(args) <= set(defaults):
        given = sorted(args) if isinstance(args, Mapping) else args
        raise ValueError(
            f"{owner} takes args with some of {sorted(defaults)}, or None, got {given}"
        )
    return defaults | dict(args)
