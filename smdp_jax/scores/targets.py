r"""Unbiased score targets along simulated paths.

The simulated chain ``x_{j+1} = F_j(x_j) + r_{j+1}``, r ~ N(0, g^2 dt), is Gaussian given its past.
With any linear operators rho_j that do not depend on the states in between, and rho_0 = 0,

    q_{j+1} = r_{j+1} / (g^2 dt),    M_0 = 0,
    M_{j+1} = q_{j+1} + rho_j (M_j - J_j^T q_{j+1}),    J_j = dF_j/dx at x_j,

the target ``T_j = -M_j`` satisfies ``E[T_j | x_j] = grad log p_{t_j}(x_j)`` exactly for the chain.
In the continuum this is the Malliavin-Bismut form of Tweedie's formula (Mirafzali et al. 2025,
arXiv 2503.16917; Pidstrigach et al. 2025, arXiv 2504.03461).

A translation of the state at time t by eps moves every earlier state by ``phi(t') / phi(t) eps``,
phi = 0 at the start of the path. Any phi gives an unbiased target; the best has the least mean
square. A ramp is a linear operator ``rho(t0, t1, m)`` that multiplies a tree by
``phi(t0) / phi(t1)``; ``t0 < t1`` count from the start of the path.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.checks import check_holds, check_that, check_within, concrete, is_number
from smdp_jax.compiled import compiled
from smdp_jax.sde import SDE, Args, Scalar, State
from smdp_jax.solve.chain import ChainSplitting, chain_of
from smdp_jax.solve.integrate import advance
from smdp_jax.solve.linear import Transform, to_modes, to_state
from smdp_jax.solve.varying import varying_as

Ramp = Callable[[Any, Any, Any], Any]


class PowerRamp(eqx.Module):
    """Ramp ``phi = t^power`` over the whole history.

    Parameters
    ----------
    power : float
        Positive; 2 or 3 suit scalar problems. The larger, the less of the past is used.

    Raises
    ------
    ValueError
        If ``power`` is not positive.
    """

    power: float = eqx.field(static=True, default=2.0)

    def __check_init__(self) -> None:
        check_within("(0, inf)", owner=self, power=self.power)

    def __call__(self, t0: Scalar, t1: Scalar, m: State) -> State:
        """Multiply ``m`` by phi(t0) / phi(t1)."""
        ratio = (t0 / t1) ** self.power
        return jax.tree.map(lambda m: jnp.asarray(ratio, m.dtype) * m, m)


class SinhRamp(eqx.Module):
    """Ramp ``phi = sinh(rate t)``: the exact transition kernel of linear decay with that rate.

    Parameters
    ----------
    rate : pytree
        Decay rates in 1 / time, at least 0: scalars, or arrays of the (transformed) state's shape,
        in a tree like the state.
    transform : tuple of callables, optional
        ``(forward, backward)`` of a linear transform of the state in which ``rate`` is diagonal,
        for example ``(jnp.fft.rfft2, lambda y: jnp.fft.irfft2(y, (n, n)))`` on n x n points, where
        the way back must be told an odd n.

    Raises
    ------
    ValueError
        If a rate is negative.
    """

    rate: Any
    transform: Transform | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        for leaf in jax.tree.leaves(self.rate):
            number = is_number(leaf) or isinstance(leaf, (jax.Array, np.ndarray))
            worst = np.min(leaf) if number and concrete(leaf) else 0
            got = worst if number else repr(leaf)
            good = number and worst >= 0
            check_that(good, f"SinhRamp.rate must be numbers of at least 0, got {got}")

    def __call__(self, t0: Scalar, t1: Scalar, m: State) -> State:
        """Multiply ``m`` by phi(t0) / phi(t1)."""

        def scale(rate: Any, y: Any) -> Any:
            # sinh(rate t0) / sinh(rate t1) without overflow; t0 / t1 where the rate vanishes.
            rate = jnp.asarray(rate, jnp.result_type(t1))
            safe = jnp.maximum(rate, 1e-3 / t1)
            exact = jnp.expm1(-2 * safe * t0) / jnp.expm1(-2 * safe * t1)
            ratio = jnp.where(rate * t1 > 1e-3, jnp.exp(-safe * (t1 - t0)) * exact, t0 / t1)
            return ratio.astype(y.dtype) * y

        modes = to_modes(self.transform, m)
        return to_state(self.transform, jax.tree.map(scale, self.rate, modes))


class TableRamp(eqx.Module):
    """Ramp from values of ``log phi`` on a grid, interpolated linearly in ``log t``.

    Before the first time phi is the power of t that joins the first two values.

    Parameters
    ----------
    ts : array (times,)
        Positive, increasing times, counted from the start of the path; at least 2.
    log_phi : pytree
        Leaves (times,) or (times, *transformed state), in a tree like the state.
    transform : tuple of callables, optional
        ``(forward, backward)`` of the linear transform in which phi is diagonal.

    Raises
    ------
    ValueError
        If ``ts`` is not positive and increasing.
    """

    ts: Any
    log_phi: State
    transform: Transform | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        if not isinstance(self.ts, (jax.Array, np.ndarray)) or not concrete(self.ts):
            return
        times = np.asarray(self.ts)
        increasing = times.ndim == 1 and len(times) > 1 and (np.diff(times, prepend=0) > 0).all()
        check_that(increasing, "TableRamp.ts must be positive and increase", times)

    def __call__(self, t0: Scalar, t1: Scalar, m: State) -> State:
        """Multiply ``m`` by phi(t0) / phi(t1)."""
        log_ts = jnp.log(self.ts)

        def log_phi_at(table: Any, t: Scalar) -> Any:
            log_t = jnp.log(t)
            i = jnp.clip(jnp.searchsorted(log_ts, log_t) - 1, 0, log_ts.shape[0] - 2)
            slope = (table[i + 1] - table[i]) / (log_ts[i + 1] - log_ts[i]).astype(table.dtype)
            return table[i] + slope * (log_t - log_ts[i]).astype(table.dtype)

        def scale(table: Any, y: Any) -> Any:
            ratio = jnp.exp(log_phi_at(table, t0) - log_phi_at(table, t1))
            return jnp.where(t0 > 0, ratio, 0.0).astype(y.dtype) * y

        modes = to_modes(self.transform, m)
        return to_state(self.transform, jax.tree.map(scale, self.log_phi, modes))


class ScoreTargetSplitting(ChainSplitting):
    """The chain on the pair (state, M), accumulating the score target of the path."""

    rho: Any = None
    start: Any = 0.0

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any
    ) -> tuple:
        """Advance (state, M) from t0 to t1."""
        x, m = y0
        for move in self.moves(terms, t0, t1, x, args):
            moved, pull_back = jax.vjp(move.flow, x)
            (pulled,) = pull_back(varying_as(moved, move.score))
            past = jax.tree.map(jnp.subtract, m, pulled)
            past = self.rho(move.t0 - self.start, move.t1 - self.start, past)
            x = jax.tree.map(jnp.add, moved, move.kick)
            m = jax.tree.map(jnp.add, move.score, past)
        return (x, m), None, {}, None, diffrax.RESULTS.successful


class _PilotSplitting(ChainSplitting):
    """Advance a batch of (state, M) together with log phi, whose ratio is chosen move by move.

    E|M_{j+1}|^2 is least at rho = E<q, J^T q> / (E|M_j|^2 + E|J^T q|^2): q knows nothing of the
    past.
    """

    transform: Transform | None = eqx.field(static=True, default=None)
    start: Any = 0.0

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any
    ) -> tuple:
        """Advance the pilot batch from t0 to t1."""
        x, (m, log_phi) = y0

        def mean(values: Array) -> Array:
            return values.mean(axis=None if self.transform is None else 0)

        for move in self.moves(terms, t0, t1, x, args):
            follows = move.t0 > self.start
            moved, pull_back = jax.vjp(move.flow, x)
            (pulled,) = pull_back(varying_as(moved, move.score))
            forward = jax.vmap(partial(to_modes, self.transform))
            m_hat, q_hat, pulled_hat = map(forward, (m, move.score, pulled))

            def best(m: Array, q: Array, p: Array, follows: Any = follows) -> Array:
                overlap = mean((jnp.conj(q) * p).real)
                power = mean(jnp.abs(m) ** 2) + mean(jnp.abs(p) ** 2)
                ratio = jnp.clip(overlap / power, 1e-6, 1.0)
                return jnp.where(follows, ratio, 0.0)

            def grown(f: Array, r: Array, follows: Any = follows) -> Array:
                return jnp.where(follows, f - jnp.log(jnp.maximum(r, 1e-6)), f)

            rho = jax.tree.map(best, m_hat, q_hat, pulled_hat)
            less = lambda r, m, p: jnp.broadcast_to(r, m.shape).astype(m.dtype) * (m - p)
            past = jax.tree.map(less, rho, m_hat, pulled_hat)
            past = jax.vmap(partial(to_state, self.transform))(past)
            m = jax.tree.map(jnp.add, move.score, past)
            x = jax.tree.map(jnp.add, moved, move.kick)
            log_phi = jax.tree.map(grown, log_phi, rho)
        return (x, (m, log_phi)), None, {}, None, diffrax.RESULTS.successful


def least_variance_ramp(
    sde: SDE,
    x0: State,
    ts: Float[Array, "times"],
    *,
    key: PRNGKeyArray,
    args: Args = None,
    args_axes: int | None = None,
    solver: diffrax.AbstractSolver[Any] | None = None,
    substeps: int = 1,
    transform: Transform | None = None,
) -> Ramp:
    """Find the ramp of least mean square target from a pilot batch of paths.

    Every ramp that is independent of the paths it is used on gives unbiased targets, so a pilot
    with its own key decides how much of the past to use: at every step, per leaf of the state or,
    with ``transform``, per mode, the ratio that makes E|T|^2 least.

    Parameters
    ----------
    sde : SDE
        The process.
    x0 : pytree
        Initial states of the pilot; leaves (paths, *state); 64 to 256 paths suffice.
    ts : array (times,)
        Increasing times at which the ramp is tabulated; at least 3.
    key : PRNG key
        Noise of the pilot; not that of the paths to be used later.
    args, args_axes, solver, substeps
        As for ``simulate``.
    transform : tuple of callables, optional
        ``(forward, backward)`` of a linear transform of one state; the ramp is then found per
        transformed entry, for example per Fourier mode.

    Returns
    -------
    callable
        ``rho(t0, t1, m)`` for ``simulate(..., score_targets=rho)``.

    Raises
    ------
    ValueError
        If ``ts`` has fewer than 3 times.
    """
    check_holds("ts of a least_variance_ramp", len(ts), 3, "times")
    log_phi = _pilot(sde, x0, ts, key, args, args_axes, solver, substeps, transform)
    return TableRamp(ts[1:] - ts[0], log_phi, transform)


@compiled
def _pilot(
    sde: SDE,
    x0: State,
    ts: Array,
    key: PRNGKeyArray,
    args: Args,
    args_axes: int | None,
    solver: diffrax.AbstractSolver[Any] | None,
    substeps: int,
    transform: Transform | None,
) -> State:
    """Return log phi at ts[1:]."""
    flow, halves = chain_of(sde, solver)
    assert flow.step is not None
    batched_step = jax.vmap(flow.step, in_axes=(None, None, 0, args_axes))
    batch = SDE(step=batched_step, diffusion=sde.diffusion, interval=sde.interval)
    modes = jax.eval_shape(partial(to_modes, transform), jax.tree.map(lambda x: x[0], x0))
    log_phi = jax.tree.map(
        lambda m: jnp.zeros(() if transform is None else m.shape, jnp.finfo(m.dtype).dtype), modes
    )
    stepper = _PilotSplitting(sde.linear, halves, True, args_axes, transform, ts[0])
    y0 = (x0, (jax.tree.map(jnp.zeros_like, x0), log_phi))
    (_, (_, table)), _ = advance(
        batch, y0, ts, key=key, args=args, solver=stepper, substeps=substeps
    )
    return jax.tree.map(lambda f: f[1:], table)
