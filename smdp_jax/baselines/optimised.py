r"""Optimise the initial state through the simulator; and its honest relative, an ensemble of these.

    x0 = argmin |F(x0) - x_T|^2 / (2 r^2) - log p_0(x0)

by L-BFGS, F the simulation without noise and r the spread that the noise gives the end. Randomised
maximum likelihood perturbs the data and the prior's centre for every sample (Kitanidis 1986; Oliver
et al. 1996): exact where F is linear and all is Gaussian.
"""

from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.baselines.parts import as_posterior, by_leaf, check_asked, half_square
from smdp_jax.checks import check_key, check_samples
from smdp_jax.posterior.sampling import Posterior
from smdp_jax.sde import SDE, Args, State
from smdp_jax.solve.noise_free import NoiseFree
from smdp_jax.solve.terms import white_noise
from smdp_jax.trajectories import Trajectories


def end_spread(
    sde: SDE,
    data: Trajectories,
    *,
    solver: diffrax.AbstractSolver[Any] | None = None,
    substeps: int = 1,
) -> State:
    """Measure what the noise does to the end: root mean square of ``x_T - F(x_0)`` over paths.

    Parameters
    ----------
    sde, data : SDE, Trajectories
        The process, and simulated paths of it.
    solver, substeps
        Of the noise-free simulation F: default Heun for drifts, and steps per interval.

    Returns
    -------
    pytree
        One number per leaf, in units of the state.
    """
    end = NoiseFree(sde, data.ts, solver, substeps)
    starts, ends = (jax.tree.map(lambda x, i=i: x[:, i], data.xs) for i in (0, -1))
    found = jax.jit(jax.vmap(end, (0, data.args_axes)))(starts, data.args)
    return jax.tree.map(lambda a, b: jnp.sqrt(jnp.mean((a - b) ** 2)), found, ends)


def optimise_start(
    sde: SDE,
    x_end: State,
    ts: Float[Array, "times"],
    starts: State,
    *,
    spread: Any,
    prior_loss: Callable[[State], Any] | None = None,
    steps: int = 50,
    args: Args = None,
    solver: diffrax.AbstractSolver[Any] | None = None,
    substeps: int = 1,
) -> Posterior:
    """Find the start that explains an end state best, by L-BFGS from several first guesses.

    Parameters
    ----------
    sde : SDE
        The process; its simulation is differentiated.
    x_end, ts : pytree, array (times,)
        Observed state at ``ts[-1]``, unbatched; increasing times.
    starts, spread : pytree, number or pytree
        First guesses, leaves (starts, *state), such as draws of the prior; spread that the noise
        gives the end, in units of the state, see `end_spread`.
    prior_loss, steps : callable, optional, int
        Minus the log density of a start, up to a constant, None for a flat one; iterations of
        L-BFGS from every guess.
    args, solver, substeps
        Of the noise-free simulation: conditions, default Heun for drifts, steps per interval.

    Returns
    -------
    Posterior
        One sample, the best of all guesses: no spread is claimed.
    """
    check_samples(starts, "starts")
    check_asked(sde, x_end, ts, steps=steps, substeps=substeps)
    end = NoiseFree(sde, ts, solver, substeps)

    def loss(x: State) -> Array:
        total = half_square(jax.tree.map(jnp.subtract, end(x, args), x_end), spread)
        return total if prior_loss is None else total + prior_loss(x)

    found, losses = jax.jit(jax.vmap(lambda x: _lbfgs(loss, x, steps)))(starts)
    best = jnp.argmin(losses)
    sample = jax.tree.map(lambda x: x[best][None], found)
    return as_posterior(sample, steps * losses.shape[0], ts[-1])


def randomised_maximum_likelihood(
    sde: SDE,
    x_end: State,
    ts: Float[Array, "times"],
    draws: State,
    *,
    spread: Any,
    prior_distance: Callable[[State, State], Any],
    key: PRNGKeyArray,
    steps: int = 50,
    args: Args = None,
    solver: diffrax.AbstractSolver[Any] | None = None,
    substeps: int = 1,
) -> Posterior:
    """Sample starts by optimising each against perturbed data and a draw of the prior.

    Parameters
    ----------
    sde, x_end, ts
        As for `optimise_start`.
    draws, spread : pytree, number or pytree
        Draws of a Gaussian prior, leaves (num_samples, *state): centres, and first guesses; as for
        `optimise_start`.
    prior_distance, key : callable, PRNG key
        ``prior_distance(x, centre)``, the prior's ``|x - centre|^2 / 2`` in its own covariance;
        perturbs the data.
    steps, args, solver, substeps
        As for `optimise_start`; the iterations are those of every sample.

    Returns
    -------
    Posterior
        As many samples as draws.

    References
    ----------
    Oliver, He & Reynolds (1996), "Conditioning permeability fields to pressure data", ECMOR V.
    """
    count = check_samples(draws, "draws")
    check_key(key)
    check_asked(sde, x_end, ts, steps=steps, substeps=substeps)
    end = NoiseFree(sde, ts, solver, substeps)
    spread = by_leaf(spread, x_end)

    def one(centre: State, key: PRNGKeyArray) -> State:
        white = white_noise(key, x_end)
        noisy = jax.tree.map(lambda x, s, w: x + jnp.asarray(s, x.dtype) * w, x_end, spread, white)

        def loss(x: State) -> Array:
            miss = jax.tree.map(jnp.subtract, end(x, args), noisy)
            return half_square(miss, spread) + prior_distance(x, centre)

        return _lbfgs(loss, centre, steps)[0]

    samples = jax.jit(jax.vmap(one))(draws, jax.random.split(key, count))
    return as_posterior(samples, steps, ts[-1])


def _lbfgs(loss: Callable[[State], Array], x: State, steps: int) -> tuple[State, Array]:
    """Lowest point of some iterations, and its loss (inf where none was finite)."""
    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def body(carry: tuple, _: None) -> tuple[tuple, None]:
        x, state, best, least = carry
        with jax.numpy_dtype_promotion("standard"):
            value, grad = value_and_grad(x, state=state)
            updates, state = optimizer.update(grad, state, x, value=value, grad=grad, value_fn=loss)
            moved = optax.apply_updates(x, updates)
        best, least = _lower(x, jnp.asarray(value), best, least)
        return (moved, state, best, least), None

    first = (x, optimizer.init(x), x, jnp.array(jnp.inf, jax.eval_shape(loss, x).dtype))
    (x, _, best, least), _ = jax.lax.scan(body, first, length=steps)
    return _lower(x, loss(x), best, least)


def _lower(x: State, value: Array, best: State, least: Array) -> tuple[State, Array]:
    return jax.tree.map(lambda a, b: jnp.where(value < least, a, b), (x, value), (best, least))
