"""A network in the units of the data on one side, and of what it returns on the other."""

from typing import Any

import flax.linen as nn
import jax


class Rescaled(nn.Module):
    """A network that sees fields of size 1, and whose output is divided by one number.

    ``net(t, x / sizes, args) / divisor``. With the divisor g sqrt(dt) a correction is told in
    units of a step's noise: the loss of a window is 1 where the miss is the noise, and neither
    explodes nor starves.

    Parameters
    ----------
    net, sizes, divisor : flax.linen.Module, tuple of float, float
        Network, called as ``net(t, x, args)``; one positive number for each leaf of the state, in
        its unit; another.
    """

    net: nn.Module
    sizes: tuple[float, ...]
    divisor: float

    def __call__(self, t: Any, x: Any, args: Any) -> Any:
        """Evaluate at one time and one unbatched state."""
        leaves, tree = jax.tree.flatten(x)
        scaled = [leaf / size for leaf, size in zip(leaves, self.sizes, strict=True)]
        out = self.net(t, jax.tree.unflatten(tree, scaled), args)
        return jax.tree.map(lambda n: n / self.divisor, out)
