"""What an objective is: a loss on one window of one path."""

import math
from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from smdp_jax.sde import SDE, Scalar, State
from smdp_jax.trajectories import Trajectories

__all__ = ["Kind", "Objective", "mean_square"]

Kind = Literal["score", "correction", "step"]


@runtime_checkable
class Objective(Protocol):
    """A loss that training minimises over random windows of stored paths."""

    @property
    def windows(self) -> tuple[int, ...]:
        """Steps per window, in the order of training; 0 is a single state."""
        ...

    @property
    def first_time(self) -> int:
        """Least time index at which a window may start."""
        ...

    @property
    def noise_level(self) -> float:
        """The alpha of the backward step that it trains."""
        ...

    def kind(self, sde: SDE) -> Kind:
        """Tell what the minimiser is on this process.

        Parameters
        ----------
        sde : SDE
            The process.

        Returns
        -------
        "score", "correction" or "step"
            What is learned.
        """
        ...

    def prepare(self, sde: SDE, data: Trajectories) -> Any:
        """Check that the data suit, and compute constants of the loss.

        Parameters
        ----------
        sde : SDE
            The process.
        data : Trajectories
            Stored paths.

        Returns
        -------
        pytree
            Handed to ``loss``.
        """
        ...

    def loss(
        self, score: Any, sde: SDE, window: Trajectories, constants: Any, key: PRNGKeyArray
    ) -> Scalar:
        """Compute the loss of one window.

        Parameters
        ----------
        score : callable
            ``score(t, x, args)``; for an objective that learns a step, ``step(t1, t0, x, args)``.
        sde : SDE
            The process.
        window : Trajectories
            One window, without sample axis.
        constants : pytree
            From ``prepare``.
        key : PRNG key
            Randomness of the loss.

        Returns
        -------
        scalar
            The loss.
        """
        ...


def mean_square(
    tree: State, scale: State | None = None, transform: Callable[[Any], Any] | None = None
) -> Scalar:
    """Mean over all entries of a tree of |entry / scale|^2."""
    tree = tree if transform is None else transform(tree)
    if scale is not None:
        tree = jax.tree.map(lambda x, s: x / s.astype(x.dtype), tree, scale)
    sizes = [jnp.abs(x) for x in jax.tree.leaves(tree)]
    # Squares and sums of half precision overflow; leaves may differ in dtype.
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(jnp.float32, *sizes)
    total = sum(jnp.sum(size.astype(dtype) ** 2) for size in sizes)
    return total / sum(math.prod(size.shape) for size in sizes)
