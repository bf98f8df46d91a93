"""What tells one training run from another, so that only the same one is resumed."""

import sys
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from smdp_jax.files import digest_of
from smdp_jax.scores.sharing import described
from smdp_jax.sde import SDE
from smdp_jax.training.asked import Asked
from smdp_jax.training.pieces import Training
from smdp_jax.training.programs import computes
from smdp_jax.training.updates import Fixed, Problem, TrainingState
from smdp_jax.trajectories import Trajectories, TrajectoryStream


def identity_of(
    asked: Asked,
    training: Training,
    state: TrainingState,
    data: Trajectories,
    validation: Trajectories | None,
) -> dict[str, Any]:
    """Describe a run by what it computes and from what, in values that survive a restart."""
    problem, fixed, constants = training.problem, training.fixed, training.constants
    initial, stream = asked.initial, {}
    if isinstance(asked.data, TrajectoryStream):
        stream = {"data": _fingerprint(asked.data), "epoch_steps": asked.epoch_steps}
    packages = {name: version(name) for name in ("jax", "flax", "optax")}
    return {
        "versions": packages | {"smdp_jax": sys.modules["smdp_jax"].__version__},
        "process": _process(problem.sde, data),
        "model": described(problem.model),
        "network": _network(problem, fixed, state, data),
        "objective": described(problem.objective),
        "loss": _loss(problem, fixed, data, constants),
        "optimizer": _optimizer(problem, state),
        "scales": digest_of(fixed.scales),
        "steps": asked.steps,
        "batch_size": problem.batch_size,
        "ema": problem.ema,
        "samples": data.num_samples,
        "times": data.num_times,
        "data": digest_of(_gathered(data)),
        "validation": None if validation is None else digest_of(_gathered(validation)),
        "key": np.asarray(jax.random.key_data(asked.key)).tolist(),
        "initial": None if initial is None else digest_of(jax.tree.leaves(initial)),
        **stream,
    }


def _fingerprint(data: TrajectoryStream) -> str:
    if not data.fingerprint:
        want = "a fingerprint, a str that tells them from others, to be trained on with a directory"
        raise ValueError(f"data must have {want}, got blocks without")
    return data.fingerprint


def _gathered(data: Trajectories) -> Any:
    """Paths that several processes hold in parts, in one."""

    def one(x: Any) -> Any:
        whole = not isinstance(x, jax.Array) or x.is_fully_addressable
        return x if whole else multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(one, data)


def _process(sde: SDE, data: Trajectories) -> str:
    def process(t0: Any, t1: Any, x: Any, args: Any) -> Any:
        walks = [f(t0, t1, x, args) for f in (sde.step, sde.inverse) if f is not None]
        drift = None if sde.drift is None else sde.drift(t1, x, args)
        return drift, walks, sde.g(t1, x)

    t0, t1 = data.ts[0], data.ts[-1]
    return computes(process, t0, t1, data.at(0, -1), data.args_of(0))


def _network(problem: Problem, fixed: Fixed, state: TrainingState, data: Trajectories) -> str:
    model, variables = problem.model, {**fixed.variables, "params": state.params}

    def network(variables: Any, key: Any, t: Any, x: Any, args: Any) -> Any:
        return model.init(key, t, x, args), model.apply(variables, t, x, args)

    t, x, args = problem.objective.seen(problem.model, fixed.scales, data)
    return computes(network, variables, jax.random.key(0), t, x, args)


class _Echo:
    """Stands for the network, so that the loss tells of itself alone."""

    @staticmethod
    def apply(variables: Any, t: Any, x: Any, args: Any, **options: Any) -> Any:
        return x


def _loss(problem: Problem, fixed: Fixed, data: Trajectories, constants: Any) -> str:
    drift, step = (lambda t, x, args: x), (lambda t0, t1, x, args: x)
    sde, objective = problem.sde, problem.objective
    maps = {"drift": drift} if sde.drift is not None else {"step": step, "inverse": step}
    plain = replace(sde, **maps, diffusion=jax.tree.map(lambda _: 1.0, data.at(0, 0)))

    def losses(data: Trajectories, fixed: Fixed, constants: Any, key: Any) -> list[Any]:
        learned = objective.learned(plain, _Echo(), fixed.variables, fixed.scales, fixed.ts)
        pieces = (objective.cut(data, jnp.array(0), jnp.array(0), n) for n in objective.windows)
        return [objective.loss(learned, plain, piece, constants, key) for piece in pieces]

    return computes(losses, data, fixed, constants, jax.random.key(0))


def _optimizer(problem: Problem, state: TrainingState) -> str:
    def loss(params: Any) -> Any:
        return sum((jnp.sum(jnp.abs(p)) for p in jax.tree.leaves(params)), jnp.zeros(()))

    def update(grads: Any, opt_state: Any, params: Any) -> Any:
        extra = {"value": loss(params), "grad": grads, "value_fn": loss}
        first = problem.optimizer.init(params)
        return first, problem.optimizer.update(grads, opt_state, params, **extra)

    # optax mixes integer counts and floats, and parameters may differ in dtype.
    with jax.numpy_dtype_promotion("standard"):
        return computes(update, state.params, state.opt_state, state.params)
