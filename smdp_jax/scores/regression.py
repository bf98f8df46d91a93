r"""Linear regression of earlier states on later ones, block by block, from paths.

For the step from t_{j+1} to t_j, with b the later state (or its inverse-physics step), in the
blocks of a unitary transform: ``A = Cov(x_j, b) Cov(b)^{-1}`` and ``Sigma`` the covariance of what
is left. The chain ``x_j = m_j + A (b - m_b) + Sigma^{1/2} z`` then has the covariance of the paths
at every time. Offsets, gains and factors are tables over features of the conditions.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from smdp_jax.scores.blocks import matvec
from smdp_jax.solve.condition_splines import shares_of

# Shares of a variance, far above rounding in float32 and far below what is measured.
_RIDGE = 1e-5
_FLOOR = 1e-10


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Regression:
    """One group of blocks (K, c), over features of the conditions (M,), as ``conditions`` has them.

    Means (K, c) of the earlier state, b, and the later state; ``offset`` (M, K, c) beside the
    first; ``gain`` A and ``factor``, the lower Cholesky factor of Sigma (M, K, c, c); ``whitener``
    (K, c, c), the inverse root of the later state's covariance.
    """

    mean: Any
    base_mean: Any
    offset: Any
    gain: Any
    factor: Any
    later_mean: Any
    whitener: Any

    def at(self, features: Array) -> tuple[Array, Array, Array]:
        """Interpolate offset, gain and factor."""
        if self.offset.shape[0] == 1:
            return self.offset[0], self.gain[0], self.factor[0]
        of_gains, of_factors = features.astype(self.offset.dtype)
        offset, gain = (jnp.tensordot(of_gains, part, 1) for part in (self.offset, self.gain))
        return offset, gain, jnp.tensordot(of_factors, self.factor, 1)

    def missed(self, earlier: Array, base: Array, features: Array) -> Array:
        """What is left of an earlier state, in units of its covariance."""
        offset, gain, factor = self.at(features)
        mean = self.mean + offset + matvec(gain, base - self.base_mean)
        return solve_lower(factor, earlier - mean)


def regress(earlier: Array, base: Array, later: Array, features: Array) -> Regression:
    """Fit one group at one step: states (S, K, c), features (S, 2, M)."""
    paths, blocks, size = earlier.shape
    mean, base_mean, later_mean = (v.mean(axis=0, keepdims=True) for v in (earlier, base, later))
    centred = earlier - mean
    scale = _rms(base - base_mean)
    seen = jnp.concatenate([jnp.ones_like(base[..., :1]), (base - base_mean) / scale], axis=-1)
    seen = features[:, 0].astype(seen.dtype)[:, None, :, None] * seen[:, :, None, :]
    seen = seen.reshape(paths, blocks, -1)
    weight = _rms(seen)
    seen = seen / weight
    gram = jnp.einsum("skp,skq->kpq", seen.conj(), seen) / paths
    gram = gram + _RIDGE * jnp.eye(gram.shape[-1], dtype=gram.dtype)[None]
    cross = jnp.einsum("skp,skc->kpc", seen.conj(), centred) / paths
    slopes = jnp.linalg.solve(gram, cross)
    left = centred - jnp.einsum("skp,kpc->skc", seen, slopes)
    slopes = (slopes / weight[0, ..., None]).reshape(blocks, -1, 1 + size, size)
    gain = jnp.swapaxes(slopes[:, :, 1:] / scale[0, :, None, :, None], -1, -2)
    freedom = paths / max(paths - seen.shape[-1], 1)
    shares = shares_of(features[:, 1])
    spread = freedom * jnp.einsum("sm,skc,skd->mkcd", shares.astype(left.dtype), left, left.conj())
    return Regression(
        mean=mean[0],
        base_mean=base_mean[0],
        offset=jnp.moveaxis(slopes[:, :, 0], 1, 0),
        gain=jnp.moveaxis(gain, 1, 0),
        factor=jnp.linalg.cholesky(_lifted(spread, 1e-6, _least(earlier, centred, _FLOOR))),
        later_mean=later_mean[0],
        whitener=_whitener(later, later - later_mean),
    )


def solve_lower(factor: Array, vectors: Array) -> Array:
    """Divide every block by its lower triangular factor."""
    if factor.shape[-1] == 1:
        return vectors / factor[..., 0]
    solve = jax.scipy.linalg.solve_triangular
    return solve(factor, vectors[..., None], lower=True)[..., 0]


def _whitener(later: Array, centred: Array) -> Array:
    size = centred.shape[-1]
    spread = jnp.einsum("skc,skd->kcd", centred, centred.conj()) / centred.shape[0]
    factor = jnp.linalg.cholesky(_lifted(spread, _RIDGE, _least(later, centred, 1e-8)))
    identity = jnp.broadcast_to(jnp.eye(size, dtype=factor.dtype), factor.shape)
    return jax.scipy.linalg.solve_triangular(factor, identity, lower=True)


def _least(x: Array, centred: Array, share: float) -> Array:
    """Least variance of the entries of a block: a share of their own, and what rounding hides."""
    hidden = float(jnp.finfo(x.dtype).eps) * x
    return (share * jnp.abs(centred) ** 2 + jnp.abs(hidden) ** 2).mean(axis=(0, 1))


def _lifted(spread: Array, share: float, floor: Array) -> Array:
    """Keep a covariance positive definite in the face of rounding, every entry in its own unit."""
    own = jnp.diagonal(spread, axis1=-2, axis2=-1).real
    least = share * own + floor.reshape((1,) * (own.ndim - 1) + (-1,)) + jnp.finfo(own.dtype).tiny
    identity = jnp.eye(spread.shape[-1], dtype=spread.dtype)
    return spread + least[..., None].astype(spread.dtype) * identity.reshape(
        (1,) * (spread.ndim - 2) + identity.shape
    )


def _rms(values: Array) -> Array:
    size = jnp.sqrt((jnp.abs(values) ** 2).mean(axis=0, keepdims=True))
    return jnp.where(size > 0, size, 1).astype(values.dtype)
