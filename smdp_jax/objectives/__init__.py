"""Losses on windows of simulated paths; see ``base.Objective`` for what one is."""

from smdp_jax.objectives.backward_kernel import BackwardKernel as BackwardKernel
from smdp_jax.objectives.base import Kind as Kind
from smdp_jax.objectives.base import Objective as Objective
from smdp_jax.objectives.denoising_score import DenoisingScore as DenoisingScore
from smdp_jax.objectives.implicit_score import ImplicitScore as ImplicitScore
from smdp_jax.objectives.implicit_score import SlicedScore as SlicedScore
from smdp_jax.objectives.inverse_step import InverseStep as InverseStep
from smdp_jax.objectives.multi_step import MultiStep as MultiStep
from smdp_jax.objectives.multi_step import OneStep as OneStep
from smdp_jax.objectives.path_score import PathScore as PathScore
