"""The smoke benchmark in tiny sizes, without the peer that it compares with."""

import importlib
import sys
from pathlib import Path

import pytest


@pytest.fixture
def benchmark_module(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    return importlib.import_module


@pytest.mark.slow
def test_smoke(benchmark_module, capsys):
    """The first step fills the inflow; its disc has the area pi 5^2, on 16 cells roughly."""
    record = benchmark_module("smoke").main(["--quick"])
    cost, plume = record["results"].values()
    assert [row["step"] for row in cost] == ["vmap", "lax.map"]
    assert all(target["met"] for target in record["targets"])
    assert plume[0]["total"] == pytest.approx(78.5, rel=0.1)
    assert plume[0]["x"] == pytest.approx(50)
    assert "divergence after a step" in capsys.readouterr().out


def test_without_phiflow(benchmark_module, monkeypatch):
    monkeypatch.setitem(sys.modules, "phi", None)
    monkeypatch.delitem(sys.modules, "phi.jax.flow", raising=False)
    with pytest.raises(
        SystemExit, match=r"`pip install phiflow`, or leave .* out with `--no-peer`"
    ):
        benchmark_module("smoke_peer").load_phiflow()
