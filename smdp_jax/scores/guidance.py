"""Baselines: guidance of the reverse-time SDE by what was seen, score in, score out, no weights.

They approximate the likelihood of what was seen given the state at t and have nothing that takes
the approximation back, so their spread is wrong even where all is linear; ``condition`` is exact.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from smdp_jax.scores.twist import LinearTwist
from smdp_jax.sde import SDE, Args, Scalar, ScoreFn, State
from smdp_jax.solve.integrate import advance


def _stacked(observations: Sequence[Any], like: State) -> tuple[Any, Any, Any]:
    """Values, noise and times of all sensors."""
    flat, _ = ravel_pytree(like)
    values = jnp.concatenate([o.read(flat.dtype) for o in observations])
    noise = jax.scipy.linalg.block_diag(*(o.noise(flat.dtype) for o in observations))
    times = [jnp.full(len(o.read(flat.dtype)), o.time, flat.dtype) for o in observations]
    return values, noise, jnp.concatenate(times)


def moment_matched_guidance(
    score: ScoreFn, observations: Sequence[Any], twist: LinearTwist
) -> ScoreFn:
    """Baseline: add the gradient of the linear-Gaussian likelihood of what is left to be seen.

    ``s + grad log N(y; B_t x + c_t, R + C_t)`` with the regression of a ``LinearTwist``, for the
    sensors before t (as Song et al. 2023, Pseudoinverse-Guided Diffusion Models, do at time 0).

    Parameters
    ----------
    score, observations, twist
        ``score(t, x, args)``; what was seen (``LinearObservation``), and a twist learned from it.

    Returns
    -------
    callable
        ``score(t, x, args)``, for ``sample_posterior``.
    """

    def guided(t: Scalar, x: State, args: Args) -> State:
        flat, unravel = ravel_pytree(x)
        values, noise, times = _stacked(observations, x)
        gain, offset, residual = twist.at(t)
        on = (times < t).astype(flat.dtype)
        total = noise + on[:, None] * on[None, :] * residual
        miss = on * (values - offset - gain @ flat)
        push = (on[:, None] * gain).T @ jnp.linalg.solve(total, miss)
        return jax.tree.map(jnp.add, score(t, x, args), unravel(push))

    return guided


def dps_guidance(
    sde: SDE,
    score: ScoreFn,
    observations: Sequence[Any],
    *,
    start: float = 0.0,
    scale: float = 1.0,
    steps: int = 32,
) -> ScoreFn:
    """Baseline: diffusion posterior sampling, with the simulator between a guess and the sensors.

    ``s + scale grad log N(y_k; A_k F(x_0(t, x)), R_k)``: the state at ``start`` is guessed in one
    backward step from t, ``x - (t - start) (P - g^2 s)`` (Tweedie's formula), and simulated
    without noise to each sensor's time (Chung et al. 2023, eq. 16).

    Parameters
    ----------
    sde, score, observations
        Forward process, ``score(t, x, args)``, and what was seen (``LinearObservation``).
    start, scale : float
        First time of the solve; strength of the guidance.
    steps : int
        Euler steps of a drift's simulation to each observation.

    Returns
    -------
    callable
        ``score(t, x, args)``, for ``sample_posterior``.
    """
    grid = 1 if sde.step is not None else steps

    def walk(x: State, stop: float, args: Args) -> State:
        ts = jnp.linspace(start, stop, grid + 1)
        return advance(replace(sde, diffusion=None), x, ts, args=args, save="last")[0]

    def log_likelihood(x: State, t: Scalar, args: Args) -> tuple[Any, State]:
        s, span = score(t, x, args), t - start
        lift = jax.tree.map(lambda g, s: span.astype(s.dtype) * g * g * s, sde.g(t, x), s)
        if sde.inverse is not None:
            back = sde.inverse(t, jnp.asarray(start), x, args)
        else:
            assert sde.drift is not None
            back = jax.tree.map(lambda x, p: x - span.astype(x.dtype) * p, x, sde.drift(t, x, args))
        guess = jax.tree.map(jnp.add, back, lift)
        total = jnp.zeros((), ravel_pytree(x)[0].dtype)
        for o in observations:
            miss = o.read(total.dtype) - o.matrix(x) @ ravel_pytree(walk(guess, o.time, args))[0]
            total = total - 0.5 * miss @ jnp.linalg.solve(o.noise(total.dtype), miss)
        return total, s

    def guided(t: Scalar, x: State, args: Args) -> State:
        push, s = jax.grad(log_likelihood, has_aux=True)(x, jnp.asarray(t), args)
        return jax.tree.map(lambda s, p: s + jnp.asarray(scale, s.dtype) * p, s, push)

    return guided
