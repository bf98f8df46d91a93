"""Losses on windows of simulated paths; see ``base.Objective`` for what one is."""

from smdp_jax.objectives.backward_kernel import BackwardKernel
from smdp_jax.objectives.base import Kind, Objective
from smdp_jax.objectives.denoising_score import DenoisingScore
from smdp_jax.objectives.implicit_score import ImplicitScore, SlicedScore
from smdp_jax.objectives.inverse_step import InverseStep
from smdp_jax.objectives.multi_step import MultiStep, OneStep
from smdp_jax.objectives.path_score import PathScore

__all__ = [
    "BackwardKernel",
    "DenoisingScore",
    "ImplicitScore",
    "InverseStep",
    "Kind",
    "MultiStep",
    "Objective",
    "OneStep",
    "PathScore",
    "SlicedScore",
]
