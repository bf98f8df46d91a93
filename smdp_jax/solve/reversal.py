"""The time reversals of a process, and its probability flow (mathematics only)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from smdp_jax.checks import check_that, check_within
from smdp_jax.sde import SDE, Args, Diffusion, Scalar, ScoreFn, State, map_amplitudes


def reverse_sde(sde: SDE, score: ScoreFn, *, noise_level: float = 1.0) -> SDE:
    r"""Transform a process into its time reversal, to be integrated forward in ``tau = -t``.

    Every ``noise_level`` alpha gives a process with the same marginals p_t::

        dx = -[P - (1 + alpha^2)/2 g^2 s] dtau + alpha g dW,   s = grad_x log p_t

    alpha = 1 is the reverse-time SDE (Anderson 1982), whose paths from an observed end state
    sample the posterior of the past; alpha = 0 is the probability-flow ODE (Song et al. 2021,
    eq. 13). A flow map is walked back by ``sde.inverse``, with the score evaluated at the state the
    step starts from, and g where the forward step put its noise in (``SDE.noise_at``).

    Parameters
    ----------
    sde : SDE
        The forward process.
    score : callable
        ``score(t, x, args)``, the gradient of log p_t; same tree as ``x``, units 1 / state.
    noise_level : float
        alpha, between 0 and 1 (larger values are allowed).

    Returns
    -------
    SDE
        The reversed process in ``tau = -t``: its time grid is ``-ts[::-1]``.

    Raises
    ------
    ValueError
        If ``noise_level`` is negative or not finite, or if ``sde`` has no noise to reverse.
    """
    (level,) = check_within("[0, inf)", noise_level=noise_level)
    noisy = not sde.deterministic
    check_that(noisy, "reverse_sde needs a process with noise, got SDE.diffusion=None")
    weight = (1 + level**2) / 2
    reversed_diffusion = scaled_noise(sde.diffusion, level, -1)
    interval = (-sde.interval[1], -sde.interval[0])

    def score_term(g: State, t: Scalar, x: State, args: Args) -> State:
        return jax.tree.map(lambda g, s: weight * g * g * s, g, score(t, x, args))

    if sde.drift is not None:
        forward = sde.drift

        def drift(tau: Scalar, x: State, args: Args) -> State:
            p, s = forward(-tau, x, args), score_term(sde.g(-tau, x), -tau, x, args)
            return jax.tree.map(lambda p, s: s - p, p, s)

        return SDE(drift, diffusion=reversed_diffusion, interval=interval)

    walk_back = sde.inverse
    assert walk_back is not None

    def step(tau0: Scalar, tau1: Scalar, x: State, args: Args) -> State:
        g = sde.g_of_step(-tau1, -tau0, x)
        y, s = walk_back(-tau0, -tau1, x, args), score_term(g, -tau0, x, args)
        return jax.tree.map(lambda y, s: y + jnp.asarray(tau1 - tau0, s.dtype) * s, y, s)

    noise_at = "end" if sde.noise_at == "start" else "start"
    return SDE(step=step, diffusion=reversed_diffusion, interval=interval, noise_at=noise_at)


def probability_flow_sde(sde: SDE, score: ScoreFn) -> SDE:
    """Transform a process into its probability-flow ODE, to be integrated in ``tau = -t``.

    Solves ``dx = -[P - g^2 s / 2] dtau`` (Song et al. 2021, eq. 13): ``reverse_sde`` at noise
    level 0.

    Parameters
    ----------
    sde, score
        As for `reverse_sde`.

    Returns
    -------
    SDE
        A process without noise in ``tau = -t``.
    """
    return reverse_sde(sde, score, noise_level=0.0)


def forward_flow(sde: SDE, score: ScoreFn) -> SDE:
    """The probability flow in forward time, ``dx = [P - g^2 s / 2] dt``."""

    def half(g: State, t: Scalar, x: State, args: Args) -> State:
        return jax.tree.map(lambda g, s: 0.5 * g * g * s, g, score(t, x, args))

    if sde.drift is not None:
        physics = sde.drift

        def drift(t: Scalar, x: State, args: Args) -> State:
            return jax.tree.map(jnp.subtract, physics(t, x, args), half(sde.g(t, x), t, x, args))

        return SDE(drift, diffusion=None)
    walk = sde.step
    assert walk is not None

    def step(t0: Scalar, t1: Scalar, x: State, args: Args) -> State:
        y, s = walk(t0, t1, x, args), half(sde.g_of_step(t0, t1, x), t0, x, args)
        return jax.tree.map(lambda y, s: y - jnp.asarray(t1 - t0, s.dtype) * s, y, s)

    return SDE(step=step, diffusion=None)


def scaled_noise(diffusion: Diffusion, level: float, direction: int = 1) -> Diffusion:
    """``level g(direction t)``, None at level 0."""

    def scaled(g: Any) -> Any:
        if not callable(g):
            return level * g
        function: Callable = g
        return lambda t: level * function(direction * t)

    return map_amplitudes(scaled, diffusion) if level > 0 else None
