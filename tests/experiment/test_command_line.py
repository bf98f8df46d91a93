"""The command line: what is listed, parsed, refused, and the exit status."""

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from smdp_jax import __main__ as command_line
from smdp_jax.experiment import load_config_file

ROOT = Path(__file__).parents[2]
TINY = Path(__file__).parents[1] / "configs" / "tiny.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    assert command_line.main(["run", str(TINY), "--runs-dir", str(runs), "--steps", "20"]) == 0
    return runs / "tiny" / "small"


@pytest.fixture
def parsed(monkeypatch):
    """What ``run`` would have run."""
    calls = []
    monkeypatch.setattr(command_line, "run_experiment", lambda *a, **k: calls.append((*a, k)))
    return calls


def status_of(*words):
    """Exit status, whether tyro or we give it."""
    try:
        return command_line.main([str(word) for word in words])
    except SystemExit as leaving:
        return leaving.code


def test_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "smdp_jax", "list"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    configs = [path.name for path in (ROOT / "configs").glob("*.py")]
    assert {"affine.py", "quadratic.py", "heat.py"} <= set(configs)
    for name in configs:
        assert f"configs/{name}\n    " in done.stdout
    assert done.stdout.count("presets: small, paper") == len(configs)


def test_help(capsys):
    assert status_of("--help") == 0
    assert "Commands:" in capsys.readouterr().out
    assert status_of() == 2
    assert status_of("walk") == 2
    assert "unknown command 'walk'; there are new, run, report" in capsys.readouterr().err
    assert status_of("run", "--help") == 0
    assert status_of("run") == 1
    assert "usage: " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["affine", "quadratic", "heat", "sensors"])
def test_help_of_run_lists_every_field(capsys, name):
    path = ROOT / "configs" / f"{name}.py"
    assert status_of("run", path, "--help") == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    config = load_config_file(path).presets["small"]
    for field in dataclasses.fields(config):
        option = re.split(rf"--{field.name.replace('_', '-')}[, ]", shown, maxsplit=1)
        assert len(option) == 2, field.name
        meaning, default = option[1].split("(default: ", 1)
        assert meaning.strip().endswith("."), field.name  # a sentence of its own
        value = getattr(config, field.name)
        value = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert default.split(")")[0] in (value, str(value).replace("_", ""))


def test_defaults_are_those_of_the_preset(parsed):
    assert status_of("run", TINY) == 0
    assert status_of("run", TINY, "--preset", "paper", "--seed", "7") == 0
    assert status_of("run", TINY, "--preset=paper", "--widths", "3", "5", "--as-flow-map") == 0
    assert status_of("run", TINY, "--runs-dir", "x", "--kind", "b") == 0
    configs = [call[1] for call in parsed]
    assert [config.steps for config in configs] == [40, 80, 80, 40]
    assert [config.seed for config in configs] == [0, 7, 0, 0]
    assert configs[2].widths == (3, 5)
    assert configs[2].as_flow_map
    assert [config.kind for config in configs] == ["a", "b", "b", "b"]
    assert [call[2]["preset"] for call in parsed] == ["small", "paper", "paper", "small"]
    assert parsed[3][2]["runs_dir"] == Path("x")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--colour", "1"], "--colour"),
        (["--steps", "many"], "--steps"),
        (["--steps", "1.5"], "--steps"),
        (["--kind", "c"], "--kind"),
        (["--preset", "huge"], "--preset"),
        (["--steps"], "--steps"),
    ],
)
def test_unknown_and_ill_typed_fields(capsys, parsed, words, message):
    assert status_of("run", TINY, *words) == 2
    assert message in capsys.readouterr().err
    assert not parsed


@pytest.mark.parametrize(("name", "cases"), [("affine", 3), ("quadratic", 30)])
def test_cases_that_make_no_groups(capsys, tmp_path, name, cases):
    words = ["--runs-dir", tmp_path, "--test-cases", cases]
    assert status_of("run", ROOT / "configs" / f"{name}.py", *words) == 1
    assert f"test_cases must be a multiple of 20, got {cases}" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_missing_config(capsys):
    assert status_of("run", ROOT / "configs" / "missing.py") == 1
    error = capsys.readouterr().err
    assert "missing.py does not exist; there are" in error
    assert "affine.py" in error
    assert "Traceback" not in error


def test_errors_of_the_library_are_short(capsys, tmp_path, monkeypatch):
    words = ["run", TINY, "--runs-dir", tmp_path, "--steps", "0"]
    assert status_of(*words) == 1
    error = capsys.readouterr().err
    assert "error: steps must be at least 1, got 0\n(SMDP_TRACEBACK=1 shows where)" in error
    monkeypatch.setenv("SMDP_TRACEBACK", "1")
    with pytest.raises(ValueError, match="steps must be at least 1"):
        status_of(*words)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "sample", "list"])
def test_errors_of_the_system_take_one_line(command, capsys, tmp_path, finished, request):
    """A file where a folder has to be: what was said, no traceback, and how to get one."""
    file = tmp_path / "file"
    file.write_text("")
    ends = tmp_path / "ends.npz"
    np.savez(ends, x_end=np.ones((1, 1), np.float32))
    words = {
        "run": ["run", TINY, "--runs-dir", file],
        "sample": ["sample", finished, ends, "--output", file / "past.npz"],
        "list": ["list", file / "configs"],
    }[command]
    assert status_of(*words) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert str(file) in lines[0]


def test_another_configuration_is_refused(capsys, finished):
    runs = finished.parents[1]
    assert status_of("run", TINY, "--runs-dir", runs, "--steps", "21") == 1
    assert "steps was 20, now 21; choose another --runs-dir" in capsys.readouterr().err


def test_interrupt(capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "run_experiment", interrupted)
    assert status_of("run", TINY) == 130
    assert "the same command goes on from here" in capsys.readouterr().err


def test_missing_matplotlib_is_told_before_work(capsys, monkeypatch, parsed):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert status_of("run", TINY) == 1
    assert 'pip install "smdp_jax[plots]"' in capsys.readouterr().err
    assert not parsed


def test_report_is_built_again_from_the_files(finished, tmp_path, capsys, monkeypatch):
    run_dir = Path(shutil.copytree(finished, tmp_path / "copy"))
    page, picture = (run_dir / name for name in ("report.html", "figures/training.png"))
    first = page.read_text(), picture.read_bytes()
    page.unlink()
    picture.unlink()
    for network in ("fit", "sample_posterior"):
        monkeypatch.delattr(f"smdp_jax.{network}")  # nothing is computed
    assert status_of("report", run_dir) == 0
    assert str(page) in capsys.readouterr().out
    assert (page.read_text(), picture.read_bytes()) == first
    # Fields that differ from the preset are in the command that makes the run again.
    assert "run tiny.py --preset small --steps 20" in first[0]
    (run_dir / "samples.npz").unlink()
    assert status_of("report", run_dir) == 1
    assert "is not finished: it has no samples.npz" in capsys.readouterr().err


def test_sample(finished, tmp_path, capsys):
    np.savez(tmp_path / "ends.npz", x_end=np.ones((2, 1)))
    output = tmp_path / "past.npz"
    words = ["sample", finished, tmp_path / "ends.npz", "--num-samples", 3, "--output", output]
    assert status_of(*words) == 0
    assert capsys.readouterr().out == f"{output}\n"
    assert np.load(output)["samples"].shape == (2, 3, 1)
    assert status_of(*words) == 1
    assert "exists" in capsys.readouterr().err
    assert status_of("sample", tmp_path, tmp_path / "ends.npz", "--output", tmp_path / "o.npz") == 1
    assert "not a run directory" in capsys.readouterr().err


def test_list_of_other_folders(tmp_path, capsys):
    (tmp_path / "own.py").write_text(TINY.read_text())
    (tmp_path / "helper.py").write_text("x = 1")
    assert status_of("list", tmp_path) == 0
    shown = capsys.readouterr().out
    assert "own.py\n    An Ornstein-Uhlenbeck process" in shown
    assert "helper" not in shown
    assert status_of("list", tmp_path / "nowhere") == 1
    assert "nowhere does not exist" in capsys.readouterr().err
