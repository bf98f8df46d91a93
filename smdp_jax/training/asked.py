"""What was asked of ``fit``, looked at before anything is written or computed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from smdp_jax.checks import (
    check_alike,
    check_flags,
    check_key,
    check_kind,
    check_positive,
    check_within,
)
from smdp_jax.sde import SDE
from smdp_jax.solve.process import check_process, check_time_grid
from smdp_jax.training.inverses import with_best_inverse
from smdp_jax.trajectories import filled, whole_windows


class Asked(NamedTuple):
    """What was asked of ``fit``."""

    sde: SDE
    model: Any
    data: Any
    objective: Any
    optimizer: Any
    key: Any
    validation: Any
    initial: Any
    callback: Any
    steps: int
    batch_size: int
    epoch_steps: int
    ema: float
    checkpoint_seconds: float
    precondition: bool
    progress: bool


def check_fit(asked: Asked) -> tuple[Asked, Callable[[Any], None]]:
    """Check ``fit``; return it as it is wanted, and what checks blocks of a stream as they come."""
    sde, data, objective, validation = asked.sde, asked.data, asked.objective, asked.validation
    initial = asked.initial
    check_kinds(asked.model, data, objective, asked.optimizer, validation, initial, asked.callback)
    check_key(asked.key)
    alike = {"correction": "score"}
    own, start = objective.kind(sde), getattr(initial, "kind", objective.kind(sde))
    if alike.get(own, own) != alike.get(start, start):
        raise TypeError(f"initial must be a {own}, as {objective!r} learns, got a {start}")
    of = lambda *names: {name: getattr(asked, name) for name in names}
    counts, numbers = of("steps", "batch_size", "epoch_steps"), of("ema", "checkpoint_seconds")
    counts = dict(zip(counts, check_positive(**counts), strict=True))
    check_within("[0, 1)", ema=asked.ema)
    check_within("[0, inf]", checkpoint_seconds=asked.checkpoint_seconds)
    numbers = {name: float(value) for name, value in numbers.items()}
    check_flags(**of("precondition", "progress"))
    if not hasattr(data, "blocks"):
        check_paths(sde, objective, data)
        if own == "correction" or getattr(objective, "base", "state") == "inverse":
            sde = sde if sde.step is None else with_best_inverse(sde, data)
        if validation is not None:
            check_validation(sde, objective, data, validation)
    seen: list[Any] = []

    def check_block(block: Any) -> None:
        check_kind("a block of data", block, "Trajectories(ts, xs)", "ts", "xs")
        check_paths(sde, objective, block)
        if seen:
            check_alike("blocks of data must be alike, after", seen[0], block)
        elif validation is not None:
            check_validation(sde, objective, block, validation)
        seen[:] = seen or [jax.eval_shape(lambda: block)]

    return asked._replace(sde=sde, **counts, **numbers), check_block


def check_paths(sde: SDE, objective: Any, data: Any) -> None:
    """Check paths against the process that they are said to come from, and for the objective."""
    check_time_grid(data.ts, sde)
    data.check(masked=True)
    if data.mask is not None:
        _check_windows(objective, data)
        data = filled(data)
    maps = ("drift", "step", "inverse")
    check_process(sde, data.ts, *data.shapes(), maps=maps)
    objective.check(sde, data)


def _check_windows(objective: Any, data: Any) -> None:
    """Check that an objective honours a mask, and finds windows that were seen whole."""
    if not objective.honours_masks:
        raise ValueError(
            f"{type(objective).__name__} must have whole paths, such as "
            "data[data.mask.all(axis=1)]; OneStep(), MultiStep() and PathScore() honour a mask"
        )
    for steps in objective.windows:
        if not whole_windows(data.mask, steps, objective.first_time).any():
            raise ValueError(
                f"Trajectories.mask must leave windows of {steps + 1} successive states, got none: "
                "shorter windows, or times that all paths have"
            )


def check_kinds(
    model: Any,
    data: Any,
    objective: Any,
    optimizer: Any,
    validation: Any,
    initial: Any,
    callback: Any = None,
) -> None:
    """Refuse arguments of another kind than ``fit`` takes."""
    paths = "Trajectories(ts, xs)"
    check_kind("model", model, "a flax.linen.Module, such as models.MLP()", "init", "apply")
    if not hasattr(data, "blocks"):
        check_kind("data", data, f"{paths} or what datasets.open_stream returns", "ts", "xs")
    check_kind("objective", objective, "an objective, such as MultiStep()", "learned", "loss")
    check_kind("optimizer", optimizer, "of optax, such as optax.adam(1e-3)", "init", "update")
    if validation is not None:
        check_kind("validation", validation, paths, "ts", "xs")
    if initial is not None:
        check_kind("initial", initial, "fit.learned of another fit", "variables", "preconditioner")
    if callback is not None:
        check_kind("callback", callback, "a function callback(metrics, params)", "__call__")


def check_validation(sde: SDE, objective: Any, data: Any, validation: Any) -> None:
    """Check that held-out paths are like those to learn from."""
    check_paths(sde, objective, validation)
    if validation.ts.shape != data.ts.shape or not bool(jnp.array_equal(validation.ts, data.ts)):
        raise ValueError(
            "validation must have the times of the data: "
            f"{data.num_times} in [{float(data.ts[0]):g}, {float(data.ts[-1]):g}], got "
            f"{validation.num_times} in [{float(validation.ts[0]):g}, {float(validation.ts[-1]):g}]"
        )
    want, got = data.shapes(), validation.shapes()
    check_alike("validation must have states and args like the data's", want, got)
