"""Score any sampler on stored tasks with truth: held-out end states, starts, exact draws.

A store is a Zarr group with one group for each task, arrays ``truths`` (cases, *state), ``ends``
(cases, *state) and ``reference`` (cases, draws, *state), each with its SHA-256; the attribute
``looks`` of a task names what its starts are told apart by.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from smdp_jax.checks import (
    check_choice,
    check_holds,
    check_key,
    check_kind,
    check_positive,
    check_shape,
)
from smdp_jax.evaluate.arrays import AnyArray, as_cases, check_varying
from smdp_jax.evaluate.calibration import sbc_ranks, tarp_ranks, uniformity_test
from smdp_jax.evaluate.ensembles import crps_ensemble, energy_score, spread_skill
from smdp_jax.evaluate.observables import Observables, default_observables
from smdp_jax.evaluate.two_sample import FEWEST, TwoSample, c2st


def sides(x: Any) -> Mapping[str, Array]:
    """Signs of entries: where a start is one of two points, all that is a question."""
    return default_observables(jax.tree.map(jnp.sign, x))


FORMAT = 1
LOOKS: dict[str, Observables] = {"default": default_observables, "sides": sides}
_ARRAYS = ("truths", "ends", "reference")


class SamplerScore(NamedTuple):
    """How good a sampler is, beside exact draws.

    Parameters
    ----------
    crps, energy : float
        Fair scores, over those of the reference's draws: 1 is the best there is.
    spread_skill : float
        1 if calibrated, below if too sure.
    sbc_p, tarp_p : float
        Smallest p-value over observables, times their number; that of their joint law.
    told : TwoSample
        Classifier between samples and reference, given the end states.
    """

    crps: float
    energy: float
    spread_skill: float
    sbc_p: float
    tarp_p: float
    told: TwoSample


def write_tasks(
    path: str | Path,
    tasks: Mapping[str, Mapping[str, Any]],
    *,
    version: str,
    looks: Mapping[str, str] | None = None,
) -> None:
    """Write tasks as a Zarr store.

    Parameters
    ----------
    path : path
        A folder that does not exist yet.
    tasks : dict of dict of array
        By name: ``truths`` (cases, *state), ``ends`` (cases, *state), ``reference``
        (cases, draws, *state).
    version : str
        Of the tasks, for whoever compares figures.
    looks : dict of str, optional
        By task, what tells its starts apart: "default" (`default_observables`) or "sides" (the
        signs of entries, for starts that are one of two points).

    Raises
    ------
    FileExistsError, ValueError
        If the folder exists; if arrays are missing, are not finite or all equal, do not belong
        together, or are of fewer cases than a score needs; or there are no such looks.
    """
    import zarr

    looks = looks or {}
    if Path(path).exists():
        raise FileExistsError(f"{path} must not exist yet: figures belong to one version")
    for name, arrays in tasks.items():
        _check_task(name, arrays, looks.get(name, "default"))
    if strange := sorted(set(looks) - set(tasks)):
        raise ValueError(f"looks must name tasks of {sorted(tasks)}, got {strange}")
    root = zarr.open_group(str(path), mode="w")
    root.attrs.update({"format": FORMAT, "version": version})
    for name, arrays in tasks.items():
        group = root.create_group(name)
        group.attrs["looks"] = looks.get(name, "default")
        for key in _ARRAYS:
            values = np.ascontiguousarray(arrays[key])
            stored = group.create_array(key, data=values)
            stored.attrs["sha256"] = hashlib.sha256(values.tobytes()).hexdigest()


def _check_task(name: str, arrays: Mapping[str, Any], look: str) -> None:
    if missing := sorted(set(_ARRAYS) - set(arrays)):
        raise ValueError(f"task {name} must hold {', '.join(missing)}, got {sorted(arrays)}")
    check_choice(f"looks of {name}", look, *LOOKS)
    truths, ends, reference = (arrays[key] for key in _ARRAYS)
    as_cases(truths, reference)
    check_shape(f"ends of {name}", ends, (len(truths), *ends.shape[1:]), ", one for each truth")
    check_holds(f"task {name}", len(truths), FEWEST, "cases, to tell samplers apart")
    check_holds(f"reference of {name}", reference.shape[1], 2, "draws per case")
    check_varying(truths=truths, ends=ends)


def read_task(path: str | Path, task: str) -> dict[str, np.ndarray]:
    """Read one task of a store, and check that it is as it was written.

    Parameters
    ----------
    path, task
        Folder of the store, and name of the task.

    Returns
    -------
    dict of str to array
        ``truths``, ``ends``, ``reference``; an array that has changed is refused (ValueError).

    Raises
    ------
    ValueError
        If there is no such task, or an array has changed.
    """
    return _read(path, task)[0]


def _read(path: str | Path, task: str) -> tuple[dict[str, np.ndarray], str]:
    """Arrays of a task, and what tells its starts apart."""
    import zarr

    root = zarr.open_group(str(path), mode="r")
    check_choice("task", task, *root.group_keys())
    found = {}
    for key in _ARRAYS:
        stored: Any = root[f"{task}/{key}"]
        found[key] = np.ascontiguousarray(stored[:])
        if hashlib.sha256(found[key].tobytes()).hexdigest() != stored.attrs["sha256"]:
            raise ValueError(f"{path}/{task}/{key} must be as it was written, got other numbers")
    return found, str(root[task].attrs.get("looks", "default"))


def score_sampler(
    sampler: Callable[[Any, int, Any], Any],
    path: str | Path,
    task: str,
    *,
    key: Key[Array, ""],
    num_samples: int = 19,
    observables: Observables | None = None,
) -> SamplerScore:
    """Score a sampler of starts on a stored task.

    Parameters
    ----------
    sampler : callable
        ``sampler(ends, num_samples, key)`` returns starts (cases, num_samples, *state) for end
        states (cases, *state).
    path, task
        As for `read_task`.
    key, num_samples : PRNG key, int
        Handed on to the sampler, and for ties, references and folds; samples for each case, at
        least 9.
    observables : callable, optional
        Numbers by name of one state, that ranks and the classifier see; default as the task says.

    Returns
    -------
    SamplerScore
        Scores over the reference's, and tests of calibration.

    Raises
    ------
    ValueError, TypeError
        If samples do not fit the task or are lost (which cases); if they are no array.
    """
    check_key(key)
    check_positive(least=9, num_samples=num_samples)
    k_draw, k_judge = jax.random.split(key)
    stored, looks = _read(path, task)
    samples = sampler(stored["ends"], num_samples, k_draw)
    wanted = (len(stored["truths"]), num_samples, *stored["truths"].shape[1:])
    check_kind("sampler", samples, "a function that returns an array", "shape")
    check_shape("what sampler returns", samples, wanted, ", (cases, num_samples, *state)")
    return judge(samples, **stored, key=k_judge, observables=observables or LOOKS[looks])


def judge(
    samples: AnyArray,
    truths: AnyArray,
    ends: AnyArray,
    reference: AnyArray,
    *,
    key: Key[Array, ""],
    observables: Observables = default_observables,
) -> SamplerScore:
    """Compare samples (cases, draws, *state) with truths and with exact draws."""
    truths, samples = as_cases(truths, samples)
    _, reference = as_cases(truths, reference)
    k_sbc, k_tarp, k_told = jax.random.split(key, 3)

    def mean_of(score: Callable) -> tuple[float, float]:
        each = jax.jit(jax.vmap(lambda x, y: jnp.mean(score(x, y))))
        return float(each(samples, truths).mean()), float(each(reference, truths).mean())

    (crps, best_crps), (energy, best_energy) = mean_of(crps_ensemble), mean_of(energy_score)
    seen = jax.vmap(observables)
    found = [seen(truths), jax.vmap(seen)(samples), seen(reference[:, 0])]
    found.append(jax.vmap(default_observables)(ends))
    true, drawn, exact, end = (jnp.stack(list(tree.values()), axis=-1) for tree in found)
    sizes = np.abs(np.asarray(true)).max(axis=0)
    varying = np.ptp(np.asarray(true), axis=0) > 1e-6 * sizes
    if not varying.any():
        raise ValueError(f"observables must differ between cases, got {varying.size} constants")
    true, drawn, exact = true[:, varying], drawn[..., varying], exact[:, varying]
    count = samples.shape[1]
    sbc = uniformity_test(sbc_ranks(true, drawn, key=k_sbc), count).p_value
    tarp = uniformity_test(tarp_ranks(true, drawn, key=k_tarp), count).p_value
    pair = (jnp.concatenate([starts, end], axis=1) for starts in (drawn[:, 0], exact))
    told = c2st(*pair, key=k_told)
    ratio, least = float(spread_skill(truths, samples).ratio), float(sbc.min()) * sbc.size
    proper = crps / best_crps, energy / best_energy
    return SamplerScore(*proper, ratio, min(1.0, least), float(tarp), told)
