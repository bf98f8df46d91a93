"""What else a researcher would try: other ways from an end state back, to stand beside ours.

Each takes the process, an end state and the time grid, and returns a ``Posterior`` with samples
(num_samples, *state) at ``ts[0]``; ``jax.vmap`` them over end states. What does not fit, from
grids to numbers, is refused with a ValueError that names it.
"""

from smdp_jax.baselines.diffusion_prior import DiffusionPrior, fit_diffusion_prior
from smdp_jax.baselines.guided import guided_posterior, search_scale
from smdp_jax.baselines.optimised import end_spread, optimise_start, randomised_maximum_likelihood
from smdp_jax.baselines.pcn import Chains, bridge_residuals, gauss_newton_reference, pcn, r_hat
from smdp_jax.baselines.regression import (
    DropoutResNet,
    RegressedStep,
    Regression,
    regress,
    score_only,
)

__all__ = [
    "Chains",
    "DiffusionPrior",
    "DropoutResNet",
    "RegressedStep",
    "Regression",
    "bridge_residuals",
    "end_spread",
    "fit_diffusion_prior",
    "gauss_newton_reference",
    "guided_posterior",
    "optimise_start",
    "pcn",
    "r_hat",
    "randomised_maximum_likelihood",
    "regress",
    "score_only",
    "search_scale",
]
