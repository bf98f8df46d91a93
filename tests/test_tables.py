"""The tables of methods: cells that resume and take faults for results, rows, and both formats."""

import csv
import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax import evaluate, physics

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("tables")


def test_a_cell_is_run_once_and_a_fault_is_a_result(tables, tmp_path):
    calls = []

    def run():
        calls.append(1)
        return {"CRPS / exact": 1.5}

    def broken():
        raise FloatingPointError("diverged: 3% of the samples are finite\nmore")

    file = tmp_path / "affine" / "a-0.json"
    for _ in range(2):
        assert tables.cell(file, {"steps": 3}, run)["row"] == {"CRPS / exact": 1.5}
    assert len(calls) == 1
    tables.cell(file, {"steps": 4}, run)  # other settings are another cell
    assert len(calls) == 2
    bad = tables.cell(tmp_path / "b-0.json", {}, broken)
    assert bad["failed"] == "diverged: 3% of the samples are finite"
    assert json.loads((tmp_path / "b-0.json").read_text())["failed"] == bad["failed"]
    assert bad["environment"]["jax"]


def test_rows_and_formats(tables):
    cells = {
        "ours": [{"row": {"CRPS": 1.0, "Q": 0.5}}, {"row": {"CRPS": 3.0, "Q": 0.5}}],
        "other": [{"row": {"CRPS": float("nan")}}],
        "half": [{"row": {"CRPS": 2.0}}, {"failed": "diverged | all"}],
        "lost": [{"failed": "out of memory"}],
    }
    rows = [*tables.rows_of(cells), {"method": "published: x", "Q": 0.99}]
    assert rows[0] == {"method": "ours", "CRPS": (2.0, 2**0.5), "Q": (0.5, 0.0)}
    assert rows[3] == {"method": "lost", "fault": "1 of 1: out of memory"}
    lines = tables.as_markdown(rows)
    assert lines[0] == "| method | CRPS | Q | fault |"
    assert lines[2] == "| ours | 2 ± 1 | 0.5 ± 0 |  |"
    assert lines[3] == "| other | lost |  |  |"
    assert lines[4] == r"| half | 2 |  | 1 of 2: diverged \| all |"
    assert lines[6] == "| published: x |  | 0.99 |  |"
    read = list(csv.DictReader(tables.as_csv(rows).splitlines()))
    assert [row["CRPS"] for row in read] == ["2.0", "nan", "2.0", "", ""]
    assert float(read[0]["CRPS (sd)"]) == 2**0.5


@pytest.mark.slow
def test_exact_posterior_of_an_experiment(tables, tmp_path):
    """The whole way for one method that needs no training: it passes what it is judged by."""
    given = ["--quick", "--output", str(tmp_path), "--methods", "exact posterior", "no such"]
    (rows,) = tables.main(given).values()
    (row,) = rows
    assert row["method"] == "exact posterior"
    assert row["CRPS / exact"][0] == pytest.approx(1, abs=0.3)
    assert row["P error"][0] < 0.1  # 20 groups of 500 coins: 4.5 standard errors, 1e-4
    assert row["score error, t = 2"][0] < 1e-5
    assert row["SBC p"][0] > 1e-4
    assert (tmp_path / "small" / "affine.md").read_text().count("exact posterior") == 1


@pytest.mark.slow
def test_draws_behind_a_mask_rank_evenly(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    dataset = importlib.import_module("dataset")
    system = physics.Heat(8, 0.5, 0.3, 0.2)
    k_start, k_noise, k_tie = jax.random.split(jax.random.key(3), 3)
    starts = system.prior(k_start, 400)
    step = lambda x: system.step(0.0, system.end_time, x)
    white = np.fft.fft2(jax.random.normal(k_noise, starts.shape))
    noise = np.fft.ifft2(np.sqrt(system.noise_variance(system.end_time)) * white).real
    ends = np.asarray(jax.vmap(step)(starts)) + noise
    problem = SimpleNamespace(truths=starts, ends=ends, system=system)
    task = dataset.masked(problem, 5, 19)
    assert (task["ends"] != 0).mean() == 1 / 16
    entries = [(0, 0), (1, 2), (4, 4), (7, 5)]
    pick = lambda x: jnp.stack([x[..., i, j] for i, j in entries], axis=-1)
    ranks = evaluate.sbc_ranks(pick(task["truths"]), pick(task["reference"]), key=k_tie)
    # Four p-values of an exact sampler: one below 1e-4 in 2500 seeds.
    assert evaluate.uniformity_test(ranks, 19).p_value.min() > 1e-4
    halved = task["reference"].mean(axis=1, keepdims=True) / 2 + task["reference"] / 2
    ranks = evaluate.sbc_ranks(pick(task["truths"]), pick(halved), key=k_tie)
    assert evaluate.uniformity_test(ranks, 19).p_value.min() < 1e-4
