"""What ``fit`` checks of its arguments before anything is computed."""

from typing import Any

import jax
import jax.numpy as jnp

from smdp_jax.arguments import check_kind
from smdp_jax.checks import check_process, check_time_grid
from smdp_jax.objectives import Objective
from smdp_jax.sde import SDE
from smdp_jax.trajectories import Trajectories

__all__ = ["check_data", "check_kinds", "check_validation"]


def check_kinds(
    model: Any, data: Any, objective: Any, optimizer: Any, validation: Any, initial: Any
) -> None:
    """Refuse arguments of another kind than ``fit`` takes.

    Parameters
    ----------
    model, data, objective, optimizer, validation, initial
        As the user gave them; the last two may be None.

    Raises
    ------
    TypeError
        Naming the first that is of another kind.
    """
    paths = "Trajectories(ts, xs)"
    check_kind("model", model, "a flax.linen.Module, such as models.MLP()", "init", "apply")
    if not hasattr(data, "blocks"):
        check_kind("data", data, f"{paths} or what datasets.open_stream returns", "ts", "xs")
    check_kind("objective", objective, "an objective, such as MultiStep()", "prepare", "loss")
    check_kind("optimizer", optimizer, "of optax, such as optax.adam(1e-3)", "init", "update")
    if validation is not None:
        check_kind("validation", validation, paths, "ts", "xs")
    if initial is not None:
        check_kind("initial", initial, "fit.learned of another fit", "variables", "preconditioner")


def check_data(sde: SDE, data: Trajectories, ema: float) -> None:
    """Check paths against the process that they are said to come from.

    Parameters
    ----------
    sde : SDE
        The process.
    data : Trajectories
        Stored paths.
    ema : float
        Decay of the moving average.

    Raises
    ------
    ValueError
        If one of them does not fit (see the message).
    """
    check_time_grid(data.ts, sde)
    data.check()
    maps = ("drift", "step", "inverse")
    check_process(sde, data.ts, data.at(0, -1), data.args_of(0), maps=maps)
    if not 0 <= ema < 1:
        raise ValueError(f"ema must be in [0, 1), got {ema}")


def check_validation(
    sde: SDE, objective: Objective, data: Trajectories, validation: Trajectories
) -> None:
    """Check that held-out paths are like those to learn from.

    Parameters
    ----------
    sde : SDE
        The process.
    objective : Objective
        The loss.
    data, validation : Trajectories
        Paths to learn from, and held-out ones.

    Raises
    ------
    ValueError
        If times, states or conditions differ, or what the objective needs is missing.
    """
    validation.check()
    objective.prepare(sde, validation)
    if validation.ts.shape != data.ts.shape or not bool(jnp.array_equal(validation.ts, data.ts)):
        raise ValueError(
            "validation needs the times of the data: "
            f"{data.num_times} in [{float(data.ts[0]):g}, {float(data.ts[-1]):g}], got "
            f"{validation.num_times} in [{float(validation.ts[0]):g}, {float(validation.ts[-1]):g}]"
        )
    want, got = (
        jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", (d.at(0, 0), d.args_of(0)))
        for d in (data, validation)
    )
    if want != got:
        raise ValueError(f"validation needs states and args like the data's {want}, got {got}")
