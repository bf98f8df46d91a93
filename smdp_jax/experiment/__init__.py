"""An experiment from simulation to report, stage by stage, each resumable.

``Experiment`` is what a config file fills in; ``run_experiment`` does the work in a run directory;
``load`` gives a finished run back.
"""

from smdp_jax.experiment.calibrated import calibrated, certified
from smdp_jax.experiment.config_file import ConfigFile, configs_in, load_config_file, write_config
from smdp_jax.experiment.definition import Experiment
from smdp_jax.experiment.end_states import sample_end_states
from smdp_jax.experiment.fields import Count, ExperimentError, NotNegative, Positive, Seed, Share
from smdp_jax.experiment.report import build_report
from smdp_jax.experiment.run import Dataset, Run
from smdp_jax.experiment.run_directory import RunFiles
from smdp_jax.experiment.stages import load, run_experiment
from smdp_jax.experiment.storage import read_arrays, write_arrays

__all__ = [
    "ConfigFile",
    "Count",
    "Dataset",
    "Experiment",
    "ExperimentError",
    "NotNegative",
    "Positive",
    "Run",
    "RunFiles",
    "Seed",
    "Share",
    "build_report",
    "calibrated",
    "certified",
    "configs_in",
    "load",
    "load_config_file",
    "read_arrays",
    "run_experiment",
    "sample_end_states",
    "write_arrays",
    "write_config",
]
