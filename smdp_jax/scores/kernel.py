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
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.checks import concrete
from smdp_jax.scores.blocks import Blocks, Transform, matvec
from smdp_jax.scores.conditions import Hats
from smdp_jax.scores.learned import apply_network
from smdp_jax.scores.regression import Regression, solve_lower
from smdp_jax.sde import SDE, Args, FlowMap, Scalar, State

# The noise may depend on the state by a factor of up to e^2.
_LARGEST = 2.0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KernelTables:
    """All that a kernel knows beside its network.

    Parameters
    ----------
    ts : array (times,)
        Its grid.
    groups : tuple of Regression
        One per grid of the state, each with a leading axis of steps.
    hats : Hats
        Features of the conditions.
    size : tuple of pytree
        Mean and standard deviation of the states, one number per leaf.
    noise : pytree
        g sqrt(dt) of each step, leaves (steps,).
    probe : tuple of pytree
        A state, its conditions, and the physics there: what tells one process from another.
    transform : Transform
        Takes a state to blocks.
    spread : bool
        Whether the network also says how the noise depends on the state.
    physics : callable or None
        b as a function of (t1, t0, x, args); None: b is x itself.
    """

    ts: Any
    groups: tuple[Regression, ...]
    hats: Hats
    size: tuple[Any, Any]
    noise: Any
    probe: tuple[Any, Any, Any]
    transform: Transform = field(metadata={"static": True})
    spread: bool = field(metadata={"static": True})
    physics: FlowMap | None = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LearnedKernel:
    """A backward step as a Gaussian, for each step of its own time grid.

    ``fit.kernel`` of a training with ``BackwardKernel()``, or ``estimate_kernel``, which has no
    network. ``sample_posterior`` walks it; it has transition densities, and is no score.

    Parameters
    ----------
    model : flax.linen.Module or None
        Network N of the remainder, called as ``model.apply(variables, t, x, (args, y, 0))``, and
        with a 1 in place of the 0 for h: t from 0 to 1 over the grid, x the later state divided by
        its standard deviation, y the same state with the covariance of its blocks divided out.
        None: neither.
    variables : pytree
        Its parameters.
    tables : KernelTables
        Gains and covariances.
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
        _check_process(self.tables, sde)

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
    transform = kernel.tables.transform
    centre, factors = _linear(kernel, step, later, args)
    white = tuple(
        solve_lower(factor, z - m)
        for factor, z, m in zip(factors, transform.to(earlier), centre, strict=True)
    )
    explained, scale = remainder(kernel, step, later, args)
    return jax.tree.map(jnp.subtract, transform.back(white, earlier), explained), scale


def remainder(kernel: LearnedKernel, step: Any, x: State, args: Args) -> tuple[State, State]:
    """Evaluate the network: N in units of the linear part's covariance, and h of the noise."""
    nothing = jax.tree.map(jnp.zeros_like, x)
    if kernel.model is None:
        return nothing, nothing
    t, y, seen = inputs(kernel.tables, step, x, args)
    if not kernel.tables.spread:
        return apply_network(kernel.model, kernel.variables, t, y, seen), nothing
    mean, scale = (
        apply_network(kernel.model, kernel.variables, t, y, (*seen[:2], flag))
        for flag in (jnp.zeros_like(t), jnp.ones_like(t))
    )
    return mean, jax.tree.map(lambda h: _LARGEST * jnp.tanh(h / _LARGEST), scale)


def inputs(tables: KernelTables, step: Any, x: State, args: Args) -> tuple[Scalar, State, Args]:
    """Return what the network sees of a later state."""
    groups = jax.tree.map(lambda v: v[step], tables.groups)
    blocks = tables.transform.to(x)
    white = tuple(matvec(g.whitener, b - g.later_mean) for g, b in zip(groups, blocks, strict=True))
    y = tables.transform.back(white, x)
    ts = tables.ts
    t = (ts[step + 1] - ts[0]) / (ts[-1] - ts[0])
    seen = (args, y, jnp.zeros_like(t)) if tables.spread else (args, y)
    return t, jax.tree.map(lambda x, m, s: (x - m) / s, x, *tables.size), seen


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


def white_noise(key: PRNGKeyArray, x: State) -> State:
    """Draw standard normal entries like those of a state."""
    leaves, tree = jax.tree.flatten(x)
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, drawn)


def with_input_noise(
    tables: KernelTables, key: PRNGKeyArray, step: Any, x: State, sigma: Any
) -> State:
    """Add sigma times the noise of one step of the process to a later state."""
    return jax.tree.map(
        lambda x, z, n: x + jnp.asarray(sigma, x.dtype) * n[step] * z,
        x,
        white_noise(key, x),
        tables.noise,
    )


def _check_process(tables: KernelTables, sde: SDE) -> None:
    """Refuse another process, by its noise on the grid and its physics at one state."""
    probe, args, moved = tables.probe
    if not concrete(tables.noise, moved, tables.ts):
        return
    noise, again = jax.jit(lambda t, x, a: (noise_of(sde, t, x), move_of(sde, t, x, a)))(
        tables.ts, probe, args
    )
    for name, old, new in (("noise", tables.noise, noise), ("physics", moved, again)):
        for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
            size = float(jnp.abs(a).max())
            apart = float(jnp.abs(a - b).max())
            if not apart <= 1e-3 * size:
                raise ValueError(
                    f"sde is another process than the kernel's: its {name} differs by {apart:.3g} "
                    f"where the kernel's is up to {size:.3g}; a LearnedKernel belongs to one "
                    "process, learn another one"
                )


def noise_of(sde: SDE, ts: Array, x: State) -> State:
    """g sqrt(dt) of every step of a grid."""
    table = jax.vmap(lambda t: sde.g(t, x))(ts[1:])
    return jax.tree.map(lambda g: g * jnp.sqrt(jnp.diff(ts)).astype(g.dtype), table)


def move_of(sde: SDE, ts: Array, x: State, args: Args) -> State:
    """What the physics makes of a state in the last step."""
    if sde.step is not None:
        moved = sde.step(ts[-2], ts[-1], x, args)
        return jax.tree.map(jnp.subtract, moved, x)
    assert sde.drift is not None
    return sde.drift(ts[-1], x, args)


def first_step(own: Any, ts: Any) -> int:
    """Find the step of a kernel at which a grid begins; refuse other steps."""
    if not concrete(own, ts):
        if jnp.shape(own) != jnp.shape(ts):
            raise ValueError(
                f"inside jit a LearnedKernel takes its whole grid of {len(own)} times, got "
                f"{jnp.shape(ts)}"
            )
        return 0
    own, asked = np.asarray(own), np.asarray(ts)
    nearest = np.abs(asked[:, None] - own[None]).argmin(axis=1)
    near = np.abs(own[nearest] - asked).max() <= 1e-3 * np.diff(own).min()
    if not (near and (np.diff(nearest) == 1).all()):
        raise ValueError(
            f"a LearnedKernel has its own steps ({len(own) - 1} of {np.diff(own).min():g} to "
            f"{np.diff(own).max():g} in [{own[0]:g}, {own[-1]:g}]), got {len(asked) - 1} steps in "
            f"[{asked[0]:g}, {asked[-1]:g}]. Learn another one for other steps, or a score, "
            "PathScore()"
        )
    return int(nearest[0])
