"""What is learned: a score, a correction of one step, a step of the physics, a kernel."""

from smdp_jax.scores.estimate import estimate_kernel
from smdp_jax.scores.kernel import LearnedKernel
from smdp_jax.scores.learned import LearnedScore, StepCorrection
from smdp_jax.scores.preconditioner import Preconditioner
from smdp_jax.scores.step import LearnedStep

__all__ = [
    "LearnedKernel",
    "LearnedScore",
    "LearnedStep",
    "Preconditioner",
    "StepCorrection",
    "estimate_kernel",
]
