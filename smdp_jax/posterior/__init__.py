"""What led to an end state: samples, what only part of it says, how likely it is."""

from smdp_jax.posterior.likelihood import LogProb as LogProb
from smdp_jax.posterior.likelihood import certify as certify
from smdp_jax.posterior.likelihood import log_prob as log_prob
from smdp_jax.posterior.observations import condition as condition
from smdp_jax.posterior.refine import Refined as Refined
from smdp_jax.posterior.refine import refine_posterior as refine_posterior
from smdp_jax.posterior.sampling import Path as Path
from smdp_jax.posterior.sampling import Posterior as Posterior
from smdp_jax.posterior.sampling import probability_flow as probability_flow
from smdp_jax.posterior.sampling import sample_posterior as sample_posterior
