"""Where the random windows of a training come from."""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
from jax.sharding import PartitionSpec

from smdp_jax.solve.batches import Split
from smdp_jax.trajectories import Trajectories

__all__ = ["Windows", "specs_of"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Windows:
    """Where random windows come from; ``paths`` of them, however they are laid out.

    Where states are missing, ``weights`` make the mean over all windows that over the whole ones.
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
    data, whole = source.data, PartitionSpec()
    return replace(
        source,
        constants=whole,
        key=whole,
        weights=whole,
        data=Trajectories(
            ts=whole,
            xs=split.spec(),
            args=whole if data.args_axes is None else split.spec(),
            score_targets=split.spec(),
            args_axes=data.args_axes,
            mask=split.spec(),
        ),
    )
