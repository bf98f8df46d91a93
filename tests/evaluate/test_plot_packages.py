"""Figures come on demand, and say which packages they need."""

import importlib
import subprocess
import sys

import pytest


def _run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_evaluate_imports_without_matplotlib() -> None:
    _run("import sys; sys.modules['matplotlib'] = None; import smdp_jax.evaluate")


@pytest.mark.parametrize("package", ["matplotlib", "PIL"])
def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.delitem(sys.modules, "smdp_jax.evaluate.plots._needed")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'plots need {package}, .*"smdp_jax\[plots\]"'):
        importlib.import_module("smdp_jax.evaluate.plots._needed")


@pytest.mark.slow
def test_plots_come_on_demand_and_without_pyplot() -> None:
    _run(
        "import sys, smdp_jax.evaluate as e; assert 'matplotlib' not in sys.modules; "
        "e.plots.step_miss; assert 'matplotlib.pyplot' not in sys.modules"
    )
