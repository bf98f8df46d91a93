"""What the evaluation functions accept as an array, and the checks they share.

Any real array goes: integers become floating point before anything is subtracted or averaged.
Under ``jit`` numbers cannot be looked at: what is refused outside gives NaN there (ranks: -1).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from smdp_jax.values import concrete

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
    """Check that named arrays have one shape."""
    (first, reference), *others = arrays.items()
    for name, array in others:
        if array.shape != reference.shape:
            raise ValueError(
                f"{name} must have the shape of {first}, {reference.shape}, got {array.shape}"
            )


def check_finite(**arrays: Any) -> None:
    """Check that named arrays are finite, if they can be looked at."""
    for name, array in arrays.items():
        if concrete(array) and not np.isfinite(values := np.asarray(array)).all():
            lost = int((~np.isfinite(values)).sum())
            raise ValueError(
                f"{name} must be finite, got {lost} lost of {values.size} entries: leave lost "
                "paths out, and say how many there were"
            )


def check_varying(**arrays: Any) -> None:
    """Check that named arrays are finite and not constant, if they can be looked at."""
    check_finite(**arrays)
    for name, array in arrays.items():
        if concrete(array) and array.size and np.ptp(values := np.asarray(array)) == 0:
            raise ValueError(f"{name} must vary, got {values.flat[0]:g} everywhere")


def check_ensemble(samples: Any, truth: Any) -> tuple[jax.Array, jax.Array]:
    """Samples (members, *state) and truth (*state) as finite floats that belong together."""
    if samples.ndim != truth.ndim + 1 or samples.shape[1:] != truth.shape:
        raise ValueError(
            f"samples must have shape (members, *{truth.shape}) for a truth of shape "
            f"{truth.shape}, got {samples.shape}"
        )
    if samples.shape[0] == 0:
        raise ValueError("samples must hold at least one member, got 0")
    samples, truth = as_float("samples", samples), as_float("truth", truth)
    check_finite(samples=samples, truth=truth)
    return samples, truth


def check_pair(estimate: Any, truth: Any) -> tuple[jax.Array, jax.Array]:
    """Estimate and truth as finite floats of one shape."""
    check_same_shape(truth=truth, estimate=estimate)
    estimate, truth = as_float("estimate", estimate), as_float("truth", truth)
    check_finite(estimate=estimate, truth=truth)
    return estimate, truth


def check_cases(truths: Any, samples: Any) -> tuple[jax.Array, jax.Array]:
    """Truths (cases, *state) and samples (cases, draws, *state) as finite floats.

    A draw that is lost can be ranked nowhere: NaN compares false and would count as above the
    truth, in every case. So the cases are named that have one.
    """
    if truths.ndim < 1 or samples.ndim != truths.ndim + 1:
        raise ValueError(
            "truths must have shape (cases, *state) and samples (cases, draws, *state), "
            f"got {truths.shape} and {samples.shape}"
        )
    if samples.shape[:1] + samples.shape[2:] != truths.shape:
        raise ValueError(
            f"samples must have shape ({truths.shape[0]}, draws, *{truths.shape[1:]}) for truths "
            f"of shape {truths.shape}, got {samples.shape}"
        )
    if 0 in samples.shape[:2]:
        raise ValueError(f"samples must hold at least one case and one draw, got {samples.shape}")
    truths, samples = as_float("truths", truths), as_float("samples", samples)
    if concrete(truths):
        _check_finite_cases("truths", ~np.isfinite(np.asarray(truths)), 1)
    if concrete(samples):
        _check_finite_cases("samples", ~np.isfinite(np.asarray(samples)), 2)
    return truths, samples


def _check_finite_cases(name: str, lost: np.ndarray, axes: int) -> None:
    """Refuse lost entries, and say which cases have them."""
    if not lost.any():
        return
    lost = np.any(lost.reshape(*lost.shape[:axes], -1), axis=-1)
    cases = np.flatnonzero(np.any(lost.reshape(len(lost), -1), axis=-1))
    shown = ", ".join(map(str, cases[:8])) + (", ..." if cases.size > 8 else "")
    raise ValueError(
        f"{name} must be finite, got {int(lost.sum())} lost of {lost.size} in {cases.size} of "
        f"{len(lost)} cases ({shown}); a rank among draws that are left is one of another "
        "posterior: mend the sampler, or leave these cases out and say so"
    )


def check_levels(levels: Any) -> jax.Array:
    """Probabilities (levels,) as floats."""
    levels = as_float("levels", jnp.asarray(levels))
    if levels.ndim != 1 or levels.size == 0:
        raise ValueError(f"levels must have shape (levels,), got {levels.shape}")
    if concrete(levels) and not np.all((np.asarray(levels) >= 0) & (np.asarray(levels) <= 1)):
        raise ValueError(f"levels must lie in [0, 1], got {np.asarray(levels)}")
    return levels
