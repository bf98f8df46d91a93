"""Score Matching via Differentiable Physics.

What could have led to this end state, and how sure are we? Learn the score of a simulated
stochastic process, then solve the process backward in time (Holzschuh, Vegetti, Thuerey 2023,
arXiv 2301.10250).
"""

from smdp_jax import datasets as datasets
from smdp_jax import models as models
from smdp_jax import training as training
from smdp_jax.evaluate import CalibrationReport as CalibrationReport
from smdp_jax.evaluate import calibration_report as calibration_report
from smdp_jax.experiment import load as load
from smdp_jax.experiment.pretrained import Pretrained as Pretrained
from smdp_jax.experiment.pretrained import pretrained as pretrained
from smdp_jax.objectives import BackwardKernel as BackwardKernel
from smdp_jax.objectives import DenoisingScore as DenoisingScore
from smdp_jax.objectives import ImplicitScore as ImplicitScore
from smdp_jax.objectives import InverseStep as InverseStep
from smdp_jax.objectives import MultiStep as MultiStep
from smdp_jax.objectives import OneStep as OneStep
from smdp_jax.objectives import PathScore as PathScore
from smdp_jax.objectives import SlicedScore as SlicedScore
from smdp_jax.objectives.step_miss import step_miss as step_miss
from smdp_jax.posterior import LogProb as LogProb
from smdp_jax.posterior import Path as Path
from smdp_jax.posterior import Posterior as Posterior
from smdp_jax.posterior import Refined as Refined
from smdp_jax.posterior import certify as certify
from smdp_jax.posterior import condition as condition
from smdp_jax.posterior import log_prob as log_prob
from smdp_jax.posterior import probability_flow as probability_flow
from smdp_jax.posterior import refine_posterior as refine_posterior
from smdp_jax.posterior import sample_posterior as sample_posterior
from smdp_jax.scores.estimate import estimate_kernel as estimate_kernel
from smdp_jax.scores.gaussian import GaussianReference as GaussianReference
from smdp_jax.scores.guidance import dps_guidance as dps_guidance
from smdp_jax.scores.guidance import moment_matched_guidance as moment_matched_guidance
from smdp_jax.scores.kernel import LearnedKernel as LearnedKernel
from smdp_jax.scores.learned import LearnedScore as LearnedScore
from smdp_jax.scores.learned import StepCorrection as StepCorrection
from smdp_jax.scores.preconditioner import Preconditioner as Preconditioner
from smdp_jax.scores.sensors import LinearObservation as LinearObservation
from smdp_jax.scores.sensors import Observation as Observation
from smdp_jax.scores.sharing import load_score as load_score
from smdp_jax.scores.sharing import save as save
from smdp_jax.scores.step import LearnedStep as LearnedStep
from smdp_jax.scores.targets import PowerRamp as PowerRamp
from smdp_jax.scores.targets import SinhRamp as SinhRamp
from smdp_jax.scores.targets import TableRamp as TableRamp
from smdp_jax.scores.targets import least_variance_ramp as least_variance_ramp
from smdp_jax.scores.twist import LinearTwist as LinearTwist
from smdp_jax.sde import SDE as SDE
from smdp_jax.sde import integrated_backward as integrated_backward
from smdp_jax.sde import negated as negated
from smdp_jax.simulate import simulate as simulate
from smdp_jax.solve.adaptive import solve_adaptive as solve_adaptive
from smdp_jax.solve.backward import Langevin as Langevin
from smdp_jax.solve.backward import SolveInfo as SolveInfo
from smdp_jax.solve.certificate import Certificate as Certificate
from smdp_jax.solve.conditioned import Conditioned as Conditioned
from smdp_jax.solve.conditioned import ConditionInfo as ConditionInfo
from smdp_jax.solve.gaussian import GaussianStep as GaussianStep
from smdp_jax.solve.gaussian import GaussianTransition as GaussianTransition
from smdp_jax.solve.integrate import integrate as integrate
from smdp_jax.solve.linear import LinearPart as LinearPart
from smdp_jax.solve.reversal import probability_flow_sde as probability_flow_sde
from smdp_jax.solve.reversal import reverse_sde as reverse_sde
from smdp_jax.solve.solvers import flow_map_of as flow_map_of
from smdp_jax.solve.tempering import Tempering as Tempering
from smdp_jax.solve.terms import Splitting as Splitting
from smdp_jax.solve.time_grids import linear_grid as linear_grid
from smdp_jax.solve.time_grids import log_grid as log_grid
from smdp_jax.training.divergence import TrainingDiverged as TrainingDiverged
from smdp_jax.training.fit import Fit as Fit
from smdp_jax.training.fit import fit as fit
from smdp_jax.trajectories import Trajectories as Trajectories
from smdp_jax.trajectories import TrajectoryStream as TrajectoryStream

__version__ = "0.1.0"
