"""What else a researcher would try: other ways from an end state back, to stand beside ours.

Each takes the process, an end state and the time grid, and returns a ``Posterior`` with samples
(num_samples, *state) at ``ts[0]``; ``jax.vmap`` them over end states. What does not fit, from
grids to numbers, is refused with a ValueError that names it.
"""

from smdp_jax.baselines.diffusion_prior import DiffusionPrior as DiffusionPrior
from smdp_jax.baselines.diffusion_prior import fit_diffusion_prior as fit_diffusion_prior
from smdp_jax.baselines.guided import guided_posterior as guided_posterior
from smdp_jax.baselines.guided import search_scale as search_scale
from smdp_jax.baselines.optimised import end_spread as end_spread
from smdp_jax.baselines.optimised import optimise_start as optimise_start
from smdp_jax.baselines.optimised import (
    randomised_maximum_likelihood as randomised_maximum_likelihood,
)
from smdp_jax.baselines.pcn import Chains as Chains
from smdp_jax.baselines.pcn import bridge_residuals as bridge_residuals
from smdp_jax.baselines.pcn import gauss_newton_reference as gauss_newton_reference
from smdp_jax.baselines.pcn import pcn as pcn
from smdp_jax.baselines.pcn import r_hat as r_hat
from smdp_jax.baselines.regression import DropoutResNet as DropoutResNet
from smdp_jax.baselines.regression import RegressedStep as RegressedStep
from smdp_jax.baselines.regression import Regression as Regression
from smdp_jax.baselines.regression import regress as regress
from smdp_jax.baselines.regression import score_only as score_only
