"""Multilayer perceptron over the whole state: s(t, x) = W · h(x, features(t), conditions)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import ArrayLike

from smdp_jax.models.layers import dense, elu
from smdp_jax.models.layout import Conditions, everything, from_vector, to_vector, working_dtype
from smdp_jax.models.time_features import TimeFeatures, time_vector
from smdp_jax.sde import State


class MLP(nn.Module):
    """Dense layers with ELU between, from (x, time features, conditions) to a tree like x.

    The network of the paper's scalar experiment: for a state of one number and no conditions the
    default has 2536 parameters. For states up to some hundred numbers; fields want `UNet`.

    The last layer starts at zero, so that an untrained score is 0: an unrolled backward path then
    starts as the inverse physics alone, and a random network times g² dt kicks no path about.

    Parameters
    ----------
    widths : sequence of int
        Sizes of the hidden layers: the default for one number, (128, 128, 128) for tens.
    time_features : str or callable
        What is seen of time: "log" (default: log(t + 1e-5), one input), "raw", "log_fourier", a
        `Fourier(...)`, or a function of t.
    conditions : callable
        Which part of `args` is seen, by default all; its leaves are ravelled and concatenated to
        the input. `lambda args: None` hides it.

    References
    ----------
    Holzschuh, Vegetti, Thuerey, "Solving Inverse Physics Problems with Score Matching", 2023.
    """

    takes_trees: ClassVar[bool] = True
    # An update of a kernel by default: an entry costs less than that of a convolution.
    batch_entries: ClassVar[int] = 16384

    widths: Sequence[int] = (30, 30, 25, 20, 10)
    time_features: TimeFeatures = "log"
    conditions: Conditions = everything

    @nn.compact
    def __call__(self, t: ArrayLike, x: State, args: Any) -> State:
        """Score at one time and state."""
        dtype = working_dtype(x)
        state = to_vector(x, dtype)
        seen = to_vector(self.conditions(args), dtype)
        h = jnp.concatenate([state, time_vector(self.time_features, t, dtype), seen])
        for width in self.widths:
            h = elu(dense(width, dtype)(h))
        return from_vector(dense(state.size, dtype, zero_init=True)(h), x)
