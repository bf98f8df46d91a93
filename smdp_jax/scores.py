r"""The two kinds of learned term: a score, and a correction tied to one step.

A *score* is grad_x log p_t(x), independent of any step: every solver, likelihood and guidance may
use it. A *step correction* minimises a loss at one finite step of one inverse simulator: it has
absorbed the error of that step and is right only together with it.
"""

import warnings
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import ScopeParamNotFoundError, ScopeParamShapeError
from jaxtyping import Array

from smdp_jax._types import Args, Scalar, ScoreFn, State
from smdp_jax.checks import concrete
from smdp_jax.sde import SDE
from smdp_jax.trajectories import Trajectories

__all__ = ["LearnedScore", "Preconditioner", "StepCorrection", "apply_network", "check_score"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Preconditioner:
    """Score of a Gaussian with the data's mean and variance, plus a scaled network.

    ``s(t, x) = -(x - m) / C + N(t, (x - m) / c) / sigma`` with the mean m(t) of the data, C(t)
    their variance plus ``sigma^2 = int_0^t g^2`` (one number per leaf of the state), and c^2 the
    mean of C over the nodes. Without sigma^2 the sampling error of the variance, a share
    sqrt(2 / n) of n paths, would be that of the Gaussian's score; the network adds what is missing
    more easily than it mends what is noise. The network's output need not span the decades of the
    score, and far outside the data the score still grows linearly (Karras et al. 2022, section 5,
    do this for white noise on images). c does not depend on time: dividing by sqrt(C(t)) lets the
    network resolve, and so fit, the noise of late times.

    Parameters
    ----------
    ts : array (nodes,)
        Increasing times.
    mean, variance, noise : pytree
        m in units of the state, C and sigma^2 in squared units; leaves (nodes,).
    """

    ts: Any
    mean: Any
    variance: Any
    noise: Any

    @classmethod
    def of(cls, sde: SDE, data: Trajectories) -> "Preconditioner":
        """Take the moments of trajectories at up to 97 of their times, dense near the first.

        Parameters
        ----------
        sde : SDE
            The forward process.
        data : Trajectories
            Training paths.

        Returns
        -------
        Preconditioner
            Its tables.
        """
        last = data.num_times - 1
        geometric = np.geomspace(1, last + 1, 64) - 1
        nodes = np.concatenate([geometric, np.linspace(0, last, 32), [min(1, last)]])
        nodes = np.unique(np.round(nodes).astype(int))
        ts = data.ts[nodes]
        g = jax.vmap(lambda t: sde.g(t, data.at(0, 0)))(data.ts)

        def integral(g: Array) -> Array:
            pieces = 0.5 * (g[1:] ** 2 + g[:-1] ** 2) * jnp.diff(data.ts).astype(g.dtype)
            total = jnp.concatenate([pieces[:1], jnp.cumsum(pieces)])
            return total[nodes]

        def moments(x: Array) -> tuple[Array, Array]:
            x = jnp.moveaxis(x[:, nodes], 1, 0).reshape(len(nodes), -1)
            return x.mean(axis=1), x.var(axis=1)

        noise = jax.tree.map(integral, g)
        mean = jax.tree.map(lambda x: moments(x)[0], data.xs)
        variance = jax.tree.map(lambda x, n: moments(x)[1] + n, data.xs, noise)
        return cls(ts, mean, variance, noise)

    def __call__(self, network: ScoreFn, t: Scalar, x: State, args: Args) -> State:
        """Evaluate the preconditioned score.

        Parameters
        ----------
        network : callable
            ``N(t, y, args)``.
        t : scalar
            Time; the tables hold their end values outside their range.
        x : pytree
            One unbatched state.
        args : pytree
            Conditions.

        Returns
        -------
        pytree
            The score, like ``x``.
        """
        i = jnp.clip(jnp.searchsorted(self.ts, t, method="compare_all"), 1, self.ts.shape[0] - 1)
        weight = jnp.clip((t - self.ts[i - 1]) / (self.ts[i] - self.ts[i - 1]), 0, 1)

        def at(table: Array) -> Array:
            return table[i - 1] + weight.astype(table.dtype) * (table[i] - table[i - 1])

        mean, variance, noise = jax.tree.map(at, (self.mean, self.variance, self.noise))
        centred = jax.tree.map(jnp.subtract, x, mean)
        y = jax.tree.map(lambda z, c: z / jnp.sqrt(c.mean()), centred, self.variance)
        out = network(t, y, args)
        return jax.tree.map(
            lambda z, c, o, n: o / jnp.sqrt(n) - z / c, centred, variance, out, noise
        )


def apply_network(model: Any, variables: Any, t: Scalar, x: State, args: Args) -> State:
    """Evaluate a network, with a message of our own where its parameters do not fit.

    Parameters
    ----------
    model : flax.linen.Module
        The network.
    variables : pytree
        Its parameters.
    t : scalar
        Time.
    x : pytree
        One unbatched state.
    args : pytree
        Conditions.

    Returns
    -------
    pytree
        Like ``x``.

    Raises
    ------
    ValueError
        If the parameters are those of another network, or for states or conditions of other shapes.
    """
    try:
        return model.apply(variables, t, x, args)
    except (ScopeParamShapeError, ScopeParamNotFoundError) as error:
        shapes = jax.tree.map(jnp.shape, (x, args))
        raise ValueError(
            f"the parameters of {type(model).__name__} are those of another network, or of a state "
            f"and args of other shapes than {shapes[0]} and {shapes[1]}; several states need "
            f"batch_axes or jax.vmap ({error})"
        ) from error


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Learned:
    model: Any = field(metadata={"static": True})
    variables: Any
    preconditioner: Any = None

    def __call__(self, t: Scalar, x: State, args: Args) -> State:
        """Evaluate at one time and one unbatched state."""

        def network(t: Scalar, x: State, args: Args) -> State:
            return apply_network(self.model, self.variables, t, x, args)

        if self.preconditioner is None:
            return network(t, x, args)
        want, got = jax.tree.structure(self.preconditioner.mean), jax.tree.structure(x)
        if want != got:
            raise ValueError(f"the network was trained on states of the tree {want}, got {got}")
        return self.preconditioner(network, jnp.asarray(t), x, args)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LearnedScore(_Learned):
    """A learned ``score(t, x, args)`` at true scale.

    Parameters
    ----------
    model : flax.linen.Module
        Network, called as ``model.apply(variables, t, x, args)``.
    variables : pytree
        Its parameters.
    preconditioner : Preconditioner, optional
        Scales inputs and output; None: the network is the score.
    """


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepCorrection(_Learned):
    """A learned correction ``c(t, x, args)``, right only for the step it was trained with.

    One backward step is ``inverse(x) + (1 + alpha^2)/2 dt g^2 c``.

    Parameters
    ----------
    model, variables, preconditioner
        As for ``LearnedScore``.
    ts : array (times,)
        The time grid whose steps it belongs to.
    noise_level : float
        The alpha it was trained at.
    """

    ts: Any = field(kw_only=True)
    noise_level: float = field(kw_only=True, metadata={"static": True})


def check_score(score: ScoreFn, sde: SDE, ts: Any, noise_level: float, use: str) -> None:
    """Refuse a step correction where it is none, and warn of a score at times it has not seen.

    Parameters
    ----------
    score : callable
        A score or a ``StepCorrection``.
    sde : SDE
        The forward process.
    ts : array (times,)
        The grid it is to be used on.
    noise_level : float
        The alpha it is to be used at.
    use : str
        What it is used for, for the message.

    Raises
    ------
    ValueError
        If ``score`` is a ``StepCorrection`` and the steps, the noise level, or the kind of
        process differ from those of its training.

    Warns
    -----
    UserWarning
        If times lie outside those that a learned score was trained on.
    """
    if isinstance(score, LearnedScore) and score.preconditioner is not None:
        _warn_of_times(score.preconditioner.ts, ts, use)
    if not isinstance(score, StepCorrection):
        return
    if sde.step is None:
        raise ValueError(f"{use} on a drift needs a score, got a StepCorrection of a flow map")
    if noise_level != score.noise_level:
        raise ValueError(
            f"{use} at noise level {noise_level:g} needs a score; this StepCorrection was trained "
            f"at noise level {score.noise_level:g}. PathScore() learns a score for any level"
        )
    if not concrete(ts, score.ts):
        return
    own, asked = np.asarray(score.ts), np.asarray(ts)
    nearest = np.abs(asked[:, None] - own[None]).argmin(axis=1)
    tolerance = 1e-3 * np.diff(own).min()
    same = np.abs(own[nearest] - asked).max() <= tolerance and (np.diff(nearest) == 1).all()
    if not same:
        raise ValueError(
            f"{use} needs the steps that this StepCorrection was trained on ({len(own) - 1} steps "
            f"of {np.diff(own).min():g} to {np.diff(own).max():g} in [{own[0]:g}, {own[-1]:g}]), "
            f"got {len(asked) - 1} steps in [{asked[0]:g}, {asked[-1]:g}]. PathScore() learns a "
            "score for any steps"
        )


def _warn_of_times(own: Any, ts: Any, use: str) -> None:
    if not concrete(own, ts):
        return
    own, asked = np.asarray(own), np.asarray(ts)
    slack = 1e-3 * (own[-1] - own[0])
    if asked[0] < own[0] - slack or asked[-1] > own[-1] + slack:
        warnings.warn(
            f"{use} in [{asked[0]:g}, {asked[-1]:g}] goes beyond the times [{own[0]:g}, "
            f"{own[-1]:g}] that the score was trained on: it extrapolates there",
            stacklevel=4,
        )
