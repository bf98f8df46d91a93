"""Which paths and windows a batch is drawn from: the same ones on any number of devices.

Entry b of a batch of B takes path ``floor((b + u) N / B)`` of N, u uniform on [0, 1): every path is
seen equally often, entries side by side draw from paths side by side, and a device that holds its
part of the paths draws its part of the batch from them alone.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array

from smdp_jax.solve.batches import Split
from smdp_jax.trajectories import Trajectories


@dataclass(frozen=True)
class Shares:
    """N paths and B entries dealt out over equal parts; what is left over is filled up."""

    paths: int
    batch: int
    parts: int = 1

    @property
    def each(self) -> int:
        """Entries of one part."""
        return -(-self.batch // self.parts)

    @cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lowest and highest path of every entry (parts, each), and what the lowest lost."""
        # By numpy: the products do not fit into 32 bits.
        entries = np.minimum(np.arange(self.parts * self.each, dtype=np.int64), self.batch - 1)
        low, rounded = np.divmod(entries * self.paths, self.batch)
        high = ((entries + 1) * self.paths - 1) // self.batch
        low, high, rounded = (a.reshape(self.parts, self.each) for a in (low, high, rounded))
        return low, high, rounded / self.batch

    @cached_property
    def rows(self) -> np.ndarray:
        """Paths that each part draws from, (parts, paths of a part)."""
        low, high, _ = self._table
        first = low[:, :1]
        length = int((high[:, -1:] - first).max()) + 1
        return np.minimum(first + np.arange(length), self.paths - 1)

    def draw(self, words: Array, part: Any) -> Array:
        """Paths among those of a part, from random words (each,) of 32 bits."""
        low, high, rounded = self._table
        first = low[:, :1]
        low, high = (jnp.asarray((a - first).astype(np.int32))[part] for a in (low, high))
        u = (words >> 8).astype(jnp.float32) * 2.0**-24
        width = np.float32(self.paths / self.batch)
        above = jnp.floor(jnp.asarray(rounded.astype(np.float32))[part] + u * width)
        return jnp.minimum(low + above.astype(jnp.int32), high)

    def laid_out(self, data: Trajectories, split: Split) -> Trajectories:
        """The paths of each part on its device."""
        rows = self.rows.reshape(-1)
        same = np.array_equal(rows, np.arange(self.paths))
        lay = lambda tree: split.put(tree if same else jax.tree.map(lambda x: x[rows], tree))
        mapped = data.args_axes == 0
        return replace(
            data,
            ts=split.put(data.ts, whole=True),
            xs=lay(data.xs),
            score_targets=lay(data.score_targets),
            mask=lay(data.mask),
            args=lay(data.args) if mapped else split.put(data.args, whole=True),
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Windows:
    """Where random windows come from: ``paths`` of them, however they are laid out.

    ``weights`` make the mean over all windows that over those without a missing state.
    """

    data: Trajectories
    constants: Any
    key: Any
    paths: int = field(metadata={"static": True})
    weights: Any = None


def specs_of(source: Windows | None, split: Split) -> Any:
    """Where the arrays are split: paths, their targets and their conditions."""
    if source is None:
        return None
    data, whole, part = source.data, PartitionSpec(), split.spec()
    args = whole if data.args_axes is None else part
    data = replace(data, ts=whole, xs=part, args=args, score_targets=part, mask=part)
    return replace(source, data=data, constants=whole, key=whole, weights=whole)
