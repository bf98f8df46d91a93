"""What a release says of itself, in one voice."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

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


def done(*command, **options):
    found = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-2000:]
    return found.stdout


@pytest.mark.slow
def test_wheel_and_source_stand_on_their_own(tmp_path):
    """The wheel is built from the source archive, and works away from the clone, weights and all.

    It fetches the build's own requirements; those of the package are the session's.
    """
    python, dist, there = sys.executable, tmp_path / "dist", tmp_path / "there"
    done(python, "-m", "build", "--outdir", str(dist), str(ROOT))
    (wheel,), (source,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    done(python, "-m", "twine", "check", "--strict", str(wheel), str(source))
    with tarfile.open(source) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"configs/heat.py", "docs/index.md", "tests/test_release.py", "CITATION.cff"} <= names
    done(python, "-m", "pip", "install", "--no-deps", "--target", str(there), str(wheel))
    env = os.environ | {"PYTHONPATH": str(there), "JAX_PLATFORMS": "cpu"}
    program = "import smdp_jax as s; print(s.__file__, *s.pretrained('heat').ts.shape)"
    told = done(python, "-W", "error", "-c", program, cwd=tmp_path, env=env)
    assert told.split() == [str(there / "smdp_jax" / "__init__.py"), "65"]
    done(python, "-m", "smdp_jax", "new", "mine.py", cwd=tmp_path, env=env)
    assert "presets: small" in done(python, "-m", "smdp_jax", "list", ".", cwd=tmp_path, env=env)
