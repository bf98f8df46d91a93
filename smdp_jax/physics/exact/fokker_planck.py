r"""Fokker-Planck solver for a scalar process: its density from one starting point, on a grid.

Solves ``p_t + (P p)_x = (g^2 / 2) p_xx``, ``p_0 = delta(x - start)``, in the moving frame
``z = (x - m(t)) / s(t)`` and in log time, where the solution hardly changes: it starts as the
standard normal and stays close to it while the process is close to linear. The frame follows the
mean and the standard deviation of the Gaussian closure::

    m' = E[P(m + s Z)],   s' = E[Z P(m + s Z)] + g^2 / (2 s),   Z ~ N(0, 1)

so the density q in z obeys ``q_t + (b q)_z = D q_zz`` with ``b = (P(m + s z) - m' - s' z) / s``
and ``D = g^2 / (2 s^2)``. In z: conservative finite volumes with exponentially fitted fluxes
(Scharfetter, Gummel 1969; Chang, Cooper 1970), which keep a Gaussian exactly when P is linear. In
time: TR-BDF2 (Bank et al. 1985), second order and L-stable.
"""

import math
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from smdp_jax.checks import check_positive, check_within
from smdp_jax.physics.exact.transition import Transition
from smdp_jax.sde import SDE
from smdp_jax.solve.integrate import advance

GAMMA = 2 - math.sqrt(2)  # the TR-BDF2 stage at which both stages have the same matrix


def transition_density(
    sde: SDE,
    start: float | int,
    *,
    end_time: float | int = 10.0,
    start_time: float | int = 1e-5,
    cells: int = 500,
    steps: int = 1000,
    stride: int = 4,
    width: float | int = 10.0,
    frame_scale: float | int = 1.0,
) -> Transition:
    """Tabulate the density of x_t given ``x_0 = start`` for t up to ``end_time``.

    Computed in float64 whatever the session's default (a second or two); the table comes back in
    the session's default float type. Not to be called under jit.

    Parameters
    ----------
    sde, start : SDE, float
        A scalar process: states of shape (1,), a continuous drift, noise g(t) > 0; its starting
        point, in units of state.
    end_time, start_time : float
        Last and first time of the table; until the first the density is taken to be Gaussian, so it
        must be short against the time in which the drift changes.
    cells, steps, stride : int
        Finite volumes over ``-width <= z <= width``, and time steps, uniform in log t, of which
        every ``stride``-th is kept in the table; errors fall with the square of each.
    width, frame_scale : float
        Half width of the domain, in standard deviations of the frame: where the density is below
        1e-30 of its peak, or outside, a Gaussian tail takes over, see ``Transition``; width of the
        frame relative to the Gaussian closure, on which the solution must not depend.

    Returns
    -------
    Transition
        The density as a smooth function of time and state.

    Raises
    ------
    ValueError
        If the process has no drift or no noise, if a number is out of range, or if the density
        does not come out positive (too few steps).
    """
    if sde.drift is None or sde.deterministic:
        raise ValueError(f"sde must have a continuous drift and noise, got {sde}")
    check_within("(0, inf)", start_time=start_time, end_time=end_time, frame_scale=frame_scale)
    check_within(f"(0, {end_time})", start_time=start_time)
    check_within("[4, inf)", width=width)
    check_positive(stride=stride)
    check_positive(least=16, cells=cells)
    check_positive(least=4 * stride, steps=steps)
    steps = math.ceil(steps / stride) * stride
    log_ts = np.linspace(math.log(start_time), math.log(end_time), steps + 1)
    grid = _MovingGrid(sde, np.linspace(-width, width, cells + 1), frame_scale)
    with jax.enable_x64(True):
        results = jax.jit(grid.march)(jnp.asarray(start, float), jnp.asarray(log_ts))
        frames, slopes, densities = jax.tree.map(np.asarray, results)
    return _tabulate(start, log_ts, grid, frames, slopes, densities, stride)


def _tabulate(
    start: float | int,
    log_ts: np.ndarray,
    grid: "_MovingGrid",
    frames: "_Frame",
    slopes: "_Frame",
    densities: np.ndarray,
    stride: int,
) -> Transition:
    """Keep every ``stride``-th time, and in z all but the outermost standard deviation."""
    kept = slice(None, None, stride)
    inner = np.abs(grid.zs) <= grid.faces[-1] - 1  # the walls are felt close to them
    densities = densities[kept, inner]
    peaks = densities.max(axis=1, keepdims=True)
    if not np.all(densities > -1e-12 * peaks):
        got = f"a negative one with steps={len(log_ts) - 1}, cells={len(grid.zs)}"
        raise ValueError(f"the density must be positive, got {got}: take more steps")
    zs = grid.zs[inner]
    resolved = densities > 1e-30 * peaks
    tilts = np.log(np.where(resolved, densities, 1)) + zs**2 / 2 + math.log(2 * math.pi) / 2
    tilts = _continue(tilts, resolved)
    (means, stds), (mean_slopes, std_slopes) = frames, slopes
    by_time = np.exp(log_ts), means, stds * grid.scale, mean_slopes, std_slopes * grid.scale
    tables = start, *(row[kept] for row in by_time), zs, tilts
    return Transition(*(jnp.asarray(table, float) for table in tables))


def _continue(rows: np.ndarray, resolved: np.ndarray) -> np.ndarray:
    """Go on as a straight line on both sides of the resolved entries of each row."""
    last = rows.shape[1] - 1
    first_good = resolved.argmax(axis=1, keepdims=True)
    last_good = last - resolved[:, ::-1].argmax(axis=1, keepdims=True)
    places = np.arange(last + 1)[None, :]
    nearest = np.clip(places, first_good, last_good)
    inward = np.where(places < first_good, 1, -1)
    edge, next_in = (np.take_along_axis(rows, i, axis=1) for i in (nearest, nearest + inward))
    return edge + np.abs(places - nearest) * (edge - next_in)


class _Frame(NamedTuple):
    """Mean and standard deviation of the Gaussian closure, or their derivatives by log t."""

    mean: Any
    std: Any


class _Bands(NamedTuple):
    """A tridiagonal matrix; the two corner entries outside it are zero."""

    lower: Array
    middle: Array
    upper: Array


class _MovingGrid:
    """The process seen from the frame, on finite volumes between ``faces``."""

    def __init__(self, sde: SDE, faces: np.ndarray, scale: float) -> None:
        assert sde.drift is not None  # transition_density has looked
        self.sde, self.velocity, self.faces, self.scale = sde, sde.drift, faces, scale
        self.zs = (faces[1:] + faces[:-1]) / 2
        self.dz = float(faces[1] - faces[0])
        self.nodes, weights = np.polynomial.hermite_e.hermegauss(32)
        self.weights = weights / weights.sum()

    def drift(self, t: Array, xs: Array) -> Array:
        return jax.vmap(lambda x: self.velocity(t, x[None], None)[0])(xs)

    def noise(self, t: Array) -> Array:
        return self.sde.g(t, jnp.zeros((1,)))

    def slope(self, log_t: Array, frame: _Frame) -> _Frame:
        t = jnp.exp(log_t)
        velocities = self.drift(t, frame.mean + frame.std * self.nodes)
        spreading = jnp.sum(self.weights * self.nodes * velocities)
        spreading = spreading + self.noise(t) ** 2 / (2 * frame.std)
        return _Frame(t * jnp.sum(self.weights * velocities), t * spreading)

    def follow(self, start: Array, log_ts: Array) -> tuple[_Frame, _Frame]:
        """Return the frame and its slopes at all times."""
        t = jnp.exp(log_ts[0])
        velocity = self.drift(t, start[None])[0]
        first = _Frame(start + t * velocity, self.noise(t) * jnp.sqrt(t))
        closure = SDE(lambda log_t, frame, args: self.slope(log_t, frame), diffusion=None)
        frames = advance(closure, first, log_ts, solver=diffrax.Tsit5())[0]
        return frames, jax.vmap(self.slope)(log_ts, frames)

    def generator(self, log_t: Array, frame: _Frame, slope: _Frame) -> _Bands:
        """Operator of the Fokker-Planck equation in z and log t; its columns sum to zero."""
        t, std, faces = jnp.exp(log_t), self.scale * frame.std, self.faces[1:-1]
        carried = (t * self.drift(t, frame.mean + std * faces) - slope.mean) / std
        flow = carried - slope.std / frame.std * faces
        diffusion = t * self.noise(t) ** 2 / (2 * std**2)
        peclet = flow * self.dz / diffusion
        up, down = (diffusion / self.dz**2 * _bernoulli(p) for p in (-peclet, peclet))
        wall = jnp.zeros((1,))
        lower, upper = jnp.concatenate([wall, up]), jnp.concatenate([down, wall])
        leaving = jnp.concatenate([up, wall]) + jnp.concatenate([wall, down])
        return _Bands(lower, -leaving, upper)

    def march(self, start: Array, log_ts: Array) -> tuple[_Frame, _Frame, Array]:
        """Return the frame, its slopes and the density in z at all times.

        Each TR-BDF2 step is a trapezoidal stage to an inner time, then BDF2 through all three.
        """
        lengths = jnp.diff(log_ts)
        stages = jnp.stack([log_ts[:-1] + GAMMA * lengths, log_ts[1:]], axis=1)
        all_ts = jnp.concatenate([log_ts[:1], stages.ravel()])
        moments = self.follow(start, all_ts)
        pairs = jax.tree.map(lambda a: a[1:].reshape(-1, 2), (all_ts, *moments))
        q = jnp.exp(-((self.zs * self.scale) ** 2) / 2)
        q = q / (jnp.sum(q) * self.dz)

        def advance(carry: tuple[_Bands, Array], step: Any) -> tuple[tuple[_Bands, Array], Array]:
            (matrix, q), (length, pair) = carry, step
            half, rest = GAMMA * length / 2, (1 - GAMMA) / (2 - GAMMA) * length
            both = jax.vmap(self.generator)(*pair)
            inner, last = (jax.tree.map(lambda band, i=i: band[i], both) for i in (0, 1))
            q_inner = _solve_implicit(inner, half, q + half * _apply(matrix, q))
            blend = (q_inner - (1 - GAMMA) ** 2 * q) / (GAMMA * (2 - GAMMA))
            q_last = _solve_implicit(last, rest, blend)
            return (last, q_last), q_last

        first = self.generator(*jax.tree.map(lambda a: a[0], (all_ts, *moments)))
        _, later = jax.lax.scan(advance, (first, q), (lengths, pairs))
        frames, slopes = jax.tree.map(lambda a: a[::2], moments)
        return frames, slopes, jnp.concatenate([q[None], later])


def _bernoulli(x: Array) -> Array:
    """Evaluate ``x / (exp(x) - 1)``, 1 at x = 0."""
    small = jnp.abs(x) < 1e-5
    safe = jnp.where(small, 1, x)
    return jnp.where(small, 1 - x / 2, safe / jnp.expm1(safe))


def _apply(matrix: _Bands, q: Array) -> Array:
    return matrix.lower * jnp.roll(q, 1) + matrix.middle * q + matrix.upper * jnp.roll(q, -1)


def _solve_implicit(matrix: _Bands, length: Array, q: Array) -> Array:
    """Solve ``(1 - length matrix) y = q``."""
    lower, middle, upper = (-length * band for band in matrix)
    return jax.lax.linalg.tridiagonal_solve(lower, 1 + middle, upper, q[:, None])[:, 0]
