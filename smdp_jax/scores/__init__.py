"""What is learned: a score, a correction of one step, or a step of the physics."""

from smdp_jax.scores.learned import LearnedScore, StepCorrection
from smdp_jax.scores.preconditioner import Preconditioner
from smdp_jax.scores.step import LearnedStep

__all__ = ["LearnedScore", "LearnedStep", "Preconditioner", "StepCorrection"]
