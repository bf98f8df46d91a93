"""Every code block of the documentation runs: those of one page in order, in one namespace."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import matplotlib as mpl
import pytest

from smdp_jax import __main__ as command_line
from smdp_jax import compiled

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


def programs(page):
    """Code blocks of a page with the line each begins at, as it is read from top to bottom."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start()) + 2, m[1]) for m in BLOCK.finditer(text)]


def smaller(page, code):
    """The code of a page in the sizes of a test."""
    for written, small in SIZES.get(page.stem, {}).items():
        code = code.replace(written, small)
    return code


SIZES = {
    "gallery": {
        "4000": "60",
        "4400": "84",
        "steps=2000": "steps=4",
        "100, key": "4, key",
        'samples": 100': 'samples": 4',
        "unseen, key": "unseen, num_samples=19, key",
        "0.4, 40)": "0.1, 10)",  # fewer steps, of the same length
        "0.5, 100)": "0.05, 10)",
        "10.0, 40)": "2.5, 10)",
        "1.0, 40)": "0.25, 10)",
    }
}
QUICKLY = {"calibration", "choosing", "data", "gallery", "jax_cfd", "lost_paths", "plain_numpy"}
QUICKLY |= {"quickstart", "sensors", "simulator"}  # exponax trains for longer
WITH_CODE = [pytest.param(page, id=page.stem) for page in PAGES if programs(page)]
WRITTEN = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


@pytest.fixture
def compiled_quickly(page, monkeypatch):
    """Pages compile for minutes and compute for seconds; XLA's flags are those of the session."""
    if page.stem not in QUICKLY:
        yield
        return
    monkeypatch.setattr(compiled, "_PLAIN", compiled._QUICK)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.filterwarnings("ignore:one backward step misses")  # few updates, on purpose
@pytest.mark.filterwarnings("ignore:.* paths (were lost|left the range)")
@pytest.mark.filterwarnings("ignore:fit. posteriors of")
@pytest.mark.filterwarnings("ignore:symmetric-gradient extrapolation")  # PhiFlow's, as it loads
@pytest.mark.parametrize("page", WITH_CODE)
def test_page(page, tmp_path, monkeypatch):
    """In a session like a user's: JAX's usual promotion, files in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    seen = {}
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        mpl.rc_context(),
    ):
        for line, code in programs(page):
            tried = "\n" * (line - 1) + smaller(page, code)
            exec(compile(tried, str(page), "exec"), seen)
    for name, value in seen.items():
        if name in ("past", "good", "ways"):
            for part in value.values() if isinstance(value, dict) else [value]:
                for leaf in jax.tree.leaves(getattr(part, "samples", part)):
                    assert jax.numpy.isfinite(leaf).all(), f"{page.name}: {name}"

    if page.stem == "quickstart":  # what it prints is what the page shows, digits apart
        rows = re.compile(r"^(?:met|MISSED)? +(\S.*?)  +", re.M)
        shown = re.findall(r"```text\n(.*?)```", page.read_text("utf-8"), re.S)
        assert rows.findall(shown[0]) == rows.findall(str(seen["report"]))


def test_pages_name_what_exists():
    """Links between pages and into the repository lead somewhere; so do `smdp.` names in text."""
    import smdp_jax as smdp

    for page in WRITTEN:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
        for name in re.findall(r"\bsmdp\.([A-Za-z_]\w*)", text):
            assert hasattr(smdp, name), f"{page.name}: smdp.{name}"


def test_pages_know_the_weights_that_there_are():
    folder = ROOT / "smdp_jax" / "experiment" / "weights"
    text = (ROOT / "docs" / "quickstart.md").read_text("utf-8")
    (told,) = re.findall(r"come along: (.*?)\.\n", text, re.S)
    assert set(re.findall(r"`(\w+)`", told)) == {file.stem for file in folder.glob("*.smdp")}


def test_four_problems_take_twenty_lines_each():
    """A simulator, its prior, learning, sampling, calibration: of all that a newcomer needs."""
    problems = [code for _, code in programs(ROOT / "docs" / "gallery.md")]
    assert len(problems) == 4
    for code in problems:
        assert sum(bool(line.strip()) for line in code.splitlines()) <= 20, code
        for verb in ("SDE", "simulate", "fit", "sample_posterior", "calibration_report"):
            assert f"smdp.{verb}(" in code


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.stem)
def test_commands_are_what_the_command_line_takes(page, tmp_path, monkeypatch, capsys):
    """Shell blocks and tables: files are there, words are understood; nothing is run."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"python -m smdp_jax ((?:(?!&&)[^`\n#|])+)", text)
    monkeypatch.setattr(command_line, "run_experiment", lambda *a, **k: None)
    monkeypatch.setattr(command_line, "_join", lambda given: None)
    for folder in ("configs", "smdp_jax"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    command_line.main(["new", "mine.py", "--field", "64", "--periodic"])
    for words in map(str.split, found):
        if words[0] == "new":
            Path("mine.py").unlink()
        if words[:2] not in (["run", "CONFIG"], ["run", "..."]):
            assert command_line.main(words) == 0, (words, capsys.readouterr().err)


def test_extras_that_are_named_exist():
    """In pages, and in messages about what is missing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    sources = [*WRITTEN, *(ROOT / "smdp_jax").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    named = set()
    for source in sources:
        for names in re.findall(r"(?:smdp_jax|\"\.)\\?\[([a-z0-9,]+)\\?\]", source.read_text()):
            named |= set(names.split(","))
    assert named <= set(project["optional-dependencies"])
    assert named >= {"plots", "video", "data", "exponax", "phiflow", "docs", "dev", "cuda12"}


@pytest.mark.slow
def test_builds_without_a_warning_and_without_a_network(tmp_path):
    """All that is fetched by a page of ours is a file of ours."""
    command = [sys.executable, "-m", "sphinx", "-EW", "--keep-going", "-q", "docs", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    for page in tmp_path.rglob("*.html"):
        fetched = re.findall(
            r"<(?:script|link|img)[^>]*(?:src|href)=\"(https?:[^\"]+)", page.read_text()
        )
        assert not fetched, f"{page}: {fetched}"
    theory = (tmp_path / "theory.html").read_text()
    assert theory.count("<math") > 40
    labels = (ROOT / "docs" / "theory.md").read_text().count(":label:")
    assert theory.count('class="eqno"') == labels > 10
