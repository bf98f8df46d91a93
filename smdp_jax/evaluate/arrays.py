"""What the evaluation functions accept as an array, and the checks they share.

Any real array goes: integers become floating point before anything is subtracted or averaged.
Under ``jit`` numbers cannot be looked at: what is refused outside gives NaN there (ranks: -1).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from smdp_jax.checks import check_holds, check_shape, check_within, concrete

AnyArray = jax.Array | np.ndarray
"""A jax or a numpy array."""
AnyState = Real[AnyArray, "*_state"]
Truths = Real[AnyArray, "_cases *_state"]
Draws = Real[AnyArray, "_cases _draws *_state"]
Grid = Real[AnyArray, "*_grid"]
Number = Float[Array, ""]


def by_name(tree: Any) -> dict[str, Any]:
    """Leaves by their place in a tree, such as "flow.velocity"; "" is the tree itself."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def as_float(name: str, array: Any) -> jax.Array:
    """A real array as floating point of at least single precision."""
    dtype = jnp.result_type(array)
    if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize >= 4:
        return jnp.asarray(array)
    if not (jnp.issubdtype(dtype, jnp.number) or dtype.kind == "b") or dtype.kind == "c":
        raise ValueError(f"{name} must be real, got {dtype}")
    return jnp.asarray(array).astype(jnp.result_type(float))


def check_same_shape(**arrays: Any) -> None:
    """Check that named arrays have the shape of the first."""
    (first, reference), *others = arrays.items()
    for name, array in others:
        check_shape(name, array, reference.shape, f", the shape of {first}")


def check_none_lost(axes: int = 0, **arrays: Any) -> None:
    """Check that named arrays are finite, if they can be looked at; with axes of cases, in which.

    A lost draw has no rank: NaN compares false, and would count as above the truth in every case.
    """
    for name, array in arrays.items():
        lost = np.asarray(~np.isfinite(np.asarray(array) if concrete(array) else 0))
        if not lost.any():
            continue
        where = "entries"
        if axes:
            lost = np.any(lost.reshape(*lost.shape[:axes], -1), axis=-1)
            cases = np.flatnonzero(lost.reshape(len(lost), -1).any(axis=-1))
            shown = ", ".join(map(str, cases[:8])) + ", ..." * (cases.size > 8)
            where = f"in {cases.size} of {len(lost)} cases ({shown})"
        said = f"{name} must be finite, got {lost.sum()} lost of {lost.size} {where}"
        raise ValueError(f"{said}: mend the sampler, or leave them out and say how many")


def check_entries(interval: str, **arrays: Any) -> None:
    """Check that all entries of named arrays lie in an interval, if they can be looked at."""
    for name, array in arrays.items():
        values = np.asarray(array).ravel() if concrete(array) else np.zeros(0)
        for end in (values.min(), values.max()) if values.size else ():  # NaN if there is one
            check_within(interval, **{name: end})


def check_varying(**arrays: Any) -> None:
    """Check that named arrays are finite and not constant, if they can be looked at."""
    check_none_lost(**arrays)
    for name, array in arrays.items():
        if concrete(array) and array.size and np.ptp(values := np.asarray(array)) == 0:
            raise ValueError(f"{name} must vary, got {values.flat[0]:g} everywhere")


def as_ensemble(samples: Any, truth: Any) -> tuple[jax.Array, jax.Array]:
    """Samples (members, *state) and truth (*state) as finite floats that belong together."""
    _check_draws(samples, truth, 0)
    samples, truth = as_float("samples", samples), as_float("truth", truth)
    check_none_lost(samples=samples, truth=truth)
    return samples, truth


def _check_draws(samples: Any, truth: Any, axis: int) -> None:
    """Samples have one axis of draws beside those of the truth, and none before it is empty."""
    check_holds("truths", truth.ndim, axis, "axis of cases")
    draws = samples.shape[axis] if samples.ndim > axis else 1
    want = (*truth.shape[:axis], draws, *truth.shape[axis:])
    check_shape("samples", samples, want, ", an axis of draws beside those of truths")
    check_holds("samples", min(samples.shape[: axis + 1]), 1, ("draw", "case and 1 draw")[axis])


def as_pair(estimate: Any, truth: Any) -> tuple[jax.Array, jax.Array]:
    """Estimate and truth as finite floats of one shape."""
    check_same_shape(truth=truth, estimate=estimate)
    estimate, truth = as_float("estimate", estimate), as_float("truth", truth)
    check_none_lost(estimate=estimate, truth=truth)
    return estimate, truth


def as_cases(truths: Any, samples: Any) -> tuple[jax.Array, jax.Array]:
    """Truths (cases, *state) and samples (cases, draws, *state) as finite floats."""
    _check_draws(samples, truths, 1)
    truths, samples = as_float("truths", truths), as_float("samples", samples)
    check_none_lost(1, truths=truths)
    check_none_lost(2, samples=samples)
    return truths, samples


def as_levels(levels: Any) -> jax.Array:
    """Probabilities (levels,) as floats."""
    levels = as_float("levels", jnp.asarray(levels))
    if levels.ndim != 1 or levels.size == 0:
        raise ValueError(f"levels must have shape (levels,), got {levels.shape}")
    check_entries("[0, 1]", levels=levels)
    return levels
