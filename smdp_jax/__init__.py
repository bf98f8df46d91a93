"""Score Matching via Differentiable Physics.

What could have led to this end state, and how sure are we? Learn the score of a simulated
stochastic process, then solve the process backward in time (Holzschuh, Vegetti, Thuerey 2023,
arXiv 2301.10250).
"""

from smdp_jax import datasets, models, training
from smdp_jax.evaluate import CalibrationReport, calibration_report
from smdp_jax.experiment import load
from smdp_jax.experiment.pretrained import Pretrained, pretrained
from smdp_jax.likelihood import LogProb, certify, log_prob
from smdp_jax.objectives import (
    BackwardKernel,
    DenoisingScore,
    ImplicitScore,
    InverseStep,
    MultiStep,
    OneStep,
    PathScore,
    SlicedScore,
)
from smdp_jax.objectives.step_miss import step_miss
from smdp_jax.observations import condition
from smdp_jax.posterior import Path, Posterior, probability_flow, sample_posterior
from smdp_jax.scores.estimate import estimate_kernel
from smdp_jax.scores.gaussian import GaussianReference
from smdp_jax.scores.guidance import dps_guidance, moment_matched_guidance
from smdp_jax.scores.kernel import LearnedKernel
from smdp_jax.scores.learned import LearnedScore, StepCorrection
from smdp_jax.scores.preconditioner import Preconditioner
from smdp_jax.scores.sensors import LinearObservation, Observation
from smdp_jax.scores.sharing import load_score, save
from smdp_jax.scores.step import LearnedStep
from smdp_jax.scores.targets import PowerRamp, SinhRamp, TableRamp, least_variance_ramp
from smdp_jax.scores.twist import LinearTwist
from smdp_jax.sde import SDE, integrated_backward, negated
from smdp_jax.simulate import simulate
from smdp_jax.solve.adaptive import solve_adaptive
from smdp_jax.solve.backward import Langevin, SolveInfo
from smdp_jax.solve.certificate import Certificate
from smdp_jax.solve.conditioned import Conditioned, ConditionInfo
from smdp_jax.solve.gaussian import GaussianStep, GaussianTransition
from smdp_jax.solve.integrate import integrate
from smdp_jax.solve.linear import LinearPart
from smdp_jax.solve.reversal import probability_flow_sde, reverse_sde
from smdp_jax.solve.solvers import flow_map_of
from smdp_jax.solve.tempering import Tempering
from smdp_jax.solve.terms import Splitting
from smdp_jax.solve.time_grids import linear_grid, log_grid
from smdp_jax.training.fit import Fit, TrainingDiverged, fit
from smdp_jax.trajectories import Trajectories, TrajectoryStream

__version__ = "0.1.0"

__all__ = [
    "SDE",
    "BackwardKernel",
    "CalibrationReport",
    "Certificate",
    "ConditionInfo",
    "Conditioned",
    "DenoisingScore",
    "Fit",
    "GaussianReference",
    "GaussianStep",
    "GaussianTransition",
    "ImplicitScore",
    "InverseStep",
    "Langevin",
    "LearnedKernel",
    "LearnedScore",
    "LearnedStep",
    "LinearObservation",
    "LinearPart",
    "LinearTwist",
    "LogProb",
    "MultiStep",
    "Observation",
    "OneStep",
    "Path",
    "PathScore",
    "Posterior",
    "PowerRamp",
    "Preconditioner",
    "Pretrained",
    "SinhRamp",
    "SlicedScore",
    "SolveInfo",
    "Splitting",
    "StepCorrection",
    "TableRamp",
    "Tempering",
    "TrainingDiverged",
    "Trajectories",
    "TrajectoryStream",
    "calibration_report",
    "certify",
    "condition",
    "datasets",
    "dps_guidance",
    "estimate_kernel",
    "fit",
    "flow_map_of",
    "integrate",
    "integrated_backward",
    "least_variance_ramp",
    "linear_grid",
    "load",
    "load_score",
    "log_grid",
    "log_prob",
    "models",
    "moment_matched_guidance",
    "negated",
    "pretrained",
    "probability_flow",
    "probability_flow_sde",
    "reverse_sde",
    "sample_posterior",
    "save",
    "simulate",
    "solve_adaptive",
    "step_miss",
    "training",
]
