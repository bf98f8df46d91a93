"""Tell whether two trees of arrays hold the same, also in another process."""

import hashlib

import jax
import numpy as np
from jaxtyping import PyTree

__all__ = ["digest_of"]


def digest_of(tree: PyTree) -> str:
    """Digest structure, shapes, dtypes and values of a tree of arrays.

    Parameters
    ----------
    tree : pytree
        Leaves that numpy takes. Its containers print what tells them apart and no addresses; give
        ``jax.tree.leaves`` of one that holds functions.

    Returns
    -------
    str
        SHA-256, in hexadecimal.
    """
    leaves, treedef = jax.tree.flatten(tree)
    content = hashlib.sha256(str(treedef).encode())
    for leaf in map(np.asarray, leaves):
        content.update(f"{leaf.shape}{leaf.dtype}".encode())
        content.update(leaf.tobytes())
    return content.hexdigest()
