r"""Regression: a network walks the paths back without noise or physics; and scores without physics.

The minimiser of ``E |f(t, x_{i+1}) - x_i|^2`` is ``E[x_i | x_{i+1}]``; walked step by step it
forgets what the posterior's spread is.
"""

from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from smdp_jax.baselines.parts import as_posterior, at_rest, check_asked
from smdp_jax.checks import check_kind, check_within
from smdp_jax.models import DilatedResNet
from smdp_jax.objectives import InverseStep
from smdp_jax.posterior.sampling import Posterior
from smdp_jax.scores.learned import apply_network
from smdp_jax.scores.step import LearnedStep, StepScale
from smdp_jax.sde import SDE, Args, Scalar, State
from smdp_jax.solve.terms import white_noise
from smdp_jax.trajectories import Trajectories


class DropoutResNet(DilatedResNet):
    """Dilated residual network whose channels are dropped after every block, whole fields at once.

    It drops where it is given random numbers, as `Regression` and `regress` do, and is the mean
    network otherwise.

    Parameters
    ----------
    channels, blocks, dilations, kernel, padding, embedding, rate
        As for ``DilatedResNet``; share of channels that are dropped. Good values: 0.1.
    dims, coordinates, time_features, conditions, dtype
        As for ``DilatedResNet``.

    References
    ----------
    Gal & Ghahramani (2016), "Dropout as a Bayesian Approximation"; Tompson et al. (2015).
    """

    rate: float = 0.1

    def _block(self, h: Array, embedding: Array | None) -> Array:
        """Add what a block finds, and drop channels."""
        h = super()._block(h, embedding)
        grid = tuple(range(h.ndim - 1))
        still = not self.has_rng("dropout")
        return nn.Dropout(self.rate, broadcast_dims=grid, deterministic=still)(h)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RegressedStep(LearnedStep):
    """A learned step back that sees the time it starts from.

    Parameters
    ----------
    model, variables, preconditioner
        As for ``LearnedStep``.
    mask : PRNG key, optional
        Which of a network with dropout; None: none is dropped.
    """

    mask: Any = None

    def __call__(self, start: Scalar, stop: Scalar, x: State, args: Args) -> State:
        """Walk one unbatched state from one time to another."""
        scale = self.preconditioner
        start = jnp.asarray(start, scale.dt.dtype)
        y = jax.tree.map(lambda x, m, s: (x - m) / s, x, scale.mean, scale.size)
        if self.mask is None:
            change = apply_network(self.model, self.variables, start, y, args)
        else:
            change = self.model.apply(self.variables, start, y, args, rngs={"dropout": self.mask})
        return jax.tree.map(lambda x, i, n: x + i * n, x, scale.increment, change)


@dataclass(frozen=True)
class Regression(InverseStep):
    """Autoregressive regression: the mean of the state before, given the state and the time.

    ``fit`` returns it as ``fit.step``; `regress` walks it back.

    Parameters
    ----------
    noise_free : bool
        As for ``InverseStep``.
    training_noise : float
        Standard deviation of noise added to the later state of each pair, in units of
        ``g sqrt(dt)``: makes it robust against its own errors. Good values: 0, 1.

    References
    ----------
    Sanchez-Gonzalez et al. (2020), "Learning to Simulate Complex Physics with Graph Networks".
    """

    training_noise: float = 0.0

    def __post_init__(self) -> None:
        check_within("[0, inf]", training_noise=self.training_noise)

    def check(self, sde: SDE, data: Trajectories) -> None:
        """Any paths: a step that sees the time takes uneven ones."""

    def learned(
        self, sde: SDE, model: Any, variables: Any, scales: StepScale, ts: Any
    ) -> RegressedStep:
        """A step that sees the time."""
        return RegressedStep(model, variables, scales)

    def loss(
        self, learned: LearnedStep, sde: SDE, window: Trajectories, constants: Any, key: Any
    ) -> Scalar:
        """As ``InverseStep``, from a later state that is perturbed."""
        key, mask = jax.random.split(key)
        learned = replace(learned, mask=mask)
        if self.training_noise == 0:
            return super().loss(learned, sde, window, constants, key)
        (t0, t1), later = window.ts, jax.tree.map(lambda x: x[1], window.xs)
        g, white = sde.g_of_step(t0, t1, later), white_noise(key, later)

        def perturb(x: Array, g: Any, w: Array) -> Array:
            return x.at[1].add((self.training_noise * g * jnp.sqrt(t1 - t0)).astype(x.dtype) * w)

        noisy = replace(window, xs=jax.tree.map(perturb, window.xs, g, white))
        return super().loss(learned, sde, noisy, constants, key)


def regress(
    sde: SDE,
    step: LearnedStep,
    x_end: State,
    ts: Float[Array, "times"],
    *,
    num_samples: int = 1,
    key: PRNGKeyArray | None = None,
    args: Args = None,
) -> Posterior:
    """Walk a learned step back from an end state.

    Parameters
    ----------
    sde : SDE
        The process.
    step : RegressedStep or LearnedStep
        ``fit.step`` of a fit with `Regression`.
    x_end, ts : pytree, array (times,)
        Observed state at ``ts[-1]``, unbatched; the times that it was trained on.
    num_samples, key, args
        More than one want a network with dropout, and a PRNG key, which draws one mask for each,
        kept along its path (None: nothing is dropped); conditions.

    Returns
    -------
    Posterior
        Without a key one sample, the conditional mean as far as it was learned.

    Raises
    ------
    ValueError, TypeError
        If the grid, the end state or the number do not fit; if ``step`` is no learned step.
    """
    check_asked(sde, x_end, ts, num_samples=num_samples)
    check_kind("step", step, "a learned step, fit.step", "preconditioner", "__call__")
    if key is None and num_samples > 1:
        raise ValueError(f"num_samples must be 1 without a key, got {num_samples}: all are equal")
    back = jnp.asarray(ts)[::-1]

    def walk(step: LearnedStep) -> State:
        def body(x: State, times: tuple) -> tuple[State, None]:
            start, stop = times
            return step(start, stop, x, args), None

        return jax.lax.scan(body, x_end, (back[:-1], back[1:]))[0]

    if key is None:
        samples = jax.tree.map(lambda v: v[None], walk(step))
    else:
        masks = jax.random.split(key, num_samples)
        samples = jax.vmap(lambda mask: walk(replace(step, mask=mask)))(masks)
    return as_posterior(samples, len(back) - 1, back[0])


def score_only(sde: SDE) -> SDE:
    """Leave the physics out of a process, to train and sample a score network alone.

    The backward step is then ``x + g^2 dt s``: what is learned as a "score" is
    ``grad log p - P / g^2``, the physics with it (Holzschuh et al. 2023, the ablation "s only").

    Parameters
    ----------
    sde : SDE
        The process that the paths follow.

    Returns
    -------
    SDE
        Without drift, with the same noise: for ``fit`` with window objectives on these paths, and
        for ``sample_posterior``.
    """
    return SDE(at_rest, diffusion=sde.diffusion)
