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

from smdp_jax.checks import check_kind, check_shape, check_that, concrete, is_number
from smdp_jax.sde import State


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
        leaves = jax.tree.leaves(self.operator)
        if isinstance(self.operator, list) and all(map(np.isscalar, leaves)):
            object.__setattr__(self, "operator", np.asarray(self.operator))
        value = _real("value", self.value)
        _real("covariance", self.covariance)
        if self.seen is not None:
            check_shape("LinearObservation.seen", jnp.asarray(self.seen), value.shape, " of value")
        said = "LinearObservation.seen must be known before tracing, got a traced array"
        check_that(concrete(self.seen), f"{said}: give broken sensors a large covariance there")
        if concrete(value):
            flat = np.asarray(value).reshape(-1)
            wrong = ~np.isfinite(flat) & self.kept
            got = f"{flat[wrong][:1]} at sensor {wrong.argmax()}" if wrong.any() else ""
            said = f"LinearObservation.value must be finite, got {got}"
            check_that(not wrong.any(), f"{said}: leave broken sensors out by seen=")
        _check_covariance(self.covariance, np.size(self.value))

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
            check_that(want == got, f"a mask must be like the state {want}", got)
            picked = jax.tree.map(lambda o, x: x[np.nonzero(np.asarray(o))], operator, x)
            return jnp.concatenate(jax.tree.leaves(picked))
        if self._is_matrix:
            flat, _ = ravel_pytree(x)
            hint = ", a column for each entry of the state"
            check_shape("a matrix as operator", operator, (operator.shape[0], flat.size), hint)
            return jnp.asarray(operator, flat.dtype) @ flat
        alone = isinstance(x, (jax.Array, np.ndarray))
        check_that(alone, "operator must be a function for a state of several leaves", operator)
        try:
            return x[operator]
        except (IndexError, TypeError) as error:
            said = f"operator must be an index into a state of shape {x.shape}, got {operator!r}"
            raise ValueError(said) from error

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
            said = "operator must be a JAX function of one state that returns an array, got"
            raise TypeError(f"{said} {reprlib.repr(self.operator)}: {error}") from error
        want = np.shape(self.value)
        check_that(shape == want, f"operator must return the shape of value {want}", shape)
        kept = np.flatnonzero(self.kept)
        if self._is_matrix:
            return jnp.asarray(self.operator, flat.dtype)[kept]
        if not callable(self.operator):
            # Pick the numbers of the entries: nothing to differentiate, or to compile.
            numbers = _numbered(like)
            picked = np.asarray(self.apply(numbers)).reshape(-1)[kept]
            return jnp.asarray(np.eye(flat.size)[picked], flat.dtype)
        rows, off = jax.jit(lambda probe: _rows(look, probe, kept))(flat)
        said = "operator must be linear, without an offset, got one that is not"
        linear = not concrete(off) or float(off) <= 0
        check_that(linear, f"{said}: use Observation(time, log_likelihood)")
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
    ends = np.cumsum([np.size(x) for x in leaves])
    parts = zip(np.split(np.arange(ends[-1]), ends[:-1]), leaves, strict=True)
    return tree.unflatten([part.reshape(np.shape(x)) for part, x in parts])


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
    said = "an observation's time must be a number that is known before tracing"
    check_that(is_number(time), said, time)


def _real(name: str, given: Any) -> Array:
    try:
        found = jnp.asarray(given)
    except (TypeError, ValueError):
        found = jnp.asarray(1j)  # no more real than what is none
    real = not jnp.iscomplexobj(found)
    check_that(real, f"LinearObservation.{name} must be an array of real numbers", given)
    return found


def _check_covariance(covariance: Any, size: int) -> None:
    shape = np.shape(covariance)
    fits = shape in ((), (size,), (size, size)) or math.prod(shape) == size
    said = f"covariance must be a number, one per sensor ({size}), or a matrix {(size, size)}"
    check_that(fits, f"{said}, got shape {shape}")
    if not concrete(covariance):
        return
    values = np.asarray(covariance, np.float64)
    finite = np.isfinite(values).all()
    if shape == (size, size):
        symmetric = np.allclose(values, values.T, atol=1e-6 * np.abs(values).max())
        check_that(symmetric, "covariance must be symmetric", covariance)
        least = np.linalg.eigvalsh(values).min() if finite else np.nan
        check_that(least > 0, f"covariance must be positive definite, got an eigenvalue {least:g}")
    else:
        least = values.min()
        check_that(finite and least > 0, f"covariance must be positive and finite, got {least:g}")
