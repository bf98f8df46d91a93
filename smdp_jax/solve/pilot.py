r"""How a step treats small errors, before it is taken a thousand times.

A pilot walks one path and looks, where some of its steps start, at the extreme eigenvalues of the
derivative of what is stepped (Arnoldi's method, a few Jacobian-vector products): mu of the step
itself, and lambda of the drift, whose exact flow multiplies errors by ``e^(lambda h)``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from smdp_jax.compiled import once
from smdp_jax.sde import SDE, Args, Drift, State
from smdp_jax.solve.chain import ChainSplitting
from smdp_jax.solve.integrate import advance

_LOOKS, _DIRECTIONS, _ASTRAY = 8, 10, 0.5
_TAYLOR = {
    1: (diffrax.Euler,),
    2: (diffrax.Heun, diffrax.Midpoint, diffrax.Ralston, diffrax.ShARK, ChainSplitting),
}


class Stepper(NamedTuple):
    """What a path is advanced by."""

    process: SDE
    solver: Any
    substeps: int
    drift: Drift | None
    """Of the process in continuous time, where there is one."""

    @property
    def order(self) -> int:
        """Of the step's polynomial in lambda h, where it is Taylor's; else 0."""
        if self.drift is None:
            return 0
        return next((n for n, kinds in _TAYLOR.items() if isinstance(self.solver, kinds)), 0)


class Pilot(NamedTuple):
    """Growth and rates that were seen along a path, and what they say of a solve."""

    lost: bool
    """Whether the path left the finite numbers."""
    times: np.ndarray
    """Where a look's step starts (looks,)."""
    share: np.ndarray
    """How many steps a look stands for."""
    step: Any
    """Eigenvalues of a step's derivative (looks, m)."""
    flow: Any
    """Those of the drift's, times the length of the step; of a flow map's step, log |mu|."""

    paired: bool
    """Whether the eigenvalues of step and flow belong to each other."""

    @property
    def growth(self) -> np.ndarray:
        """By how much one step amplifies what the true flow would not, (looks,)."""
        exact = np.maximum(1.0, np.exp(np.minimum(self.flow.real, 700.0)))
        if not self.paired:
            exact = exact.max(axis=1, keepdims=True)
        return (np.abs(self.step) / exact).max(axis=1)

    @property
    def decades(self) -> float:
        """By how many powers of ten all steps together do."""
        with np.errstate(divide="ignore"):
            return float(np.sum(self.share * np.log10(np.maximum(self.growth, 1.0))))

    @property
    def stretch(self) -> float:
        """By how many powers of ten all steps together stretch, rightly or not."""
        sizes = np.abs(self.step).max(axis=1)
        return float(np.sum(self.share * np.log10(np.maximum(sizes, 1.0))))

    @property
    def worst(self) -> tuple[float, float]:
        """Largest growth of a step, and where that step starts."""
        i = int(np.argmax(self.growth))
        return float(self.growth[i]), float(self.times[i])

    @property
    def longest(self) -> float:
        """Largest rate times step; the last step does not count: a score may be singular there."""
        sizes = np.abs(self.flow[:-1] if len(self.flow) > 1 else self.flow)
        return float(sizes.max(initial=0.0))

    @property
    def error(self) -> float:
        """Largest error of a step, over what the true flow makes of it."""
        exact = np.exp(np.minimum(self.flow.real, 700.0) + 1j * self.flow.imag)
        return float((np.abs(self.step - exact) / np.maximum(1.0, np.abs(exact))).max())

    def substeps(self, budget: float) -> int:
        """Substeps by which a scheme of second order follows the flow to within ``budget``.

        Its error of a step, |z|^3 / 6, adds up until the flow has forgotten it.
        """
        # What a path meets once its errors have taken it elsewhere does not count; and the last
        # step may end where a score is singular, which no number of substeps resolves.
        before = np.cumsum(self.share * np.log10(np.maximum(self.growth, 1.0)))
        trusted = np.append(0.0, before[:-1]) < _ASTRAY
        z: Any = self.flow[trusted]
        z = z[:-1] if trusted.all() and len(z) > 1 else z
        size, damping = np.abs(z).max(initial=0.0), np.maximum(-z.real, 1e-6)
        steps = self.share.sum()
        n = 1
        while n < 4096:
            error = np.abs(z / n) ** 3 / 6 * np.minimum(steps * n, n / damping)
            if size / n <= 0.75 and error.max(initial=0.0) <= budget:
                break
            n *= 2
        return n


def pilot_of(
    build: Callable[[Any], Stepper], what: Any, x: State, grid: Array, args: Args
) -> Pilot | None:
    """Walk ``build(what)`` from x; None where it can't be differentiated."""
    try:
        with jax.numpy_dtype_promotion("standard"):
            found = _walk(build, what, x, grid, args)
    except Exception:  # whatever a simulator says of derivatives: nothing is known then
        return None
    steps, flows = (np.asarray(v) for v in found)
    starts = np.array(looked_at(grid))
    widths, times = np.diff(np.asarray(grid, float))[starts], np.asarray(grid, float)[starts]
    good = np.isfinite(steps).all(axis=(1, 2)) & np.isfinite(flows).all(axis=(1, 2))
    if not good.any():
        return None
    share = np.diff(np.append(starts, grid.shape[0] - 1)).astype(float)
    stepper = build(what)
    rates = np.linalg.eigvals(flows[good].astype(float)) * widths[good][:, None]
    if n := stepper.order:
        z = rates / stepper.substeps
        mu = (1 + z + (0.5 * z**2 if n == 2 else 0)) ** stepper.substeps
    else:
        mu = np.linalg.eigvals(steps[good].astype(float))
    if stepper.drift is None:
        # The true flow is not known: what only stretches is taken for its own.
        stretch = (mu.real > 0) & (np.abs(mu.imag) <= 0.1 * np.abs(mu))
        rates = np.where(stretch, np.log(np.maximum(np.abs(mu), 1e-30)), 0.0) + 0j
    paired = bool(n) or stepper.drift is None
    return Pilot(not good.all(), times[good], share[good], mu, rates, paired)


@once
def _walk(build: Any, what: Any, x: State, grid: Array, args: Args) -> tuple[Array, Array]:
    """Hessenberg matrices (looks, m, m) of step and drift along a path."""
    process, solver, substeps, drift = stepper = build(what)
    flat, unravel = ravel_pytree(x)
    starts = looked_at(grid)

    def look(function: Callable[[State], State], x: State) -> Array:
        def apply(v: Array) -> Array:
            return ravel_pytree(jax.jvp(function, (x,), (unravel(v),))[1])[0]

        return arnoldi(apply, flat.size, flat.dtype)

    def moved(x: State, ts: Array, save: Any) -> State:
        key = jax.random.key(0)
        how = {"args": args, "solver": solver, "substeps": substeps, "save": save}
        return advance(process, x, ts, key=key, **how)[0]

    def at(where: tuple[Array, State]) -> tuple[Array, Array]:
        n, x = where
        m = min(_DIRECTIONS, flat.size)
        step = flow = jnp.zeros((m, m), flat.dtype)
        if drift is not None:
            flow = look(lambda v: drift(grid[n], v, args), x)
        if not stepper.order:
            step = look(lambda v: moved(v, jnp.stack([grid[n], grid[n + 1]]), "last"), x)
        return step, flow

    return jax.lax.map(at, (jnp.array(starts), moved(x, grid, starts)))


def looked_at(grid: Array) -> tuple[int, ...]:
    """Steps that are looked at: a few, and the last."""
    steps = grid.shape[0] - 1
    return tuple(sorted({*range(0, steps, max(1, steps // _LOOKS)), steps - 1}))


def arnoldi(apply: Callable[[Array], Array], size: int, dtype: Any) -> Array:
    """Project a linear map on its Krylov space; the matrix has the map's extreme eigenvalues."""
    if size == 1:
        return apply(jnp.ones((1,), dtype))[:, None]
    m = min(_DIRECTIONS, size)
    start = jax.random.normal(jax.random.key(0), (size,), dtype)
    basis = jnp.zeros((m + 1, size), dtype).at[0].set(start / jnp.linalg.norm(start))

    def grow(j: Any, carry: tuple) -> tuple:
        basis, matrix = carry
        w = apply(basis[j])
        scale = jnp.linalg.norm(w)
        first = basis @ w
        w = w - first @ basis
        again = basis @ w  # twice is enough
        w = w - again @ basis
        left = jnp.linalg.norm(w)
        # What rounding leaves of an exhausted space is no direction.
        kept = left > 1e-4 * scale
        basis = basis.at[j + 1].set(jnp.where(kept, w / jnp.where(kept, left, 1), 0))
        column = (first + again).at[j + 1].add(jnp.where(kept, left, 0))
        return basis, matrix.at[:, j].set(column)

    return jax.lax.fori_loop(0, m, grow, (basis, jnp.zeros((m + 1, m), dtype)))[1][:m]
