"""What a stage depends on: found in the source, and compared."""

from pathlib import Path

import pytest

from smdp_jax.experiment import load_config_file
from smdp_jax.experiment.slices import METHODS, Slice, slice_of_stage

QUICK = Path(__file__).parents[1] / "configs" / "quick.py"
STAGES = list(METHODS)


def slices(folder, text):
    (folder / "c.py").write_text(text)
    config = load_config_file(folder / "c.py").presets["small"]
    return {stage: slice_of_stage(text, config, stage) for stage in STAGES}


def changed(tmp_path, new, old=None):
    before, after = slices(tmp_path, old or QUICK.read_text()), slices(tmp_path, new)
    return [stage for stage in STAGES if before[stage].changes(after[stage])]


@pytest.mark.parametrize(
    ("old", "new", "stages"),
    [
        ("arrays[", "2 * arrays[", ["evaluate"]),
        ("return {}", "return dict()", ["report"]),
        ("np.full(", "1.0 * np.full(", ["sample"]),
        ("MLP((2,))", "MLP((3,))", ["train", "sample"]),
        ("np.ones(1)", "np.zeros(1)", ["train"]),
        ("drift", "drift", []),
        ("-x, diff", "-2 * x, diff", ["sample"]),
        # A constant that a helper of one stage reads; what comes later depends on the data.
        ("SHIFT = 1.0", "SHIFT = 2.0", STAGES),
        ("return x + SHIFT", "return SHIFT + x", STAGES),
        ("return x + SHIFT", "return x + SHIFT  # as before", []),
        ('"""Move."""', '"""Shift."""', []),
        ("draws: Count = 4", "draws: Count = 6", ["sample"]),
        ("updates: Count = 3", "updates: Count = 7", ["train"]),
        ("import jax\n", "import math\n\nimport jax\n", []),
        ("import numpy as np", "import numpy.random as np", ["train", "sample"]),
        ("PRESETS = {", "print\nPRESETS = {", STAGES),  # what runs on loading concerns all
        ("def sample", "def unused(self):\n        return 1\n\n    def sample", []),
    ],
)
def test_stages_that_a_change_concerns(tmp_path, old, new, stages):
    text = QUICK.read_text()
    if old != new:
        assert old in text
    assert changed(tmp_path, text.replace(old, new, 1)) == stages


@pytest.mark.parametrize(
    "used",
    [
        "vars(self)",
        "helper(self)",
        "self.__dict__",
        "helper(run.config)",
        "[c.noise for c in [self]]",
        "super(Config, self).evaluate",
    ],
)
def test_what_cannot_be_followed_counts_as_everything(tmp_path, used):
    text = QUICK.read_text().replace("return [Metric(", f"_ = {used}\n        return [Metric(")
    text = text.replace("def shifted", "def helper(c):\n    return c\n\n\ndef shifted")
    for change in ("updates: Count = 9", "draws: Count = 9"):
        assert "evaluate" in changed(
            tmp_path, text.replace(change[:-1] + "3", change), old=text
        ) or ("evaluate" in changed(tmp_path, text.replace(change[:-1] + "4", change), old=text))


def test_fields_read_elsewhere_are_found(tmp_path):
    text = QUICK.read_text().replace('Metric("lost", jnp.nan)', 'Metric("lost", scaled(run))')
    text = text.replace("def shifted", "def scaled(r):\n    return r.config.draws\n\n\ndef shifted")
    assert changed(tmp_path, text.replace("= 4", "= 5"), old=text) == ["sample", "evaluate"]


def test_inherited_methods_are_followed(tmp_path):
    text = QUICK.read_text()
    text = text.replace(
        "class Config(Experiment):",
        "class Base(Experiment):\n    draws: Count = 4\n    def evaluate(self, run, arrays):\n"
        "        return [Metric('d', self.draws)]\n\n\n@dataclass(frozen=True)\n"
        "class Config(Base):",
    )
    own = text[text.rindex("    def evaluate") : text.rindex("    def figures")]
    text = text.replace(own, "")
    new = text.replace("Metric('d', self.draws)", "Metric('d', 2 * self.draws)")
    assert changed(tmp_path, new, old=text) == ["evaluate"]


def test_changes_are_said():
    old = Slice({"a": 1, "b": (2,)}, {".f": "1", "g": "2"})
    assert old.changes(Slice({"a": 1, "b": (3,)}, {".f": "1", "g": "2"})) == [
        "b was (2,), now (3,)"
    ]
    new = Slice({"a": 1, "b": (2,)}, {".f": "3", "h": "2"})
    assert old.changes(new) == ["the code of f, g, h has changed"]
    assert not old.changes(Slice(**old.as_json()))
