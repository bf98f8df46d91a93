"""What several processes that compute the same have to say to each other."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint.multihost import get_barrier_sync_fn

from smdp_jax.files import digest_of

__all__ = ["agreed", "check_alike", "is_first", "wait", "write"]

_WEEK = 7 * 24 * 3600 * 1000
_barriers = itertools.count()


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def agreed(value: bool) -> bool:
    """What the first process says: clocks and folders differ, and all have to do the same."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def check_alike(what: Any, said: str) -> None:
    """Refuse processes that were started with other values than the first."""
    if jax.process_count() == 1:
        return
    own = np.frombuffer(digest_of([json.dumps(what)])[:16].encode(), np.uint8)
    others = multihost_utils.process_allgather(own)
    wrong = np.flatnonzero((others != others[0]).any(axis=1))
    if wrong.size:
        raise ValueError(
            f"all processes must {said}, got process {wrong[0]} unlike process 0: start them with "
            "the same code, config and data"
        )


def wait() -> None:
    """Wait for the others, however long they take: a collective of the devices would give up."""
    get_barrier_sync_fn()(key=f"smdp_jax-{next(_barriers)}", timeout_ms=_WEEK)


def write(action: Callable[[], object]) -> None:
    """Let the first process write, and the others wait until all of it is there."""
    if is_first():
        action()
    wait()
