r"""A learned backward kernel: Gaussian steps estimated from the paths, a network for what is left.

The third kind of learned term. For the step from t_{j+1} to t_j, in blocks of a unitary transform,

``x_j = m_j + A_j (b - m_b) + L_j (N(t, x_{j+1}, args) + S R_j z)``,  ``L_j L_j^H = Sigma_j``,

with the gain A_j and the covariance Sigma_j of a linear regression on b (``regression``), a network
N for the remainder in units of that covariance and S(t, x_{j+1}, args) for how its noise depends on
the state (``state_noise``), and R_j the root of the covariance that is left on paths that were not
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

from smdp_jax.checks import check_alike, check_shape, check_that, concrete
from smdp_jax.scores.blocks import matvec
from smdp_jax.scores.kernel_step import (
    coloured,
    draw,
    linear,
    log_determinants,
    remainder,
    residual,
    roots_of,
    state_of,
)
from smdp_jax.scores.own_steps import check_same_process, first_of, steps_of
from smdp_jax.scores.regression import solve_lower
from smdp_jax.scores.tables import KernelTables
from smdp_jax.sde import SDE, Args, Scalar, State

_NEEDS = "needs a score, such as PathScore() learns, got a LearnedKernel"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LearnedKernel:
    """A backward step as a Gaussian, for each step of its own time grid.

    ``fit.kernel`` of a training with ``BackwardKernel()``, or ``estimate_kernel``, which has no
    network. ``sample_posterior`` walks it; it has transition densities, and is no score. The linear
    part is the backward kernel of the smoother of Rauch, Tung, Striebel (1965), with moments of the
    simulated paths.

    Parameters
    ----------
    model : flax.linen.Module or None
        Network of the remainder N and its noise, h and directions w; None: neither. It is called as
        ``model.apply(variables, t, (x, y, 0, ...), args)`` and returns (N, h, w, ...): t from 0 to
        1 over the grid, x the later state divided by its standard deviation, y the same state with
        the covariance of its blocks divided out. Without noise, or if it takes no tuple of states
        (one of ours does and says ``takes_trees``), as ``(t, x, (args, y))`` for N, or
        ``(t, x, (args, y, 0))``, and with a 1 in place of the 0 for h.
    variables : pytree
        Its parameters.
    tables : KernelTables
        Gains and covariances.
    trust : array (3,), optional
        Factors of N, h and w, at most 1, that suit paths that were not trained on; None: 1.
    left : tuple of arrays (steps, K, c, c), optional
        Roots R_j of the covariance that is left of the remainder, per group; None: 1.
    range : SeenRange, optional
        Of the paths over time; ``info.left_range_at`` says where a path back left it.
    """

    kind: ClassVar[str] = "kernel"
    what: ClassVar[str] = "a backward kernel: use fit.kernel"

    model: Any = field(metadata={"static": True})
    variables: Any
    tables: KernelTables
    trust: Any = None
    left: Any = None
    range: Any = None

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
        """
        check_alike("x_end must be like the states of the kernel's paths", self.tables.probe[0], x)

    def check_use(
        self, sde: SDE, ts: Any, noise_level: float, *, whole_steps: bool, use: str
    ) -> None:
        """Refuse other verbs, steps and processes.

        Parameters
        ----------
        sde, ts, noise_level, whole_steps, use
            As for ``LearnedScore.check_use``.

        Raises
        ------
        ValueError
            If it is neither ``sample_posterior`` nor ``certify`` on the kernel's own steps.
        """
        walked = use in ("sample_posterior", "certify")
        check_that(walked, f"{use} {_NEEDS}, whose steps are for sample_posterior and certify")
        own = whole_steps and noise_level == 1
        check_that(own, f"substeps, corrector or noise_level {_NEEDS}, which has its own")
        first_step(self.ts, ts)
        check_same_process(self.ts, self.tables.noise, self.tables.probe, sde)

    def mean(self, step: Any, x: State, args: Args = None) -> State:
        """Mean of the state at ``ts[step]``, given the one at ``ts[step + 1]``.

        Parameters
        ----------
        step, x, args
            Index of the earlier time, one unbatched state at the later time, and conditions.

        Returns
        -------
        pytree
            Like ``x``.
        """
        centre, factors = linear(self, step, x, args)
        white = self.tables.transform.to(remainder(self, step, x, args)[0])
        return state_of(self, centre, factors, white, x)

    def covariance(self, step: Any, x: State, args: Args = None) -> Array:
        """Covariance of one backward step.

        Parameters
        ----------
        step, x, args
            As for ``mean``.

        Returns
        -------
        array (entries, entries)
            Over the entries of all leaves, in the order of ``jax.tree.leaves``.
        """
        flat, restore = ravel_pytree(x)
        factors = linear(self, step, x, args)[1]
        noise = remainder(self, step, x, args)[1]

        def spread(unit: Array) -> Array:
            transform = self.tables.transform
            kick = transform.back(coloured(self, step, transform.to(restore(unit))), x)
            blocks = transform.to(noise.times(kick))
            moved = tuple(matvec(f, b) for f, b in zip(factors, blocks, strict=True))
            return ravel_pytree(self.tables.transform.back(moved, x))[0]

        root = jax.vmap(spread)(jnp.eye(flat.size, dtype=flat.dtype))
        return root.T @ root

    def sample(self, key: PRNGKeyArray, step: Any, x: State, args: Args = None) -> State:
        """Draw the state at ``ts[step]``, given the one at ``ts[step + 1]``.

        Parameters
        ----------
        key, step, x, args
            A PRNG key, and as for ``mean``.

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
        step, earlier, later, args
            Index of a time, unbatched states at ``ts[step]`` and ``ts[step + 1]``, and conditions.

        Returns
        -------
        scalar
            In nats, with respect to the volume of the state's entries.
        """
        transform = self.tables.transform
        factors = linear(self, step, later, args)[1]
        missed, noise = residual(self, step, earlier, later, args)
        left = transform.to(noise.over(missed))
        roots = roots_of(self, step, left)
        white = tuple(solve_lower(r, b) for r, b in zip(roots, left, strict=True))
        total: Any = -noise.log_determinant()
        for factor, root, times in zip(factors, roots, transform.multiplicity(later), strict=True):
            logs = log_determinants(factor) + log_determinants(root)
            total = total - (jnp.asarray(times, logs.dtype) * logs).sum()
        for leaf in jax.tree.leaves(transform.back(white, later)):
            total = total - (leaf**2).sum() / 2 - leaf.size * math.log(2 * math.pi) / 2
        return total


def first_step(own: Any, ts: Any) -> int:
    """Find the step of a kernel at which a grid begins; refuse other steps."""
    if not concrete(own, ts):
        check_shape("inside jit, ts", ts, jnp.shape(own), ", the whole grid of the LearnedKernel")
        return 0
    if (first := first_of(own, ts)) is None:
        said = f"a LearnedKernel has its own steps {steps_of(own, ts)}"
        raise ValueError(f"{said}. Learn another one for other steps, or a score, PathScore()")
    return first
