r"""The remainder of a backward kernel: what a linear regression leaves of the backward step.

The step is ``x_j = m_j + A_j (b - m_b) + L_j (N + S R_j z)`` (``scores.kernel``). Gains and
covariances are estimated from the paths beforehand; the network minimises per entry, for the
whitened miss ``y = L_j^{-1} (x_j - m_j - A_j (b - m_b))``,

``E [|S^{-1} (y - N(t, x_{j+1}, args))|^2 + 2 log |S|]``,

so that the kernel's mean is E[x_j | x_{j+1}] and its noise as large as the miss of that (Nix,
Weigend 1994). The loss is 1 where N = 0 and S = 1, and less by as much as they explain.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.checks import check_counts, check_within
from smdp_jax.objectives.base import Objective, check_fits
from smdp_jax.objectives.step_miss import mean_square
from smdp_jax.scores.estimate import kernel_tables
from smdp_jax.scores.kernel import LearnedKernel
from smdp_jax.scores.kernel_step import residual, shown
from smdp_jax.scores.leftover import miss_of, noise_left, trusted
from smdp_jax.scores.moments import Base, check_base
from smdp_jax.scores.ranks import calibrated
from smdp_jax.scores.tables import KernelTables, with_input_noise
from smdp_jax.sde import SDE, Scalar
from smdp_jax.trajectories import Trajectories

_FEW_ENTRIES = 16
_FEW_PATHS = 100


@dataclass(frozen=True)
class BackwardKernel(Objective):
    """Learn a backward kernel: Gaussian steps from a regression, a network for the remainder.

    A chain of its steps can't blow up on what is linear, whatever the simulator and the step, and
    has the spread of finite steps. It belongs to the time grid of the paths. ``fit`` returns it as
    ``fit.kernel``, for ``sample_posterior``.

    Parameters
    ----------
    windows : tuple of int
        Steps per window, trained one after the other; longer ones unroll the mean without
        re-reading the path.
    input_noise : float
        Noise added to the later state in training, in units of g sqrt(dt), also in the regression:
        the kernel is then that of a process with more noise, less sharp and more robust against
        its own errors. Good values: 0 where paths stay on the data; where they do not, 1 with
        ``base="state"`` on a few dozen times, 2 on a hundred and more.
    transform : str or pair of callables
        Where the regression has blocks: "periodic" (Fourier modes), "cosine" (fields between
        walls), "points" (entries of the grid), "joint" (one block of all entries), or a unitary
        pair (forward, inverse) of functions of one field. "auto" compares their likelihood of
        unseen steps, and takes "points" for fields far from Gaussian, periodic ones apart, unless
        blocks explain much more.
    base : "auto", "state" or "inverse"
        b: the later state, or the inverse-physics step of it, which explains more where the
        inverse is good, and sends paths astray where it amplifies. It moves no state further than
        it moved some training path's. "auto" walks chains without a network back from the ends of
        unseen paths, and takes the inverse where they come twice as near to those paths' starts.
    spread : bool
        Let the network also say how the size of the noise depends on the state: posteriors of
        nonlinear processes are narrow here and wide there. One call of a network gives both, or
        two, of one that takes arrays alone.
    directions : int
        Along how many directions, each of them a state that the network gives, the noise is larger
        besides: correlations that depend on the state. Networks that take arrays alone know none.
    hold_out, grid_axes : float, int, optional
        Share of the paths on which the noise that is left is measured, where ``fit`` gets no
        ``validation``, default 0.1, or 0.25 for states of up to 16 numbers, which say little each;
        leading axes of the leaves that are the grid, default all, but for a short last one.

    Raises
    ------
    ValueError
        For settings out of range.
    """

    honours_masks = False  # gains and covariances are those of whole paths
    windows: tuple[int, ...] = (1,)
    input_noise: float = 0.0
    transform: Any = "auto"
    base: Base = "auto"
    spread: bool = True
    directions: int = 2
    hold_out: float | None = None
    grid_axes: int | None = None

    def __post_init__(self) -> None:
        check_counts(owner=self, windows=self.windows)
        noise, directions = self.input_noise, self.directions
        check_within("[0, inf]", owner=self, input_noise=noise, directions=directions)
        check_base("BackwardKernel.base", self.base)
        if self.hold_out is not None:
            check_within("(0, 1)", owner=self, hold_out=self.hold_out)

    def kind(self, sde: SDE) -> str:
        """A kernel, whatever the process."""
        return "kernel"

    def check(self, sde: SDE, data: Trajectories) -> None:
        """Windows are no longer than the paths."""
        check_fits(self.windows, data)

    def split(self, data: Trajectories) -> tuple[Trajectories, Trajectories]:
        """Set the last share of ``hold_out`` aside."""
        few = _entries(data) <= _FEW_ENTRIES and data.num_samples >= _FEW_PATHS
        share = 0.25 if few else 0.1
        return data.split(share if self.hold_out is None else self.hold_out)

    def scales(self, sde: SDE, data: Trajectories, precondition: bool) -> KernelTables:
        """Gains and covariances of all steps."""
        directions = min(self.directions, _entries(data) - 1) if self.spread else 0
        how: dict[str, Any] = {"input_noise": self.input_noise, "spread": self.spread}
        how |= {"base": self.base, "axes": self.grid_axes, "directions": directions}
        key = jax.random.key(0)
        return kernel_tables(sde, data, self.transform, network=True, key=key, **how)

    def seen(self, model: Any, scales: KernelTables, data: Trajectories) -> tuple[Any, Any, Any]:
        """A state in the kernel's units, and the same with its covariance divided out."""
        return shown(model, scales, data.num_times - 2, data.at(0, -1), data.args_of(0))

    def learned(
        self, sde: SDE, model: Any, variables: Any, scales: KernelTables, ts: Any
    ) -> LearnedKernel:
        """The kernel, its noise not measured yet."""
        return LearnedKernel(model, variables, scales)

    def finish(
        self, learned: LearnedKernel, held_out: Trajectories, key: PRNGKeyArray
    ) -> LearnedKernel:
        """Measure how far the network is to be trusted, and the noise that it leaves."""
        k_trust, k_noise, k_chain = jax.random.split(key, 3)
        learned = trusted(learned, held_out, self.input_noise, k_trust)
        learned = noise_left(learned, held_out, self.input_noise, k_noise)
        # With noise on the inputs, how the chain is to be walked is not known here.
        return learned if self.input_noise else calibrated(learned, held_out, k_chain)

    def miss(self, sde: SDE, learned: LearnedKernel, data: Trajectories, key: Any) -> Array:
        """Mean square of what is left, in units of the linear part's covariance."""
        return miss_of(learned, data.at(0, 0))

    def loss(
        self, learned: LearnedKernel, sde: SDE, window: Trajectories, constants: None, key: Any
    ) -> Scalar:
        """Mean over steps and entries of the squared whitened miss, over the steps unrolled."""
        steps = window.ts.shape[0] - 1
        first = jnp.searchsorted(learned.tables.ts, window.ts[0])
        x = jax.tree.map(lambda v: v[-1], window.xs)
        if self.input_noise > 0:
            x = with_input_noise(learned.tables, key, first + steps - 1, x, self.input_noise)

        def back(x: Any, n: Any) -> tuple[Any, Scalar]:
            earlier = jax.tree.map(lambda v: v[n], window.xs)
            left, noise = residual(learned, first + n, earlier, x, window.args)
            square = mean_square(noise.over(left))
            entries = sum(leaf.size for leaf in jax.tree.leaves(left))
            # Twice the negative log likelihood per entry, up to a constant.
            miss = square + 2 * noise.log_determinant().astype(square.dtype) / entries
            missed = miss / (steps - n).astype(miss.dtype)
            return learned.mean(first + n, x, window.args), missed

        if steps == 1:
            return back(x, jnp.asarray(0))[1]
        return jax.lax.scan(jax.checkpoint(back), x, jnp.arange(steps - 1, -1, -1))[1].mean()


def _entries(data: Trajectories) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(data.at(0, 0)))
