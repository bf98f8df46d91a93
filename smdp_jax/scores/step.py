r"""A learned step of the physics, for systems whose inverse no simulator can walk.

``x(t') = x(t) + (t' - t) / dt * increment * N((x - mean) / size)``, with a network N that does not
see the time and a signed step dt, negative for a step back: the surrogate of the inverse physics of
Holzschuh, Vegetti, Thuerey (2023), section 4.4.
"""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from smdp_jax.checks import check_that
from smdp_jax.scores.learned import apply_network
from smdp_jax.sde import Args, Scalar, State
from smdp_jax.trajectories import Trajectories


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepScale:
    """Sizes of states and of their change over one step back, one number per leaf."""

    dt: Any
    mean: Any
    size: Any
    increment: Any

    @classmethod
    def of(cls, data: Trajectories) -> "StepScale":
        """Measure them on trajectories."""
        dt = (data.ts[0] - data.ts[-1]) / (data.num_times - 1)
        mean, size, increment = _sizes(data.xs)
        return cls(dt, mean, size, increment)


_changes = jax.jit(lambda x: (x[:, 1:] != x[:, :1]).any())


@jax.jit
def _sizes(xs: State) -> tuple[State, State, State]:
    """Mean, spread and root mean square of the increments; no copy of more than two times."""

    def of(x: Array) -> tuple[Array, Array, Array]:
        steps = jnp.arange(x.shape[1])
        mean = jax.lax.map(lambda i: x[:, i].mean(), steps).mean()
        variance = jax.lax.map(lambda i: ((x[:, i] - mean) ** 2).mean(), steps).mean()
        square = jax.lax.map(lambda i: ((x[:, i + 1] - x[:, i]) ** 2).mean(), steps[:-1]).mean()
        return mean, jnp.sqrt(variance), jnp.sqrt(square)

    sizes = jax.tree.map(of, xs)
    return tuple(jax.tree.map(lambda x, s, i=i: s[i], xs, sizes) for i in range(3))


def check_steps(data: Trajectories) -> None:
    """A step that does not see the time needs evenly spaced times, and states that change."""
    steps = np.diff(np.asarray(data.ts))
    said = "a step that does not see the time must have evenly spaced ts, got steps of"
    even = steps.max() <= 1.001 * steps.min()
    check_that(even, f"{said} {steps.min():g} to {steps.max():g}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(data.xs):
        name = f"Trajectories.xs{jax.tree_util.keystr(path)}"
        check_that(_changes(leaf), f"{name} never changes: there is no step to learn")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LearnedStep:
    """A learned flow map, to be used as ``inverse`` (or ``step``) of an ``SDE``.

    Right for the step that it was trained with. A shorter one takes that share of the increment,
    and one in the other direction its negative, as ``negated`` does.

    Parameters
    ----------
    model : flax.linen.Module
        Network, called as ``model.apply(variables, 0, y, args)``.
    variables : pytree
        Its parameters.
    preconditioner : StepScale
        Scales of its input and output.
    """

    kind: ClassVar[str] = "step"
    what: ClassVar[str] = "a step of the physics: use fit.step"

    model: Any = field(metadata={"static": True})
    variables: Any
    preconditioner: StepScale

    def __call__(self, start: Scalar, stop: Scalar, x: State, args: Args) -> State:
        """Walk one unbatched state from one time to another."""
        scale = self.preconditioner
        y = jax.tree.map(lambda x, m, s: (x - m) / s, x, scale.mean, scale.size)
        change = apply_network(self.model, self.variables, jnp.zeros_like(scale.dt), y, args)
        start, stop = (jnp.asarray(t, scale.dt.dtype) for t in (start, stop))
        share = (stop - start) / scale.dt
        return jax.tree.map(
            lambda x, i, n: x + share.astype(x.dtype) * i * n, x, scale.increment, change
        )


def carrying(learned: Any, inverse: LearnedStep) -> Any:
    """A score or correction with the inverse beside its variables: it is right with no other."""
    kept = {"variables": inverse.variables, "scale": vars(inverse.preconditioner)}
    return replace(learned, variables={**learned.variables, "inverse": kept})


def carried_by(learned: Any, model: Any) -> LearnedStep:
    """The inverse that a score or correction carries, of this network."""
    kept = learned.variables["inverse"]
    return LearnedStep(model, kept["variables"], StepScale(**kept["scale"]))
