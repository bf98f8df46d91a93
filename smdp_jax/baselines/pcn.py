r"""Reference posterior by brute force: preconditioned Crank-Nicolson over start and noise path.

The start ``x_0 = start_of(z)`` and the chain ``x_{j+1} = F_j(x_j) + q_j xi_j`` are functions of
standard normal numbers u = (z, xi); the last step is the likelihood, N(x_T; F(x_{M-1}), q^2):

    -log p(u | x_T) = |u|^2 / 2 + |q^{-1} (x_T - F(x_{M-1}))|^2 / 2 = |r(u)|^2 / 2

Proposals ``u' = m + sqrt(1 - beta^2) (u - m) + beta L z`` keep a Gaussian reference N(m, L L^T)
(Cotter et al. 2013; Pinski et al. 2015, for references other than the prior), so what is accepted
depends on how far the posterior is from it, not on how many numbers there are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import optimistix
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.baselines.parts import check_asked
from smdp_jax.checks import check_holds, check_key, check_positive
from smdp_jax.sde import SDE, Args, State
from smdp_jax.solve.noise_free import NoiseFree

Residuals = Callable[[Any], Any]
Noise = tuple[Callable[[Any, Any, Any], Any], Callable[[Any, Any, Any], Any]]

_WANTED = 0.4  # share of accepted proposals that the step size is tuned for


class Chains(NamedTuple):
    """Draws of several chains.

    Parameters
    ----------
    draws : array (chains, draws, observed)
        What was observed of u, after warm-up.
    accepted, beta, r_hat : array (chains,), array (chains,), array (observed,)
        Share of accepted proposals after warm-up; step sizes; see `r_hat`.
    """

    draws: Array
    accepted: Array
    beta: Array
    r_hat: Array


def bridge_residuals(
    sde: SDE,
    start_of: Callable[[Any], State],
    x_end: State,
    ts: Float[Array, "times"],
    *,
    size: int,
    noise: Noise | None = None,
    args: Args = None,
    substeps: int = 1,
) -> tuple[Residuals, int]:
    """Write the posterior of start and noise path given the end state as a sum of squares.

    Parameters
    ----------
    sde, start_of : SDE, callable
        The process, simulated without noise between two times; maps ``size`` standard normal
        numbers to a start: the prior.
    x_end, ts : pytree, array (times,)
        Observed state at ``ts[-1]``, unbatched; increasing times at which noise comes in: few, as
        the path has an entry for each.
    size : int
        Numbers that ``start_of`` takes.
    noise : tuple of two callables, optional
        ``apply(t0, t1, z)``, the noise of a step as a linear map of standard normal numbers like
        the state, and ``whiten(t0, t1, d)``, its inverse. Default ``g sqrt(t1 - t0)``.
    args, substeps
        Conditions, and solver steps of the simulation between two times.

    Returns
    -------
    tuple (callable, int)
        ``residuals(u)`` with ``|r|^2 / 2`` the negative log posterior up to a constant, and the
        number of entries of u, the start's first.
    """
    check_asked(sde, x_end, ts, size=size, substeps=substeps)
    like, unravel = ravel_pytree(x_end)
    ts = jnp.asarray(ts)
    inner = len(ts) - 2

    def scale(t0: Any, t1: Any, d: State, power: int) -> State:
        of_leaf = lambda d, g: d * ((g**2 * (t1 - t0)) ** (power / 2)).astype(d.dtype)
        return jax.tree.map(of_leaf, d, sde.g_of_step(t0, t1, x_end))

    if noise is None:
        noise = (lambda t0, t1, z: scale(t0, t1, z, 1), lambda t0, t1, d: scale(t0, t1, d, -1))
    apply, whiten = noise

    def step(t0: Any, t1: Any, x: State) -> State:
        # Forward derivatives, which Levenberg-Marquardt takes, want the loop of lax.
        solver = diffrax.Heun(scan_kind="lax") if sde.step is None else None
        return NoiseFree(sde, jnp.stack([t0, t1]), solver, substeps)(x, args)

    def residuals(u: Array) -> Array:
        x = start_of(u[:size])

        def body(x: State, inputs: tuple) -> tuple[State, None]:
            t0, t1, xi = inputs
            moved = step(t0, t1, x)
            return jax.tree.map(jnp.add, moved, apply(t0, t1, unravel(xi))), None

        xi = u[size:].reshape(inner, like.size)
        x, _ = jax.lax.scan(body, x, (ts[:-2], ts[1:-1], xi))
        miss = jax.tree.map(jnp.subtract, x_end, step(ts[-2], ts[-1], x))
        return jnp.concatenate([u, ravel_pytree(whiten(ts[-2], ts[-1], miss))[0]])

    return residuals, size + inner * like.size


def gauss_newton_reference(
    residuals: Residuals, start: Float[Array, "entries"], *, steps: int = 64
) -> tuple[Array, Array]:
    """Fit the Gaussian of a least-squares posterior: its mode, and (J^T J)^{-1} there.

    Parameters
    ----------
    residuals : callable
        ``r(u)``, as from `bridge_residuals`.
    start, steps : array (entries,), int
        Where Levenberg-Marquardt starts, 0 is the prior's centre; most iterations.

    Returns
    -------
    tuple (array, array)
        Mean (entries,) and factor L (entries, entries) of the covariance ``L L^T``.
    """
    solver = optimistix.LevenbergMarquardt(rtol=1e-5, atol=1e-5)

    @jax.jit
    def fit(start: Array) -> tuple[Array, Array]:
        squares = lambda u, _: residuals(u)
        how = {"max_steps": steps, "throw": False}
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            found = optimistix.least_squares(squares, solver, start, **how)
        jacobian = jax.jacfwd(residuals)(found.value)
        root = jnp.linalg.cholesky(jacobian.T @ jacobian)
        identity = jnp.eye(start.size, dtype=start.dtype)
        return found.value, jax.scipy.linalg.solve_triangular(root, identity, lower=True).T

    return fit(start)


def pcn(
    residuals: Residuals,
    mean: Float[Array, "entries"],
    factor: Float[Array, "entries entries"],
    *,
    key: PRNGKeyArray,
    steps: int,
    warmup: int,
    chains: int = 4,
    thin: int = 1,
    observed: int | None = None,
) -> Chains:
    """Sample a least-squares posterior by preconditioned Crank-Nicolson chains.

    Chains start at draws of the reference, twice as wide; their step size is tuned in warm-up.

    Parameters
    ----------
    residuals : callable
        ``r(u)``, as from `bridge_residuals`.
    mean, factor : array (entries,), (entries, entries)
        Of the Gaussian reference: mean, and L of its covariance ``L L^T``.
    key, steps, warmup
        Randomness; proposals of every chain after warm-up, and before.
    chains, thin, observed : int
        Chains, at least 2, so that they can disagree; keep one draw in that many, and the first
        that many entries of u, default all.

    Returns
    -------
    Chains
        Draws, and whether to believe them: R-hat above 1.01 says to run longer.
    """
    check_positive(thin=thin, warmup=warmup)
    check_positive(least=2, chains=chains)
    check_positive(least=4 * thin, steps=steps)
    check_key(key)
    chain = _Chain(residuals, mean, factor)
    keys = jax.random.split(key, chains)
    run = jax.jit(jax.vmap(lambda key: chain.run(key, steps // thin, thin, warmup, observed)))
    draws, accepted, beta = run(keys)
    return Chains(draws, accepted, beta, r_hat(draws))


class _Chain(NamedTuple):
    """One chain in v, u = mean + factor v; a state is v, its energy, and the log step size."""

    residuals: Residuals
    mean: Array
    factor: Array

    def energy(self, v: Array) -> Array:
        """What the posterior adds to the reference's ``|v|^2 / 2``."""
        r = self.residuals(self.mean + self.factor @ v)
        return (jnp.sum(r**2) - jnp.sum(v**2)) / 2

    def move(self, state: tuple, key: Any) -> tuple[tuple, Array]:
        v, at, log_beta = state
        k_move, k_accept = jax.random.split(key)
        beta = jnp.exp(log_beta)
        moved = jnp.sqrt(1 - beta**2) * v + beta * jax.random.normal(k_move, v.shape, v.dtype)
        there = self.energy(moved)
        # NaN compares false: a simulation that blows up is never accepted.
        accept = jnp.log(jax.random.uniform(k_accept, (), v.dtype)) < at - there
        return (jnp.where(accept, moved, v), jnp.where(accept, there, at), log_beta), accept

    def tune(self, state: tuple, inputs: tuple) -> tuple[tuple, None]:
        i, key = inputs
        (v, at, log_beta), accept = self.move(state, key)
        rate = (accept.astype(v.dtype) - _WANTED) / jnp.sqrt(i.astype(v.dtype) + 1)
        return (v, at, jnp.minimum(log_beta + rate, -1e-3)), None

    def run(
        self, key: PRNGKeyArray, draws: int, thin: int, warmup: int, observed: int | None
    ) -> tuple[Array, Array, Array]:
        """Draws after warm-up, the share of accepted proposals, and the step size."""
        k_start, k_tune, k_run = jax.random.split(key, 3)
        v = 2 * jax.random.normal(k_start, self.mean.shape, self.mean.dtype)
        state = (v, self.energy(v), jnp.array(-1.0, v.dtype))
        tuned = (jnp.arange(warmup), jax.random.split(k_tune, warmup))
        state, _ = jax.lax.scan(self.tune, state, tuned)

        def some(state: tuple, keys: Array) -> tuple[tuple, tuple]:
            state, accepted = jax.lax.scan(self.move, state, keys)
            draw = (self.mean + self.factor @ state[0])[:observed]
            return state, (draw, jnp.mean(accepted, dtype=v.dtype))

        keys = jax.random.split(k_run, (draws, thin))
        state, (found, accepted) = jax.lax.scan(some, state, keys)
        return found, jnp.mean(accepted), jnp.exp(state[2])


def r_hat(draws: Float[Array, "chains draws entries"]) -> Float[Array, "entries"]:
    """Potential scale reduction of chains, each split in two: 1 where they agree.

    Parameters
    ----------
    draws : array (chains, draws, entries)
        At least 4 draws.

    Returns
    -------
    array (entries,)
        ``sqrt((W (n - 1) / n + B / n) / W)`` of within- and between-chain variances W and B.

    Raises
    ------
    ValueError
        If there are fewer than 4 draws.

    References
    ----------
    Gelman et al. (2013), "Bayesian Data Analysis", 3rd edition, eq. 11.4.
    """
    chains, count, entries = draws.shape
    check_holds("draws", count, 4, "of each chain")
    half = count // 2
    halves = draws[:, : 2 * half].reshape(2 * chains, half, entries)
    within = jnp.mean(jnp.var(halves, axis=1, ddof=1), axis=0)
    between = jnp.var(jnp.mean(halves, axis=1), axis=0, ddof=1)
    return jnp.sqrt((half - 1) / half + between / within)
