"""The forward process ``dx = P(x, t) dt + g(t) dW`` (mathematics only)."""

import math
import reprlib
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Float, PyTree

from smdp_jax.checks import check_alike, check_choice, check_shape, check_that, is_number
from smdp_jax.compiled import parts_of

if TYPE_CHECKING:  # which knows neither shapes nor trees
    Scalar: TypeAlias = Any
    State: TypeAlias = Any
    Args: TypeAlias = Any
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


@dataclass(frozen=True, eq=False)
class SDE:
    r"""A stochastic process ``dx = P(x, t) dt + g(t) dW``.

    The physics is given either as a continuous ``drift`` or as a flow map ``step`` (a discrete
    simulator). W is a standard Brownian motion, independent for every entry of the state
    (Holzschuh, Vegetti, Thuerey 2023, "Solving Inverse Physics Problems with Score Matching",
    eq. 1). Processes of the same parts (numbers, functions, methods of equal systems) are equal.

    Parameters
    ----------
    drift : callable, optional
        ``drift(t, x, args)`` returns dx/dt: a tree with the structure, shapes and dtypes of ``x``.
    diffusion : float, callable, pytree of these, or None
        The noise amplitude g in units of state per square root of time: a positive number, a
        function ``g(t)``, or a pytree of these with the structure of the state (one scalar per
        leaf; 0 for a leaf without noise, if others have some). None is a process without noise.
    step : callable, optional
        ``step(t0, t1, x, args)`` returns the solution of dx = P dt at ``t1``, started at ``x`` at
        ``t0``. Give either ``drift`` or ``step``.
    inverse : callable, optional
        ``inverse(t1, t0, x, args)`` walks the flow map back from ``t1`` to ``t0 < t1``. Only with
        ``step``; the default is ``negated(step)``.
    interval : tuple of float
        Times (first, last) at which the process is defined.
    noise_at : "start" or "end"
        Where in a step of a flow map g is taken: the chain is ``x + g(t0) sqrt(t1 - t0) z`` after
        the step, or with ``g(t1)``. A reversed process takes it where the forward one put it in.
    linear : LinearPart, optional
        What of the physics is linear and diagonal in a transform: ``GaussianStep`` and the noise
        of simulated steps treat it exactly. The whole physics stays in ``drift`` or ``step``.

    Raises
    ------
    ValueError
        If not exactly one of ``drift`` and ``step`` is given, if ``inverse`` comes without
        ``step``, if a number in ``diffusion`` is not positive and finite, or if ``interval`` is
        empty.
    TypeError
        If ``drift``, ``step`` or ``inverse`` is no function.
    """

    drift: Drift | None = None
    _: KW_ONLY
    diffusion: Diffusion
    step: FlowMap | None = None
    inverse: FlowMap | None = None
    interval: tuple[float, float] = (-math.inf, math.inf)
    noise_at: Literal["start", "end"] = "start"
    linear: Any = None

    def __post_init__(self) -> None:
        given = "neither" if self.drift is None else "both"
        one = (self.drift is None) != (self.step is None)
        check_that(one, f"SDE takes either drift or step, got {given}")
        flows = self.inverse is None or self.step is not None
        check_that(flows, "SDE.inverse belongs to a flow map: give step as well, got drift")
        for name in ("drift", "step", "inverse"):
            function = getattr(self, name)
            if function is not None and not callable(function):
                raise TypeError(f"SDE.{name} must be a function, got {reprlib.repr(function)}")
        ends = self.interval if isinstance(self.interval, (tuple, list)) else ()
        increasing = len(ends) == 2 and ends[0] < ends[1]
        check_that(increasing, "SDE.interval must be (first, last), increasing", self.interval)
        check_choice("SDE.noise_at", self.noise_at, "start", "end")
        if self.step is not None and self.inverse is None:
            object.__setattr__(self, "inverse", negated(self.step))
        _check_amplitudes(self.diffusion)

    def _parts(self) -> tuple:
        amplitudes, tree = jax.tree.flatten(self.diffusion, is_leaf=callable)
        parts = (self.drift, self.step, self.inverse, self.linear, *amplitudes)
        return (tree, tuple(self.interval), self.noise_at, *map(parts_of, parts))

    def __eq__(self, other: object) -> bool:
        """Compare by what the processes are made of."""
        return isinstance(other, SDE) and self._parts() == other._parts()

    def __hash__(self) -> int:
        """Hash of what the process is made of."""
        return hash(self._parts())

    @property
    def deterministic(self) -> bool:
        """True for a process without noise (``diffusion=None``)."""
        return self.diffusion is None

    def g(self, t: Scalar, x: State) -> State:
        """Evaluate the noise amplitude.

        Parameters
        ----------
        t, x
            Time, and a state, of which only structure and dtypes are used.

        Returns
        -------
        pytree
            One scalar per leaf of ``x``, in the leaf's dtype.

        Raises
        ------
        ValueError
            If ``diffusion`` is a tree with another structure than ``x``, or not one scalar a leaf.
        """
        amplitudes = map_amplitudes(lambda g: g(t) if callable(g) else g, self.diffusion)
        if jax.tree.structure(self.diffusion, is_leaf=callable) == jax.tree.structure(0.0):
            amplitudes = jax.tree.map(lambda _: amplitudes, x)
        elif jax.tree.structure(amplitudes) != jax.tree.structure(x):
            check_alike("SDE.diffusion must match the state's tree", x, amplitudes)

        def as_scalar(g: Any, leaf: Any) -> jax.Array:
            check_shape("SDE.diffusion", jnp.asarray(g), (), ", one scalar per leaf")
            return jnp.asarray(g, dtype=jnp.result_type(leaf))

        return jax.tree.map(as_scalar, amplitudes, x)

    def g_of_step(self, t0: Scalar, t1: Scalar, x: State) -> State:
        """Evaluate the noise amplitude of one step of the chain from ``t0`` to ``t1``.

        Parameters
        ----------
        t0, t1, x
            Times of the step, in the direction of the process, and a state, as for ``g``.

        Returns
        -------
        pytree
            One scalar per leaf: ``g`` at ``noise_at``; of a drift at ``t1``, where the step back
            starts.
        """
        return self.g(t0 if self.step is not None and self.noise_at == "start" else t1, x)


def map_amplitudes(function: Callable[[Any], Any], diffusion: Diffusion) -> Any:
    """Map every number and function of a diffusion; a function may be a pytree of its own."""
    return jax.tree.map(function, diffusion, is_leaf=callable)


def _check_amplitudes(diffusion: Diffusion) -> None:
    # Functions, and arrays on a device or in a trace, are looked at where the times are known.
    values = jax.tree.leaves(diffusion, is_leaf=callable)
    seen = [value for value in values if not (callable(value) or isinstance(value, jax.Array))]
    said = "a number, a function g(t), or a tree of these like the state"
    for value in seen:
        good = is_number(value) and 0 <= float(value) < math.inf
        check_that(good, f"SDE.diffusion must be positive and finite: {said}", value)
    noisy = not values or len(seen) < len(values) or any(seen)
    said = f"SDE.diffusion must be positive, got {diffusion!r}: a process without noise has None"
    check_that(noisy, said)


def negated(step: FlowMap) -> FlowMap:
    """Walk a dissipative flow map back by the negated increment: ``2 x - step(t0, t1, x)``.

    Unlike integration with a negative step it does not amplify what the flow damps: for the heat
    equation, a mode with decay rate r grows by ``2 - exp(-r dt)`` and not by ``exp(r dt)``.

    Parameters
    ----------
    step : callable
        Forward flow map ``step(t0, t1, x, args)``.

    Returns
    -------
    callable
        ``inverse(t1, t0, x, args)`` from the later ``t1`` to the earlier ``t0``.
    """
    return _Negated(step)


def integrated_backward(step: FlowMap) -> FlowMap:
    """Walk a flow map back by running the simulator itself with a negative step.

    Parameters
    ----------
    step : callable
        Flow map ``step(t0, t1, x, args)`` that accepts ``t1 < t0``.

    Returns
    -------
    callable
        ``inverse(t1, t0, x, args)`` from the later ``t1`` to the earlier ``t0``.
    """
    return _IntegratedBackward(step)


@dataclass(frozen=True)
class _Walk:
    """A way back along a flow map; two of equal flow maps are equal."""

    step: FlowMap

    def _parts(self) -> tuple:
        return (parts_of(self.step),)


@dataclass(frozen=True)
class _Negated(_Walk):
    def __call__(self, t1: Scalar, t0: Scalar, x: State, args: Args) -> State:
        return jax.tree.map(lambda x, y: 2 * x - y, x, self.step(t0, t1, x, args))


@dataclass(frozen=True)
class _IntegratedBackward(_Walk):
    def __call__(self, t1: Scalar, t0: Scalar, x: State, args: Args) -> State:
        return self.step(t1, t0, x, args)
