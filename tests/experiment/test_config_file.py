"""Config files and their fields: what is read, and what is refused in one line."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

import smdp_jax as smdp
from smdp_jax.experiment import ExperimentError, load_config_file
from smdp_jax.experiment.fields import as_json, check_fields, from_json

TINY = Path(__file__).parents[1] / "configs" / "tiny.py"
QUICK = Path(__file__).parents[1] / "configs" / "quick.py"
CONFIGS = Path(__file__).parents[2] / "configs"


def test_config_file_is_described_by_its_docstring():
    file = load_config_file(TINY)
    assert file.name == "tiny"
    assert file.summary == "An Ornstein-Uhlenbeck process, small enough to be run in every test"
    assert file.text == "Gaussian, so that the posterior mean is known."
    assert list(file.presets) == ["small", "paper"]


def test_config_round_trip():
    config = load_config_file(TINY).presets["paper"]
    assert from_json(type(config), json.loads(json.dumps(as_json(config)))) == config
    with pytest.raises(ExperimentError, match=r"other fields.*: colour"):
        from_json(type(config), as_json(config) | {"colour": 1})


@pytest.mark.parametrize("name", ["affine", "quadratic", "heat", "sensors"])
def test_shipped_configs_have_both_presets_and_build(name):
    file = load_config_file(CONFIGS / f"{name}.py")
    assert list(file.presets) == ["small", "paper"]
    assert file.summary
    for config in file.presets.values():
        assert isinstance(config.sde(), smdp.SDE)


def test_missing_config_file_lists_others(tmp_path):
    (tmp_path / "other.py").write_text("PRESETS = {}")
    with pytest.raises(ExperimentError, match=r"missing\.py does not exist; there are .*other\.py"):
        load_config_file(tmp_path / "missing.py")


@pytest.mark.parametrize("text", ["", "PRESETS = {}", "PRESETS = {'small': 1}", "PRESETS = 3"])
def test_config_without_presets(tmp_path, text):
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(ExperimentError, match=r"c\.py must define PRESETS"):
        load_config_file(tmp_path / "c.py")


def test_config_with_a_field_that_json_cannot_hold(tmp_path):
    text = TINY.read_text().replace("widths: tuple[int, ...] = (8,)", "widths: object = range(8)")
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(ExperimentError, match="fields of Config must be numbers, strings"):
        load_config_file(tmp_path / "c.py")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("steps='many'", "steps must be int, got 'many'"),
        ("steps=1.5", "steps must be int, got 1.5"),
        ("steps=True", "steps must be int, got True"),
        ("learning_rate=None", "learning_rate must be float, got None"),
        ("learning_rate=float('nan')", "learning_rate must be finite, got nan"),
        ("widths=(4, 'a')", "widths must be tuple[int, ...], got (4, 'a')"),
        ("widths=4", "widths must be tuple[int, ...], got 4"),
        ("kind='c'", "kind must be typing.Literal['a', 'b'], got 'c'"),
        ("as_flow_map=1", "as_flow_map must be bool, got 1"),
    ],
)
def test_preset_with_an_ill_typed_field(tmp_path, change, message):
    (tmp_path / "c.py").write_text(TINY.read_text().replace('steps=80, kind="b"', change))
    with pytest.raises(ExperimentError, match=re.escape(f"c.py, preset 'paper': {message}")):
        load_config_file(tmp_path / "c.py")


def test_whole_numbers_are_floats_too(tmp_path):
    text = TINY.read_text().replace('steps=80, kind="b"', "learning_rate=1, widths=()")
    (tmp_path / "c.py").write_text(text)
    assert load_config_file(tmp_path / "c.py").presets["paper"].steps == 40


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps=80", "stepz=80", ", line 77 cannot be loaded: TypeError: .*'stepz'"),
        ("import optax", "import optaxx", ", line 12 cannot be loaded: ModuleNotFoundError"),
        ("import optax", "import (", " cannot be loaded: SyntaxError"),
    ],
)
def test_config_that_cannot_be_loaded(tmp_path, old, new, message):
    (tmp_path / "c.py").write_text(TINY.read_text().replace(old, new, 1))
    with pytest.raises(ExperimentError, match=rf"c\.py{message}"):
        load_config_file(tmp_path / "c.py")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"updates": 0}, "updates must be from 1 to 2**31 - 1, got 0"),
        ({"updates": 2**31}, "updates must be from 1 to 2**31 - 1, got 2147483648"),
        ({"draws": -3}, "draws must be from 1 to 2**31 - 1, got -3"),
        ({"noise": 0.0}, "noise must be positive, got 0.0"),
        ({"noise": -1}, "noise must be positive, got -1"),
        ({"noise": float("inf")}, "noise must be finite, got inf"),
        ({"seed": -1}, "seed must be from 0 to 2**32 - 1, got -1"),
        ({"seed": 2**70}, "seed must be from 0 to 2**32 - 1, got 1180591620717411303424"),
        ({"times": (0.5, 0.0)}, "times must be of numbers positive, got (0.5, 0.0)"),
        ({"times": (0.5, "1")}, "times must be tuple[float, ...], got (0.5, '1')"),
    ],
)
def test_fields_out_of_bounds(changes, message):
    config = load_config_file(QUICK).presets["small"]
    with pytest.raises(ExperimentError, match=re.escape(message)):
        check_fields(dataclasses.replace(config, **changes))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("updates: Count", "updates: Cuont", "annotations of Config must be names .*Cuont"),
        ('"small":', '"../../evil":', r"names of presets must be letters.*got '\.\./\.\./evil'"),
        ('"small":', '"a/b":', "names of presets must be letters"),
        ('"small":', '"..":', "names of presets must be letters"),
        ('"small":', '"":', "names of presets must be letters"),
        ('"small":', "7:", "names of presets must be letters.*got 7"),
        ('"small": Config()', '"small": Config', "must define PRESETS"),
        ('"small": Config()', '"small": Config(seed=2**40)', "preset 'small': seed must be from 0"),
    ],
)
def test_files_that_mislead(tmp_path, old, new, message):
    text = QUICK.read_text()
    assert old in text
    future = "from __future__ import annotations\n" if "Cuont" in new else ""
    (tmp_path / "c.py").write_text(future + text.replace(old, new, 1))
    with pytest.raises(ExperimentError, match=message):
        load_config_file(tmp_path / "c.py")
