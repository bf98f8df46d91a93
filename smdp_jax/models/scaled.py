"""Known scale of a score, written into the output: s(t, x) = scale(t) · N(t, x, args)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from smdp_jax.models.layout import as_time, state_dtype


class Scaled(nn.Module):
    """Multiply a network by a known function of time.

    Scores grow without bound towards the time at which the noise sets in: from a point start like
    1 / (g sqrt(t)). A network that has to produce this itself fails between 0 and the first stored
    time, where solvers with inner stages evaluate it.

    Parameters
    ----------
    net : flax module
        Network of the same signature.
    scale : callable
        Function of a scalar t, returning a scalar or a pytree of scalars like the state. Good
        value: `lambda t: 1 / (g * jnp.sqrt(t + dt))`, dt the shortest step.

    References
    ----------
    Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
    section 5 (output scaling).
    """

    net: nn.Module
    scale: Callable[[Float[Array, ""]], Any]

    @nn.compact
    def __call__(self, t: ArrayLike, x: PyTree, args: Any) -> PyTree:
        """scale(t) · net(t, x, args).

        Parameters
        ----------
        t : float or scalar array
            Time, in the units of the process.
        x : pytree
            State, as `net` takes it.
        args : pytree
            Conditions, as `net` takes them.

        Returns
        -------
        pytree
            Same structure, shapes and dtypes as x.

        Raises
        ------
        ValueError
            If `scale` returns neither one scalar nor a tree of scalars like x.
        """
        score = self.net(t, x, args)
        scale = self.scale(as_time(t, state_dtype(x)))
        leaves, treedef = jax.tree.flatten(scale)
        if any(jnp.ndim(leaf) != 0 for leaf in leaves):
            shapes = jax.tree.map(jnp.shape, scale)
            raise ValueError(f"scale must return scalars, got shapes {shapes}")
        if treedef == jax.tree.structure(0.0):
            scale = jax.tree.map(lambda _: scale, x)
        elif treedef != jax.tree.structure(x):
            raise ValueError(f"scale has structure {treedef}, the state {jax.tree.structure(x)}")
        return jax.tree.map(lambda s, c: s * jnp.asarray(c, s.dtype), score, scale)
