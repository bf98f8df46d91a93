"""How a score is learned: ``smdp_jax.fit``, and its pieces for loops of one's own."""

from smdp_jax.training.pieces import Training, prepare
from smdp_jax.training.updates import TrainingState

__all__ = ["Training", "TrainingState", "prepare"]
