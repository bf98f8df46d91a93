"""The simulator from a start to its end, without its noise and with it."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from smdp_jax.sde import SDE, Args, State
from smdp_jax.solve.integrate import advance


@partial(
    jax.tree_util.register_dataclass, data_fields=["ts"], meta_fields=["sde", "solver", "substeps"]
)
@dataclass(frozen=True)
class NoiseFree:
    """From a start to its end without noise; equal to another simulation of the same parts."""

    sde: SDE
    ts: Any
    solver: diffrax.AbstractSolver[Any] | None
    substeps: int

    def __call__(self, x: State, args: Args) -> State:
        return self._end(replace(self.sde, diffusion=None), None, x, args)

    def noisy(self, key: PRNGKeyArray, x: State, args: Args) -> State:
        """Draw an end."""
        return self._end(self.sde, key, x, args)

    def _end(self, sde: SDE, key: Any, x: State, args: Args) -> State:
        drifts = self.solver is None and sde.step is None
        how = {"substeps": self.substeps, "rematerialise": True, "save": "last", "args": args}
        solver = diffrax.Heun() if drifts else self.solver
        return advance(sde, x, jnp.asarray(self.ts), key=key, solver=solver, **how)[0]
