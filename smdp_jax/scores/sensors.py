"""What was seen of a state at one time: anything with a likelihood, and linear sensors."""

import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from smdp_jax.checks import check_kind, check_shape, concrete, is_number
from smdp_jax.sde import State

__all__ = ["LinearObservation", "Observation"]


@dataclass(frozen=True, eq=False)
class Observation:
    """Anything that was seen of the state at one time.

    Parameters
    ----------
    time : float
        When; a time of the solve's ``ts``.
    log_likelihood : callable
        ``log_likelihood(x, args)``, log density of what was seen given one state there, in nats;
        differentiable at the last time, where particles follow its gradient.

    Raises
    ------
    TypeError
        If ``log_likelihood`` is no function.
    """

    time: float
    log_likelihood: Callable[[Any, Any], Any]

    def __post_init__(self) -> None:
        want = "a function (x, args)"
        check_kind("Observation.log_likelihood", self.log_likelihood, want, "__call__")
        _check_time(self.time)


@dataclass(frozen=True, eq=False)
class LinearObservation:
    """Sensors: ``value = operator(x) + noise`` at one time, with Gaussian noise.

    Parameters
    ----------
    time : float
        When; a time of the solve's ``ts``.
    operator : callable, index, mask or matrix
        A linear function of one state (its matrix is found by ``jax.linear_transpose``), an index
        such as ``np.s_[::4, ::4]``, a boolean array (or tree) like the state, or a matrix
        (sensors, entries) acting on all entries of the state in the order of its leaves.
    value : array
        What was seen, in the units of the state, with the shape of ``operator(x)``.
    covariance : float or array
        Of the noise, in squared units: a number, one per sensor, or a matrix (sensors, sensors).
    seen : boolean array, optional
        Like ``value``: False leaves out a broken sensor, whose value may then be NaN.

    Raises
    ------
    ValueError
        If the time is no number, value or covariance are not real, the covariance is not positive,
        or a value that is not left out is not finite.
    """

    time: float
    operator: Any
    value: Any
    covariance: Any
    seen: Any = None

    def __post_init__(self) -> None:
        _check_time(self.time)
        if isinstance(self.operator, list) and all(
            map(np.isscalar, jax.tree.leaves(self.operator))
        ):
            object.__setattr__(self, "operator", np.asarray(self.operator))
        value = _real("value", self.value)
        _real("covariance", self.covariance)
        if self.seen is not None:
            check_shape("LinearObservation.seen", jnp.asarray(self.seen), value.shape, " of value")
        if not concrete(self.seen):
            said = "LinearObservation.seen must be known before tracing, got a traced array"
            raise ValueError(f"{said}: give broken sensors a large covariance there")
        kept = self.kept
        if concrete(value):
            flat = np.asarray(value).reshape(-1)
            if (wrong := np.flatnonzero(~np.isfinite(flat) & kept)).size:
                got = f"{flat[wrong[0]]} at sensor {wrong[0]}: leave broken sensors out by seen="
                raise ValueError(f"LinearObservation.value must be finite, got {got}")
        _check_covariance(self.covariance, kept)

    @property
    def kept(self) -> np.ndarray:
        """Which sensors count, bool (sensors,): all, without ``seen``."""
        if self.seen is None:
            return np.ones(np.size(self.value), bool)
        return np.asarray(self.seen, bool).reshape(-1)

    def apply(self, x: State) -> Any:
        """Look at one state.

        Parameters
        ----------
        x : pytree
            State, unbatched.

        Returns
        -------
        array
            What the sensors would show without noise.

        Raises
        ------
        ValueError
            If a mask, matrix or index does not fit the state.
        """
        operator = self.operator
        if callable(operator):
            return operator(x)
        if self._is_mask:
            want, got = (jax.tree.map(np.shape, tree) for tree in (x, operator))
            if want != got:
                raise ValueError(f"a mask must be like the state {want}, got {got}")
            picked = jax.tree.map(lambda o, x: x[np.nonzero(np.asarray(o))], operator, x)
            return jnp.concatenate(jax.tree.leaves(picked))
        if self._is_matrix:
            flat, _ = ravel_pytree(x)
            hint = ", a column for each entry of the state"
            check_shape("a matrix as operator", operator, (operator.shape[0], flat.size), hint)
            return jnp.asarray(operator, flat.dtype) @ flat
        if not isinstance(x, (jax.Array, np.ndarray)):
            want = "a function for a state of several leaves"
            raise ValueError(f"operator must be {want}, got {operator!r}")
        try:
            return x[operator]
        except (IndexError, TypeError) as error:
            want = f"an index into a state of shape {x.shape}"
            raise ValueError(f"operator must be {want}, got {operator!r}") from error

    @property
    def _is_mask(self) -> bool:
        leaves = jax.tree.leaves(self.operator)
        kinds = [(o if hasattr(o, "dtype") else np.asarray(o)).dtype.kind for o in leaves]
        return set(kinds) == {"b"} and all(map(np.ndim, leaves))

    @property
    def _is_matrix(self) -> bool:
        is_array = isinstance(self.operator, (np.ndarray, jax.Array))
        return is_array and np.ndim(self.operator) == 2 and not self._is_mask

    def matrix(self, like: State) -> Array:
        """Rows of the operator, of the sensors that count.

        Parameters
        ----------
        like : pytree
            A state, for its structure.

        Returns
        -------
        array, shape (sensors, entries)
            In the order of the leaves' entries.

        Raises
        ------
        ValueError
            If the operator is not linear, or its shape is not that of ``value``.
        """
        flat, unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like))
        look = lambda v: jnp.asarray(self.apply(unravel(v)))
        try:
            shape = jax.eval_shape(look, flat).shape
        except (TypeError, ValueError, jax.errors.TracerArrayConversionError) as error:
            if not callable(self.operator):
                raise
            want = "a JAX function of one state that returns an array"
            got = reprlib.repr(self.operator)
            raise TypeError(f"operator must be {want}, got {got}: {error}") from error
        if shape != (want := np.shape(self.value)):
            raise ValueError(f"operator must return the shape of value {want}, got {shape}")
        kept = np.flatnonzero(self.kept)
        if self._is_matrix:
            return jnp.asarray(self.operator, flat.dtype)[kept]
        if not callable(self.operator):
            # Pick the numbers of the entries: nothing to differentiate, or to compile.
            numbers = _numbered(like)
            picked = np.asarray(self.apply(numbers)).reshape(-1)[kept]
            return jnp.asarray(np.eye(flat.size)[picked], flat.dtype)
        rows, off = jax.jit(lambda probe: _rows(look, probe, kept))(flat)
        if concrete(off) and float(off) > 0:
            said = "operator must be linear, without an offset, got one that is not"
            raise ValueError(f"{said}: use Observation(time, log_likelihood)")
        return rows

    def noise(self, dtype: Any) -> Array:
        """Covariance of the sensors that count.

        Parameters
        ----------
        dtype : dtype
            Of the result.

        Returns
        -------
        array, shape (sensors, sensors)
            Positive definite.
        """
        pick, full = np.flatnonzero(self.kept), jnp.asarray(self.covariance, dtype)
        if full.ndim == 2 and full.shape[0] == self.kept.size:
            return full[np.ix_(pick, pick)]
        diagonal = jnp.broadcast_to(full.reshape(-1) if full.ndim else full, (self.kept.size,))
        return jnp.diag(diagonal[pick])

    def read(self, dtype: Any) -> Array:
        """Values of the sensors that count.

        Parameters
        ----------
        dtype : dtype
            Of the result.

        Returns
        -------
        array, shape (sensors,)
            Flat.
        """
        return jnp.asarray(self.value, dtype).reshape(-1)[np.flatnonzero(self.kept)]


def _numbered(like: State) -> State:
    """A state that holds the number of each of its entries."""
    leaves, tree = jax.tree.flatten(like)
    ends = np.cumsum([0, *(np.size(x) for x in leaves)])
    return tree.unflatten(
        [
            np.arange(end - np.size(x), end).reshape(np.shape(x))
            for x, end in zip(leaves, ends[1:], strict=True)
        ]
    )


def _rows(look: Callable, flat: Array, kept: np.ndarray) -> tuple[Array, Array]:
    """Rows of a linear function, and by how much it is not linear (at most 0 up to rounding)."""
    # Linear where its derivative is; a function that is not has no transpose.
    probe = jax.random.normal(jax.random.key(0), flat.shape, flat.dtype)
    value, pull = jax.vjp(look, probe)
    basis = jnp.eye(value.size, dtype=value.dtype)[kept]
    rows = jax.vmap(lambda e: pull(e.reshape(value.shape))[0])(basis)
    size = jnp.abs(rows) @ jnp.abs(probe)
    miss = jnp.abs(rows @ probe - value.reshape(-1)[kept]) - 1e-3 * size - 1e-6
    return rows, jnp.max(miss, initial=-jnp.inf)


def _check_time(time: Any) -> None:
    if not is_number(time):
        want = "a number that is known before tracing"
        raise ValueError(f"an observation's time must be {want}, got {reprlib.repr(time)}")


def _real(name: str, given: Any) -> Array:
    try:
        found = jnp.asarray(given)
    except (TypeError, ValueError):
        found = None
    if found is None or jnp.issubdtype(found.dtype, jnp.complexfloating):
        got = reprlib.repr(given)
        raise ValueError(f"LinearObservation.{name} must be an array of real numbers, got {got}")
    return found


def _check_covariance(covariance: Any, kept: np.ndarray) -> None:
    shape = np.shape(covariance)
    size = kept.size
    if shape not in ((), (size,), (size, size)) and math.prod(shape) != size:
        want = f"a number, one per sensor ({size}), or a matrix of shape {(size, size)}"
        raise ValueError(f"covariance must be {want}, got shape {shape}")
    if not concrete(covariance):
        return
    values = np.asarray(covariance, np.float64)
    if len(shape) == 2 and shape[0] == size and shape[1] == size:
        symmetric = np.allclose(values, values.T, atol=1e-6 * np.abs(values).max())
        least = np.linalg.eigvalsh(values).min() if np.isfinite(values).all() else np.nan
        if not symmetric:
            raise ValueError(f"covariance must be symmetric, got {reprlib.repr(covariance)}")
        if not least > 0:
            got = f"least eigenvalue {least:g}"
            raise ValueError(f"covariance must be positive definite, got {got}")
    elif not (values > 0).all() or not np.isfinite(values).all():
        raise ValueError(f"covariance must be positive and finite, got {values.min():g}")
