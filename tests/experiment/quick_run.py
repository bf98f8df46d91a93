"""Runs of ``quick.py``, which learns nothing, with a change of its text and of its fields."""

import dataclasses
from pathlib import Path

from smdp_jax.experiment import load_config_file, run_experiment

QUICK = Path(__file__).parents[1] / "configs" / "quick.py"


def run(folder, old="", new="", *, preset="small", said=None, **fields):
    """Run ``quick.py`` with a change of its text and of its fields."""
    text = QUICK.read_text()
    assert old in text
    (folder / "quick.py").write_text(text.replace(old, new, 1) if old else text)
    file = load_config_file(folder / "quick.py")
    config = dataclasses.replace(file.presets[preset], **fields)
    say = (said if said is not None else []).append
    return run_experiment(file, config, preset=preset, runs_dir=folder / "runs", say=say)
