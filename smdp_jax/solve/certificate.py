"""How far a sampler is from the truth: bounds of the evidence, weighted samples."""

import math
from dataclasses import dataclass
from typing import Any

import jax

from smdp_jax.solve.particles import Weighted


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Certificate(Weighted):
    """How far a sampler is from the truth, and what its samples are worth.

    Parameters
    ----------
    elbo, elbo_error : scalar
        Mean log weight of the paths, at most log p(x_end), and its standard error, in nats.
    bound : scalar
        Log of the mean weight: at least as high on average, still at most log p(x_end).
    log_evidence, log_evidence_error : scalar
        The best estimate of log p(x_end) (with resampling, where ``reference`` was given and it
        states the smaller error), and its error in nats: from the spread of the weights, and, where
        few paths count, how far it is too low if the weights are log-normal.
    share, ess : scalar, and array (times - 1,) or None
        Effective size of the weighted paths over their number, and with resampling at ``ts[:-1]``.
    samples, log_weights : pytree, and array (paths,)
        States at ``ts[0]``, leaves (paths, *state), of the run that gave ``log_evidence``, and the
        logs of their weights, of sum 1.
    """

    elbo: Any
    elbo_error: Any
    bound: Any
    log_evidence: Any
    log_evidence_error: Any
    share: Any
    ess: Any
    samples: Any
    log_weights: Any

    @property
    def gap(self) -> Any:
        """Kullback-Leibler distance of sampled paths from the posterior's: evidence less ELBO."""
        return self.log_evidence - self.elbo

    def __str__(self) -> str:
        """One line for a report."""
        paths = len(self.log_weights)
        return (
            f"the sampler is {float(self.gap):.3g} ± "
            f"{math.hypot(float(self.elbo_error), float(self.log_evidence_error)):.2g} nats from "
            f"the truth (log p = {float(self.log_evidence):.6g}, ELBO {float(self.elbo):.6g}); "
            f"{float(self.share):.1%} of {paths} paths count"
        )
