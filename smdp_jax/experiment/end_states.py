"""Sample the past of end states that a user brings along in an ``.npz`` file."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smdp_jax.experiment.fields import ExperimentError
from smdp_jax.experiment.run import Run
from smdp_jax.experiment.storage import write_arrays
from smdp_jax.files import read_archive
from smdp_jax.posterior.sampling import Posterior


def sample_end_states(
    run: Run, end_states: Path, output: Path, *, num_samples: int, seed: int = 0
) -> Posterior:
    """Sample the past of the end states in a file.

    Parameters
    ----------
    run : Run
        A trained run.
    end_states : Path
        ``.npz`` with an array ``x_end``, shape (n, *state), or ``x_end/name`` for each leaf;
        conditions that differ between paths: ``args`` likewise.
    output : Path
        ``.npz`` to be written: ``samples`` (n, num_samples, *state), ``x_end``, and per path
        ``finite``, ``max_score`` and ``evaluations``.
    num_samples, seed : int
        Samples per end state; the sampler's seed.

    Returns
    -------
    Posterior
        What was written.

    Raises
    ------
    ExperimentError
        If a file is missing, damaged or in the way, or if arrays do not fit the run's states.
    """
    if output.exists():
        raise ExperimentError(f"{output} exists; remove it or choose another --output")
    if not output.parent.is_dir():
        raise ExperimentError(f"folder {output.parent} of --output does not exist")
    if not end_states.exists():
        raise ExperimentError(f"{end_states} does not exist")
    try:
        arrays, data = read_archive(end_states), run.data
    except (ValueError, OSError) as error:
        said = f"{end_states} is no .npz file, or a damaged one"
        raise ExperimentError(f"{said} ({error})") from error
    x_end = _take(arrays, end_states, "x_end", data.at(0, -1), None)
    number = jax.tree.leaves(x_end)[0].shape[0]
    if data.args_axes is None:
        args = jax.tree.map(lambda a: jnp.broadcast_to(a, (number, *jnp.shape(a))), data.args)
    else:
        args = _take(arrays, end_states, "args", data.args_of(0), number)
    past = run.config.posterior(
        run, x_end, num_samples=num_samples, key=jax.random.key(seed), args=args
    )
    told = {name: getattr(past.info, name) for name in ("finite", "max_score", "evaluations")}
    write_arrays(output, {"x_end": x_end, "samples": past.samples, **told})
    return past


def _take(
    arrays: dict[str, np.ndarray], path: Path, name: str, like: Any, number: int | None
) -> Any:
    """Gather the leaves of a tree like ``like`` with one more, leading axis."""

    def leaf(place: Any, one: Any) -> jax.Array:
        nonlocal number
        key = "/".join([name, *(jax.tree_util.keystr((p,), simple=True) for p in place)])
        if key not in arrays:
            raise ExperimentError(f"{path} needs an array {key!r}; it has {sorted(arrays)}")
        array = arrays[key]
        number = array.shape[0] if number is None and array.ndim else number
        if array.shape != (number, *jnp.shape(one)) or not number:
            want = f"shape (n, *{jnp.shape(one)}), the same n for all arrays and at least 1"
            raise ExperimentError(f"{key} in {path} must have {want}; got {array.shape}")
        if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
            raise ExperimentError(f"{key} in {path} must hold finite real numbers")
        return jnp.asarray(array, jnp.result_type(one))

    return jax.tree_util.tree_map_with_path(leaf, like)
