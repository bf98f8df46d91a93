r"""A learned backward kernel: Gaussian steps estimated from the paths, a network for what is left.

The third kind of learned term. For the step from t_{j+1} to t_j, in blocks of a unitary transform,

``x_j = m_j + A_j (b - m_b) + L_j (N(t, x_{j+1}, args) + e^h R_j z)``,  ``L_j L_j^H = Sigma_j``,

with the gain A_j and the covariance Sigma_j of a linear regression on b (``regression``), a network
N for the remainder in units of that covariance and h(t, x_{j+1}, args) for how its noise depends on
the state (entry by entry), and R_j the root of the covariance that is left on paths that were not
trained on. Started at the last time from data the chain has, without N, the data's
covariance at every time, whatever the simulator and the step. It is tied to its grid.
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.checks import concrete
from smdp_jax.scores.blocks import Blocks, matvec
from smdp_jax.scores.learned import apply_network
from smdp_jax.scores.own_steps import check_same_process, first_of, steps_of
from smdp_jax.scores.regression import solve_lower
from smdp_jax.scores.tables import KernelTables, inputs, white_noise
from smdp_jax.sde import SDE, Args, Scalar, State

# The noise may depend on the state by a factor of up to e^2.
_LARGEST = 2.0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LearnedKernel:
    """A backward step as a Gaussian, for each step of its own time grid.

    ``fit.kernel`` of a training with ``BackwardKernel()``, or ``estimate_kernel``, which has no
    network. ``sample_posterior`` walks it; it has transition densities, and is no score.

    Parameters
    ----------
    model : flax.linen.Module or None
        Network of the remainder N and its noise h; None: neither. It is called as
        ``model.apply(variables, t, (x, y), args)`` and returns both: t from 0 to 1 over the grid, x
        the later state divided by its standard deviation, y the same state with the covariance of
        its blocks divided out. Without h, or if it takes no pair of states (one of ours does and
        says ``takes_trees``), as ``(t, x, (args, y))`` for N, or ``(t, x, (args, y, 0))``, and with
        a 1 in place of the 0 for h.
    variables : pytree
        Its parameters.
    tables : KernelTables
        Gains and covariances.
    trust : array (2,), optional
        Factors of N and h, at most 1, that suit paths that were not trained on; None: 1.
    left : tuple of arrays (steps, K, c, c), optional
        Roots R_j of the covariance that is left of the remainder, per group; None: 1.

    References
    ----------
    The linear part is the regression (Rauch-Tung-Striebel, 1965) smoother's backward kernel with
    moments taken from simulated paths.
    """

    kind: ClassVar = "kernel"
    what: ClassVar = "a backward kernel: use fit.kernel"

    model: Any = field(metadata={"static": True})
    variables: Any
    tables: KernelTables
    trust: Any = None
    left: Any = None

    @property
    def preconditioner(self) -> KernelTables:
        """The tables, under the name that other learned terms have for them."""
        return self.tables

    @property
    def ts(self) -> Array:
        """The time grid whose steps it belongs to."""
        return self.tables.ts

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the leaves of its states."""
        return [jnp.shape(leaf) for leaf in jax.tree.leaves(self.tables.probe[0])]

    def check_state(self, x: State) -> None:
        """Refuse states of another kind than its paths had.

        Parameters
        ----------
        x : pytree
            One unbatched state.

        Raises
        ------
        ValueError
            If its tree, shapes or dtypes differ.
        """
        probe = self.tables.probe[0]
        want, got = (jax.tree.map(lambda a: f"{a.dtype}{list(a.shape)}", v) for v in (probe, x))
        if want != got:
            raise ValueError(
                f"x_end must be like the states of the kernel's paths {want}, got {got}"
            )

    def check_use(
        self, sde: SDE, ts: Any, noise_level: float, *, whole_steps: bool, use: str
    ) -> None:
        """Refuse other verbs, steps and processes.

        Parameters
        ----------
        sde : SDE
            The process that it is used on.
        ts : array (times,)
            Times of the walk.
        noise_level : float
            The alpha of the solve.
        whole_steps : bool
            Whether every step of ``ts`` is one step, and nothing else.
        use : str
            The verb that asks.

        Raises
        ------
        ValueError
            If it is neither ``sample_posterior`` nor ``certify`` on the kernel's own steps.
        """
        if use not in ("sample_posterior", "certify"):
            raise ValueError(
                f"{use} needs a score, got a LearnedKernel, whose steps are for sample_posterior "
                "and certify. PathScore() learns a score"
            )
        if not whole_steps or noise_level != 1:
            raise ValueError(
                "substeps, corrector and noise_level need a score, got a LearnedKernel: it has "
                "steps and noise of its own. PathScore() learns a score"
            )
        first_step(self.ts, ts)
        check_same_process(self.ts, self.tables.noise, self.tables.probe, sde)

    def mean(self, step: Any, x: State, args: Args = None) -> State:
        """Mean of the state at ``ts[step]``, given the one at ``ts[step + 1]``.

        Parameters
        ----------
        step : int
            Index of the earlier time.
        x : pytree
            One unbatched state at the later time.
        args : pytree, optional
            Conditions.

        Returns
        -------
        pytree
            Like ``x``.
        """
        centre, factors = _linear(self, step, x, args)
        white = self.tables.transform.to(remainder(self, step, x, args)[0])
        return _state(self, centre, factors, white, x)

    def covariance(self, step: Any, x: State, args: Args = None) -> Array:
        """Covariance of one backward step.

        Parameters
        ----------
        step : int
            Index of the earlier time.
        x : pytree
            One unbatched state at the later time.
        args : pytree, optional
            Conditions.

        Returns
        -------
        array (entries, entries)
            Over the entries of all leaves, in the order of ``jax.tree.leaves``.
        """
        flat, restore = ravel_pytree(x)
        factors = _linear(self, step, x, args)[1]
        scale = remainder(self, step, x, args)[1]

        def spread(unit: Array) -> Array:
            transform = self.tables.transform
            kick = transform.back(_noise(self, step, transform.to(restore(unit))), x)
            blocks = transform.to(jax.tree.map(lambda k, h: k * jnp.exp(h), kick, scale))
            moved = tuple(matvec(f, b) for f, b in zip(factors, blocks, strict=True))
            return ravel_pytree(self.tables.transform.back(moved, x))[0]

        root = jax.vmap(spread)(jnp.eye(flat.size, dtype=flat.dtype))
        return root.T @ root

    def sample(self, key: PRNGKeyArray, step: Any, x: State, args: Args = None) -> State:
        """Draw the state at ``ts[step]``, given the one at ``ts[step + 1]``.

        Parameters
        ----------
        key : PRNG key
            Used once.
        step : int
            Index of the earlier time.
        x : pytree
            One unbatched state at the later time.
        args : pytree, optional
            Conditions.

        Returns
        -------
        pytree
            Like ``x``.
        """
        return draw(self, key, step, x, args)[0]

    def log_density(self, step: Any, earlier: State, later: State, args: Args = None) -> Scalar:
        """Log density of a transition back, ``log N(earlier; mean(later), covariance)``.

        Parameters
        ----------
        step : int
            Index of the earlier time.
        earlier, later : pytree
            Unbatched states at ``ts[step]`` and ``ts[step + 1]``.
        args : pytree, optional
            Conditions.

        Returns
        -------
        scalar
            In nats, with respect to the volume of the state's entries.
        """
        transform = self.tables.transform
        factors = _linear(self, step, later, args)[1]
        missed, scale = residual(self, step, earlier, later, args)
        left = transform.to(jax.tree.map(lambda r, h: r * jnp.exp(-h), missed, scale))
        roots = _left(self, step, left)
        white = tuple(solve_lower(r, b) for r, b in zip(roots, left, strict=True))
        total: Any = 0.0
        for factor, root, times in zip(factors, roots, transform.multiplicity(later), strict=True):
            logs = _log_determinants(factor) + _log_determinants(root)
            total = total - (jnp.asarray(times, logs.dtype) * logs).sum()
        for h in jax.tree.leaves(scale):
            total = total - h.sum()
        for leaf in jax.tree.leaves(transform.back(white, later)):
            total = total - (leaf**2).sum() / 2 - leaf.size * math.log(2 * math.pi) / 2
        return total


def residual(
    kernel: LearnedKernel, step: Any, earlier: State, later: State, args: Args
) -> tuple[State, State]:
    """What the mean misses, in units of the linear part's covariance, and its log size."""
    explained, scale = remainder(kernel, step, later, args)
    missed = whitened(kernel, step, earlier, later, args)
    return jax.tree.map(jnp.subtract, missed, explained), scale


def whitened(kernel: LearnedKernel, step: Any, earlier: State, later: State, args: Args) -> State:
    """What the linear part misses, in units of its covariance."""
    transform = kernel.tables.transform
    centre, factors = _linear(kernel, step, later, args)
    white = tuple(
        solve_lower(factor, z - m)
        for factor, z, m in zip(factors, transform.to(earlier), centre, strict=True)
    )
    return transform.back(white, earlier)


def remainder(kernel: LearnedKernel, step: Any, x: State, args: Args) -> tuple[State, State]:
    """Evaluate the network: N in units of the linear part's covariance, and h of the noise."""
    nothing = jax.tree.map(jnp.zeros_like, x)
    if kernel.model is None:
        return nothing, nothing

    def asked(flag: int) -> Any:
        seen = shown(kernel.model, kernel.tables, step, x, args, flag)
        return apply_network(kernel.model, kernel.variables, *seen)

    if not kernel.tables.spread:
        mean, scale = asked(0), nothing
    elif takes_trees(kernel.model):
        mean, scale = asked(0)
    else:
        mean, scale = asked(0), asked(1)
    # No remainder is larger than what some path of the data missed: the chain can't run off.
    mean = jax.tree.map(_bounded, mean, kernel.tables.largest)
    scale = jax.tree.map(lambda h: _bounded(h, _LARGEST), scale)
    if kernel.trust is None:
        return mean, scale
    shares = zip((mean, scale), kernel.trust, strict=True)
    mean, scale = (jax.tree.map(lambda v, a=a: a.astype(v.dtype) * v, part) for part, a in shares)
    return mean, scale


def takes_trees(model: Any) -> bool:
    """Whether a network takes a pair of states for a state, and returns such a pair."""
    return getattr(model, "takes_trees", False)


def shown(
    model: Any, tables: KernelTables, step: Any, x: State, args: Args, flag: int = 0
) -> tuple[Scalar, Any, Args]:
    """Time, state and conditions as the network is shown them."""
    t, scaled, white = inputs(tables, step, x)
    if not tables.spread:
        return t, scaled, (args, white)
    if takes_trees(model):
        return t, (scaled, white), args
    return t, scaled, (args, white, jnp.full_like(t, flag))


def _bounded(values: Array, largest: Any) -> Array:
    """Keep values within a bound, smoothly."""
    largest = jnp.asarray(largest, values.dtype)
    return largest * jnp.tanh(values / largest)


def draw(
    kernel: LearnedKernel,
    key: PRNGKeyArray,
    step: Any,
    x: State,
    args: Args,
    amplitude: Any = None,
) -> tuple[State, State]:
    """Draw the earlier state, and return the remainder beside it."""
    transform = kernel.tables.transform
    centre, factors = _linear(kernel, step, x, args)
    explained, scale = remainder(kernel, step, x, args)
    noise = white_noise(key, x)
    if amplitude is not None:
        noise = jax.tree.map(lambda n: amplitude.astype(n.dtype) * n, noise)
    kick = transform.back(_noise(kernel, step, transform.to(noise)), x)
    white = transform.to(jax.tree.map(lambda n, h, k: n + k * jnp.exp(h), explained, scale, kick))
    return _state(kernel, centre, factors, white, x), explained


def _linear(kernel: LearnedKernel, step: Any, x: State, args: Args) -> tuple[Blocks, Blocks]:
    """Mean of the linear part, and the factors of its covariance, in blocks."""
    tables = kernel.tables
    base = x
    if tables.physics is not None:
        base = tables.physics(tables.ts[step + 1], tables.ts[step], x, args)
    blocks = tables.transform.to(base)
    groups = jax.tree.map(lambda v: v[step], tables.groups)
    features = tables.hats(args, jnp.abs(blocks[0]).dtype)
    centre, factors = [], []
    for group, b in zip(groups, blocks, strict=True):
        offset, gain, factor = group.at(features)
        centre.append(group.mean + offset + matvec(gain, b - group.base_mean))
        factors.append(factor)
    return tuple(centre), tuple(factors)


def _log_determinants(factors: Array) -> Array:
    return jnp.log(jnp.diagonal(factors, axis1=-2, axis2=-1).real).sum(axis=-1)


def _state(
    kernel: LearnedKernel, centre: Blocks, factors: Blocks, white: Blocks, like: State
) -> State:
    moved = tuple(m + matvec(f, w) for m, f, w in zip(centre, factors, white, strict=True))
    return kernel.tables.transform.back(moved, like)


def _left(kernel: LearnedKernel, step: Any, blocks: Blocks) -> Blocks:
    if kernel.left is not None:
        return tuple(root[step] for root in kernel.left)
    return tuple(
        jnp.broadcast_to(jnp.eye(b.shape[1], dtype=b.dtype), (*b.shape, b.shape[1])) for b in blocks
    )


def _noise(kernel: LearnedKernel, step: Any, blocks: Blocks) -> Blocks:
    if kernel.left is None:
        return blocks
    return tuple(matvec(root[step], b) for root, b in zip(kernel.left, blocks, strict=True))


def first_step(own: Any, ts: Any) -> int:
    """Find the step of a kernel at which a grid begins; refuse other steps."""
    if not concrete(own, ts):
        if jnp.shape(own) != jnp.shape(ts):
            raise ValueError(
                f"inside jit a LearnedKernel takes its whole grid of {len(own)} times, got "
                f"{jnp.shape(ts)}"
            )
        return 0
    first = first_of(own, ts)
    if first is None:
        raise ValueError(
            f"a LearnedKernel has its own steps {steps_of(own, ts)}. Learn another one for other "
            "steps, or a score, PathScore()"
        )
    return first
