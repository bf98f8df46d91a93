"""The tables of methods: cells that resume and take faults for results, rows, and both formats."""

import csv
import importlib
import json
from pathlib import Path

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
        "open": [],
    }
    rows = [*tables.rows_of(cells), {"method": "published: x", "Q": 0.99}]
    assert rows[0] == {"method": "ours", "CRPS": (2.0, 2**0.5), "Q": (0.5, 0.0), "seeds": 2}
    assert rows[3] == {"method": "lost", "fault": "1 of 1: out of memory"}
    assert rows[4] == {"method": "open", "fault": "not run"}
    lines = tables.as_markdown(rows)
    assert lines[0] == "| method | CRPS | Q | seeds | fault |"
    assert lines[2] == "| ours | 2 ± 1 | 0.5 | 2 |  |"
    assert lines[3] == "| other | lost |  |  |  |"
    assert lines[4] == r"| half | 2 |  |  | 1 of 2: diverged \| all |"
    assert lines[7] == "| published: x |  | 0.99 |  |  |"
    read = list(csv.DictReader(tables.as_csv(rows).splitlines()))
    assert [row["CRPS"] for row in read] == ["2.0", "nan", "2.0", "", "", ""]
    assert float(read[0]["CRPS (sd)"]) == 2**0.5


def test_summary_has_one_line_for_each_method(tables, tmp_path):
    """Of what is exact CRPS and C2ST, of the quadratic Q, of flows what pairs tell; or why not."""
    cells = {
        "ours": [{"row": {"CRPS / exact": 1.02, "C2ST": 0.51, "Q, SDE": 0.98, "Q, ODE": 0.9}}] * 2,
        "theirs": [{"failed": "diverged: 3% of the samples are finite"}],
        "open": [],
    }
    flows = {"ours": [{"row": {"reconstruction / floor": 2.0, "CRPS / prior": 0.3}}], "open": []}
    for name, found in (("quadratic", cells), ("smoke", flows)):
        (tmp_path / f"{name}.csv").write_text(tables.as_csv(tables.rows_of(found)))
    lines = tables.summary(tmp_path, ["affine", "quadratic"], ["quadratic"], ["smoke"])
    assert "| ours | 1.02 ± 0.00 · 0.51 |" in lines
    assert "| ours | 0.90 ± 0.00 / 0.98 ± 0.00 |" in lines
    assert "| ours | 2 · 0.3 |" in lines
    assert lines.count("| theirs | 3% of the samples are finite |") == 2
    assert lines.count("| open | not run |") == 3


def test_lost_draws_are_left_out_and_counted(tables):
    """Cases with half of their draws or more count, all with the same number of finite draws."""
    kept = importlib.import_module("peer_metrics").kept
    samples = np.arange(24.0).reshape(3, 4, 2)
    samples[0, 1, 0], samples[2, :3] = np.nan, np.inf
    used, left, finite = kept(samples)
    assert used.tolist() == [0, 1]
    assert left[0, :, 1].tolist() == [1.0, 5.0, 7.0]
    assert left[1, :, 0].tolist() == [8.0, 10.0, 12.0]
    assert finite == 8 / 12


@pytest.mark.slow
def test_exact_posterior_of_an_experiment(tables, tmp_path):
    """The whole way for one method that needs no training: it passes what it is judged by."""
    given = ["--quick", "--output", str(tmp_path), "--methods", "exact posterior", "no such"]
    (rows,) = tables.main(given).values()
    row, *others = rows
    assert row["method"] == "exact posterior"
    assert all(other["fault"] == "not run" for other in others)
    assert row["CRPS / exact"][0] == pytest.approx(1, abs=0.3)
    assert row["P error"][0] < 0.1  # 20 groups of 500 coins: 4.5 standard errors, 1e-4
    assert row["score error, t = 2"][0] < 1e-5
    assert row["SBC p"][0] > 1e-4
    assert (tmp_path / "small" / "affine.md").read_text().count("exact posterior") == 1


@pytest.mark.slow
def test_draws_behind_a_mask_rank_evenly(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    dataset, peers = map(importlib.import_module, ("dataset", "peer_problems"))
    system = physics.Heat(8, 0.5, 0.3, 0.2)
    k_start, k_noise, k_tie, k_draw = jax.random.split(jax.random.key(3), 4)
    starts = system.prior(k_start, 400)
    step = lambda x: system.step(0.0, system.end_time, x)
    white = np.fft.fft2(jax.random.normal(k_noise, starts.shape))
    noise = np.fft.ifft2(np.sqrt(system.noise_variance(system.end_time)) * white).real
    ends = np.asarray(jax.vmap(step)(starts)) + noise
    sde, ts = system.sde(), jnp.array([0.0, system.end_time])
    none = dict.fromkeys(("train", "net", "observe", "exact", "told"))
    known = {"sde": sde, "system": system, "truths": starts, "ends": ends, "simulator": (sde, ts)}
    problem = dataset.behind_mask(peers.Problem(**known, **none), 5)
    task = dataset.task(problem, k_draw, 19)
    assert (task["ends"] != 0).mean() == 1 / 16
    entries = [(0, 0), (1, 2), (4, 4), (7, 5)]
    pick = lambda x: jnp.stack([x[..., i, j] for i, j in entries], axis=-1)
    ranks = evaluate.sbc_ranks(pick(task["truths"]), pick(task["reference"]), key=k_tie)
    # Four p-values of an exact sampler: one below 1e-4 in 2500 seeds.
    assert evaluate.uniformity_test(ranks, 19).p_value.min() > 1e-4
    halved = task["reference"].mean(axis=1, keepdims=True) / 2 + task["reference"] / 2
    ranks = evaluate.sbc_ranks(pick(task["truths"]), pick(halved), key=k_tie)
    assert evaluate.uniformity_test(ranks, 19).p_value.min() < 1e-4
