"""What a release says of itself, in one voice."""

import re
import tomllib
from pathlib import Path

import smdp_jax

ROOT = Path(__file__).parents[1]


def test_one_version():
    told = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert told is not None
    assert told[1] == smdp_jax.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" in project["dynamic"]


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
