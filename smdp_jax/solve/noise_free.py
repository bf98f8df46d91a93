"""The simulator without its noise, from a start to its end."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp

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
        drifts = self.solver is None and self.sde.step is None
        how = {"substeps": self.substeps, "rematerialise": True, "save": "last", "args": args}
        quiet, solver = replace(self.sde, diffusion=None), diffrax.Heun() if drifts else self.solver
        return advance(quiet, x, jnp.asarray(self.ts), solver=solver, **how)[0]
