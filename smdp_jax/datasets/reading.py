"""Read datasets: all of it into memory, or blocks of it one after the other."""

import functools
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PRNGKeyArray

from smdp_jax.checks import check_holds, check_positive
from smdp_jax.datasets._arrays import as_jax_has_it, on_device
from smdp_jax.datasets._variables import from_arrays
from smdp_jax.datasets.store import Store
from smdp_jax.datasets.writing import as_json, check_settings
from smdp_jax.files import local_path
from smdp_jax.solve.batches import Split, split_of
from smdp_jax.trajectories import Trajectories


def open_trajectories(
    path: str | Path,
    *,
    config: Any = None,
    partial: bool = False,
    dtype: Any = None,
    mesh: Mesh | None = None,
) -> Trajectories:
    """Read a dataset into memory.

    Parameters
    ----------
    path : path
        What ``write`` wrote.
    config : dict or dataclass, optional
        Refuse a dataset that was generated with another one.
    partial : bool
        Take the chunks there are of a dataset that is not finished.
    dtype : floating dtype, optional
        Cast times, states and other floating-point arrays to it; default: as stored.
    mesh : jax.sharding.Mesh, optional
        Devices that hold the samples, split along its axis ``data``; of several processes each
        reads the chunks of its own devices.

    Returns
    -------
    Trajectories
        All samples, in the order of the chunks.

    Raises
    ------
    ImportError, FileNotFoundError
        If zarr is not installed; if there is no such dataset.
    ValueError
        If it is damaged, not finished, of another config, of a precision that JAX is not set to, or
        if its chunks do not divide over the devices.
    """
    store = _open(path, config)
    written = _written(store, partial)
    return _load(store, written, dtype, _split_of(mesh, len(written), f"{path} has"))


@runtime_checkable
class Source(Protocol):
    """What a stream reads: pieces by number, chunks of a dataset or paths of files."""

    @property
    def count(self) -> int: ...
    @property
    def num_samples(self) -> int: ...
    @property
    def identity(self) -> Any: ...
    def load(self, chosen: Sequence[int], dtype: Any) -> Trajectories: ...


@dataclass(frozen=True)
class Chunks:
    """Chunks of a dataset, those that are written."""

    store: Store
    written: tuple[int, ...]
    split: Split | None = None

    @property
    def count(self) -> int:
        """How many chunks there are."""
        return len(self.written)

    @property
    def num_samples(self) -> int:
        """How many paths there are."""
        return self.count * self.store.layout["samples_per_chunk"]

    @property
    def identity(self) -> Any:
        """Layout and checksums."""
        return [self.store.layout, [(i, self.store.checksum(i)) for i in self.written]]

    def load(self, chosen: Sequence[int], dtype: Any) -> Trajectories:
        """Read chunks by number."""
        return _load(self.store, [self.written[i] for i in chosen], dtype, self.split)


@dataclass(frozen=True)
class Stream:
    """Data larger than memory, as blocks of trajectories for ``fit``.

    Parameters
    ----------
    source : Source
        Where pieces are read from: chunks of a dataset, or paths of other files.
    chunks_per_block, dtype
        How many pieces make one block; what floating-point arrays are cast to, if anything.
    """

    source: Source
    chunks_per_block: int = 1
    dtype: Any = None

    @property
    def num_samples(self) -> int:
        """Number of paths in all."""
        return self.source.num_samples

    @property
    def fingerprint(self) -> str:
        """What tells this stream from one of other data, or in other blocks."""
        dtype = None if self.dtype is None else np.dtype(self.dtype).name
        parts = [self.source.identity, self.chunks_per_block, dtype]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def load(self) -> Trajectories:
        """Read all of it into memory.

        Returns
        -------
        Trajectories
            All samples, in the order in which they are stored.
        """
        return self.source.load(range(self.source.count), self.dtype)

    def blocks(self, key: PRNGKeyArray, first: int = 0) -> Iterator[Trajectories]:
        """Go through the data without end, in a new order on every pass.

        Block n depends on the key and n alone, so an iteration that starts at block n goes on as
        one that started at 0 would. The next block is read while the last one is used: memory
        holds two.

        Parameters
        ----------
        key : PRNG key
            Decides the order.
        first : int
            Number of the block to start with.

        Yields
        ------
        Trajectories
            ``chunks_per_block`` pieces, always of the same shapes, checked.
        """
        reader, number, ending = ThreadPoolExecutor(max_workers=1), first, sys.is_finalizing
        try:
            ahead = reader.submit(self._block, key, number)
            while True:
                number += 1
                block, ahead = ahead.result(), reader.submit(self._block, key, number)
                yield block
        finally:
            reader.shutdown(wait=not ending())  # in a program that ends there is none to wait for

    def _block(self, key: PRNGKeyArray, number: int) -> Trajectories:
        count, size = self.source.count, self.chunks_per_block
        chosen, place = [], number * size
        while len(chosen) < size:
            turn, start = divmod(place, count)
            order = np.asarray(jax.random.permutation(jax.random.fold_in(key, turn), count))
            taken = order[start : start + size - len(chosen)].tolist()
            chosen, place = chosen + taken, place + len(taken)
        return self.source.load(chosen, self.dtype)


def open_stream(
    path: str | Path,
    *,
    chunks_per_block: int = 1,
    config: Any = None,
    partial: bool = False,
    dtype: Any = None,
    mesh: Mesh | None = None,
) -> Stream:
    """Open a dataset for training without reading it all into memory.

    Parameters
    ----------
    path : path
        What ``write`` wrote.
    chunks_per_block : int
        How many chunks are in memory for one epoch of ``fit``: the more, the better they are mixed.
    config, partial, dtype
        As for ``open_trajectories``.
    mesh : jax.sharding.Mesh, optional
        As there, for the samples of a block; give ``fit`` the same one.

    Returns
    -------
    Stream
        To be given to ``fit`` in place of ``Trajectories``.

    Raises
    ------
    ImportError, FileNotFoundError, ValueError
        As ``open_trajectories``, and if there are fewer chunks than make a block.
    """
    store = _open(path, config)
    written = tuple(_written(store, partial))
    (chunks_per_block,) = check_positive(chunks_per_block=chunks_per_block)
    check_holds(str(path), len(written), chunks_per_block, "chunks, as a block does")
    split = _split_of(mesh, chunks_per_block, "a block has")
    return Stream(Chunks(store, written, split), chunks_per_block, dtype)


def _open(path: str | Path, config: Any) -> Store:
    store = Store.open(local_path(path))
    if config is not None:
        check_settings(store, {"config": as_json(config)})
    return store


def _written(store: Store, partial: bool) -> list[int]:
    written = store.written()
    if len(written) < store.chunks and not (partial and written):
        said = f"{store.path} has {len(written)} of {store.chunks} chunks: write it again with the"
        how = "same arguments, which goes on from there, or take what there is with partial=True"
        raise ValueError(f"{said} {how}")
    return written


def _split_of(mesh: Mesh | None, chunks: int, said: str) -> Split | None:
    split = None if mesh is None else split_of(mesh)
    if split is not None and chunks % split.count:
        want = f"a multiple of the mesh's {split.count} devices, each of which holds whole ones"
        how = "read it without mesh=, or over fewer devices, or write it in other chunks"
        raise ValueError(f"chunks must be {want}, but {said} {chunks}: {how}")
    return split


def _load(store: Store, indices: list[int], dtype: Any, split: Split | None = None) -> Trajectories:
    if split is not None:
        return _load_over(store, indices, dtype, split)
    chunks = [store.read(i) for i in indices]
    arrays: Mapping[str, np.ndarray] = {
        **store.shared(),
        **{name: np.concatenate([c[name] for c in chunks]) for name in chunks[0]},
    }
    on_chip = {n: on_device(a, dtype, f"{n!r} of {store.path}") for n, a in arrays.items()}
    return from_arrays(store.layout["structure"], on_chip)


def _load_over(store: Store, indices: list[int], dtype: Any, split: Split) -> Trajectories:
    """Global arrays, of which every process reads the parts of its own devices, each chunk once."""
    chunks = len(indices) // split.count
    rows = chunks * store.layout["samples_per_chunk"]

    def known(name: str, array: np.ndarray) -> np.ndarray:
        return as_jax_has_it(array, dtype, f"{name!r} of {store.path}")

    @functools.cache
    def part(number: int) -> dict[str, np.ndarray]:
        read = [store.read(i) for i in indices[number * chunks : (number + 1) * chunks]]
        return {n: known(n, np.concatenate([c[n] for c in read])) for n in read[0]}

    def over(name: str) -> jax.Array:
        shape = (rows * split.count, *store.group[name].shape[1:])
        there = NamedSharding(split.asked, split.spec())

        def read(index: Any) -> np.ndarray:
            return part((index[0].start or 0) // rows)[name]

        return jax.make_array_from_callback(shape, there, read)

    def whole(name: str, array: np.ndarray) -> jax.Array:
        array, there = known(name, array), NamedSharding(split.asked, PartitionSpec())
        return jax.make_array_from_callback(array.shape, there, lambda index: array[index])

    shared = {name: whole(name, array) for name, array in store.shared().items()}
    return from_arrays(store.layout["structure"], shared | {n: over(n) for n in store.stacked})
