"""What the evaluation functions accept as an array, and the checks they share."""

import jax
import numpy as np

AnyArray = jax.Array | np.ndarray
"""A jax or a numpy array."""


def require_same_shape(**arrays: AnyArray) -> None:
    """Check that named arrays have one shape."""
    (first, reference), *others = arrays.items()
    for name, array in others:
        if array.shape != reference.shape:
            raise ValueError(
                f"{name} must have the shape of {first}, {reference.shape}; got {array.shape}"
            )


def require_ensemble(samples: AnyArray, truth: AnyArray) -> None:
    """Check that samples are a non-empty ensemble of states shaped like the truth."""
    if samples.ndim != truth.ndim + 1 or samples.shape[1:] != truth.shape:
        raise ValueError(
            f"samples must have shape (members, *{truth.shape}) for a truth of shape "
            f"{truth.shape}; got {samples.shape}"
        )
    if samples.shape[0] == 0:
        raise ValueError("samples must hold at least one member; got 0")


def require_cases(truths: AnyArray, samples: AnyArray) -> None:
    """Check that there is one non-empty set of draws for every true state."""
    if truths.ndim < 1 or samples.ndim != truths.ndim + 1:
        raise ValueError(
            "truths must have shape (cases, *state) and samples (cases, draws, *state); "
            f"got {truths.shape} and {samples.shape}"
        )
    if samples.shape[:1] + samples.shape[2:] != truths.shape:
        raise ValueError(
            f"samples must have shape ({truths.shape[0]}, draws, *{truths.shape[1:]}) for truths "
            f"of shape {truths.shape}; got {samples.shape}"
        )
    if 0 in samples.shape[:2]:
        raise ValueError(f"at least one case and one draw are needed; got {samples.shape[:2]}")
