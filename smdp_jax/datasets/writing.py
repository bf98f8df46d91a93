"""Write generated trajectories to disk, chunk by chunk."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray
from tqdm import tqdm

from smdp_jax.checks import check_key, check_positive
from smdp_jax.datasets.store import Store, create_store
from smdp_jax.files import agreed, by_first, check_alike, is_first, local_path, wait
from smdp_jax.solve.batches import dealt_out
from smdp_jax.trajectories import Trajectories


def write(
    path: str | Path,
    generate: Callable[[PRNGKeyArray], Trajectories],
    *,
    chunks: int,
    key: PRNGKeyArray,
    config: Any = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    units: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Path:
    """Generate trajectories and write them as a Zarr store, or go on where that was stopped.

    Chunk i is ``generate(fold_in(key, i))``, so a run that was killed, at any moment, and started
    again with the same arguments ends with the same bits. Chunks that are there and whole are kept,
    once the first of them, computed again, has come out the same. Several processes
    (``jax.distributed``) each generate their own chunks, and return once the store is whole.
    ``xarray.open_zarr(path)`` opens the result: arrays ``time``, one per leaf of the state,
    ``score.*`` and ``args.*``, on the axes sample, time, x, y, z.

    Parameters
    ----------
    path : path
        Folder of the store, such as ``smoke.zarr``.
    generate : callable
        Makes one chunk of ``Trajectories`` from a key: always as many samples, on the same times.
        Memory holds one chunk at a time.
    chunks, key
        Number of chunks; randomness of all of them.
    config : dict or dataclass, optional
        What the data are generated with, in JSON values: an attribute of the store, compared when
        it is opened again.
    dims, units : dict, optional
        Names of a leaf's own axes, such as ``{"velocity_x": ("x_face", "y")}``, default x, y, z;
        units by name of array, ``time`` among them, default "1", of score targets the state's
        inverse.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    ImportError
        If zarr is not installed.
    ValueError
        If the store there was written with other arguments, makes other data than ``generate``, is
        damaged in its times or is none of ours, if chunks differ in shape or times, or if a state
        is not finite; or if processes ask for different data.
    TypeError
        If the config is not JSON, or ``generate`` returns something else.
    """
    (chunks,) = check_positive(chunks=chunks)
    check_key(key)
    path = local_path(path)
    words = [str(jax.random.key_impl(key)), np.asarray(jax.random.key_data(key)).tolist()]
    settings = {"chunks": chunks, "key": words, "config": as_json(config)}
    check_alike(settings, "write the same data")
    part, parts = jax.process_index(), jax.process_count()

    def chunk(index: int) -> Trajectories:
        with dealt_out(None):  # no other process takes part in this one's chunks
            made = generate(jax.random.fold_in(key, index))
        if not isinstance(made, Trajectories):
            raise TypeError(f"generate must return Trajectories, got {type(made).__name__}")
        made.check(masked=True)
        return made

    first: list[Trajectories] = []

    def create() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        first.append(chunk(0))
        create_store(path, first[0], **settings, dims=dims or {}, units=units or {})

    def tidy() -> None:
        for left in path.rglob("*.partial"):  # of a write that was killed
            left.unlink(missing_ok=True)

    there = agreed(path.exists() and any(path.iterdir()))
    if there:
        check_settings(Store.open(path), settings)
    by_first(tidy if there else create)
    store = Store.open(path, mode="r+")
    store.shared()
    own = range(part, chunks, parts)
    whole = {i for i in own if store.checksum(i) and _is_whole(store, i)}
    if whole and not first:
        store.check_same(min(whole), chunk(min(whole)), dims or {}, units or {})
    shown = progress and is_first()
    with tqdm(total=len(own), initial=len(whole), disable=not shown, unit="chunk") as bar:
        for index in sorted(set(own) - whole):
            store.write(index, first[0] if first and index == 0 else chunk(index))
            bar.update()
    wait()
    return path


def as_json(config: Any) -> dict[str, Any]:
    """Turn a configuration into JSON values."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    config = {} if config is None else config
    if not isinstance(config, Mapping):
        raise TypeError(f"config must be a dict or a dataclass, got {type(config).__name__}")
    try:
        return json.loads(json.dumps(dict(config), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"config must hold JSON values: {error}") from error


def check_settings(store: Store, settings: Mapping[str, Any]) -> None:
    """Check that a store was written with certain settings."""
    found, wanted = {**store.layout, "config": store.config}, dict(settings)
    if "config" in settings:
        found |= {f"config.{name}": value for name, value in found.pop("config").items()}
        wanted |= {f"config.{name}": value for name, value in wanted.pop("config").items()}
        wanted |= {n: None for n in found if n.startswith("config.") and n not in wanted}
    for name, value in wanted.items():
        if found.get(name) != value:
            raise store.another(f"{name} was {found.get(name)!r}, now {value!r}")


def _is_whole(store: Store, index: int) -> bool:
    try:
        store.read(index)
    except ValueError:
        return False
    return True
