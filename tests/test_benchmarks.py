"""Two benchmarks in tiny sizes, and what all of them share; the others take longer to compile."""

import importlib
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def benchmark_module(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.slow
def test_solvers(benchmark_module, tmp_path, capsys):
    """The order is exact whatever the number of paths; the file holds what was returned."""
    output = tmp_path / "results" / "solvers.json"
    given = ["--quick", "--solvers", "ShARK", "--output", str(output)]
    record = benchmark_module("solvers").main(given)
    (orders, ones, _) = record["results"].values()
    assert orders[0]["order"] == pytest.approx(2, abs=0.1)
    assert ones[0]["scheme z"] < 4.5  # false alarm below 2e-5
    written = json.loads(output.read_text())
    assert written["targets"] == record["targets"]
    assert written["environment"]["jax"]
    assert "ShARK" in capsys.readouterr().out


@pytest.mark.slow
def test_path_targets(benchmark_module, capsys):
    """Without an output file, in tiny sizes."""
    (rows,) = benchmark_module("path_targets").main(["--quick"])["results"].values()
    assert rows[0]["median ratio"] == 1
    assert all(row["least s"] > 0 for row in rows)


def test_times_and_compilations_are_seen(benchmark_module):
    """A function of our own, called twice and compiled once."""
    import jax
    import jax.numpy as jnp

    timing = benchmark_module("timing")

    @jax.jit
    def watched(x):
        return jnp.sin(x)

    with timing.watch_compilation() as seen:
        times = timing.interleave({"a": lambda: watched(1.0), "b": lambda: watched(2.0)}, 3)
    assert seen.count("watched") == 1
    assert 0 < seen.of("watched") < times["a"].first
    assert len(times["b"].runs) == 3
    assert timing.ratio(times["a"], times["a"]) == {"ratio of least": 1, "median ratio": 1}


def test_whole_of_a_preset_from_parts(benchmark_module):
    """Only what is counted changes; the line is that of a fixed cost and a cost for each."""
    script = benchmark_module("paper_presets")
    for name in script.Settings().configs:
        whole = script.load_config_file(script.CONFIGS / f"{name}.py").presets["paper"]
        assert script.part_of(whole, 1.0) == whole
        few, more = (script.part_of(whole, 0.001, twice=twice) for twice in (False, True))
        counts = {field for names, _ in script.COUNTS.values() for field in names}
        same = {name: value for name, value in vars(whole).items() if name not in counts}
        assert same.items() <= vars(few).items()
        for stage in ("simulate", "train"):
            numbers = [script.counted(config, stage) for config in (few, more, whole)]
            assert 0 < numbers[0] < numbers[1] < numbers[2]
            took = [3.0 + 0.5 * number for number in numbers]
            assert script.whole_time(took[:2], numbers[:2], numbers[2]) == pytest.approx(took[2])
    assert script.whole_time([2.0, 2.0], [5, 5], 5) == 2.0
    assert script.whole_time([2.0, 1.9], [5, 6], 10) == 1.9


def test_targets_and_tables(benchmark_module):
    harness = benchmark_module("harness")
    assert harness.Target("time", 1.0, 2.0).met
    assert not harness.Target("rate", 1.0, 2.0, at_least=True).met
    assert not harness.Target("lost", float("nan"), 2.0).met
    shown = harness.Target("far", 1.0)
    assert shown.met is None
    assert shown.row() == {"target": "far", "measured": 1.0, "wanted": "", "": ""}
    lines = harness.table([{"name": "a", "s": 0.12345}, {"name": "bcd", "s": None}]).splitlines()
    assert lines == ["name      s", "a     0.123", "bcd       –"]


def test_a_part_is_measured_again_and_the_rest_is_kept(benchmark_module, tmp_path, monkeypatch):
    """Rows, targets and the command of the whole."""
    harness = benchmark_module("harness")
    settings = harness.Settings(output=str(tmp_path / "NAME.json"))
    seen = []

    def cell(name, value):
        seen.append(name)
        return [{"value": value}], [harness.Target("least", value, 2.0)]

    def measure(value, only=()):
        cells = {name: lambda name=name: cell(name, value) for name in ("heat", "two waves")}
        return harness.publish_cells(settings, "some/bench.py", cells, only)

    def command(*given):
        monkeypatch.setattr("sys.argv", ["bench.py", *given])
        measure(len(seen) + 1.0, given[given.index("--only") + 1 :][:1] if given else ())
        return json.loads((tmp_path / "bench.json").read_text())["command"]

    one, whole = "python benchmarks/bench.py --only 'two waves'", "python benchmarks/bench.py"
    assert command("--only", "two waves") == one
    assert command() == whole
    assert command("--seed", "1", "--only", "two waves", "--size", "3") == (
        f"{whole} --seed 1 --size 3"
    )
    assert command("--only", "two waves") == whole
    measure(5.0)  # nothing is missing
    written = json.loads((tmp_path / "bench.json").read_text())
    assert seen == ["two waves", "heat", "two waves", "two waves"]
    assert written["results"] == {"heat": [{"value": 2.0}], "two waves": [{"value": 4.0}]}
    assert [(t["what"], t["met"]) for t in written["targets"]] == [
        ("heat: least", True),
        ("two waves: least", False),
    ]


@pytest.mark.slow
def test_compiled_and_not_run(benchmark_module, monkeypatch):
    """Memory as planned for functions of known size; each program once, and nothing is run."""
    import jax
    import jax.numpy as jnp

    import smdp_jax as smdp

    compiling = benchmark_module("compiling")
    own = {name for _, name, _ in compiling.compiled_in_library()}
    assert {"_simulate", "_sample", "_pilot"} <= own
    x, ts = jnp.ones((1000,)), jnp.linspace(0.0, 1.0, 5)
    with compiling.compiling_for(compiling.device_of("here")) as programs:
        double = jax.jit(lambda x: 2 * x)
        assert double(x) is x
        assert double(x) is x
        assert jax.jit(lambda x: double(x)[::2])(x).shape == (500,)
        assert jax.lax.map(lambda x: x + 1, x) is x
        sde = smdp.SDE(lambda t, x, args: -x, diffusion=1.0)
        paths = smdp.simulate(sde, jnp.ones((3, 2)), ts, key=jax.random.key(0))
    *found, largest, pilot, last, finite = programs.values()
    assert [(p.inputs, p.outputs) for p in found] == [(4000, 4000), (4000, 2000), (4000, 4000)]
    # What steps to take is looked at first, on the largest start.
    assert [p.name for p in (largest, pilot, last)] == ["_largest", "_walk", "_simulate"]
    assert finite.name == "_all_finite"
    assert (paths.ts is ts, paths.xs.shape) == (True, (3, 5, 2))
    assert jnp.array_equal(jax.jit(lambda x: 2 * x)(x), 2 * x)

    def lacking(**asked):
        raise NotImplementedError("topology not implemented for tpu")

    monkeypatch.setattr(compiling.topologies, "get_topology_desc", lacking)
    with pytest.raises(SystemExit, match=r"cannot compile for v5e: install libtpu"):
        compiling.device_of("v5e")


# Inputs are split into arrays and the rest, with marks where they were.
@pytest.mark.slow
@pytest.mark.usefixtures("untyped")
def test_stages_of_a_preset_are_compiled(benchmark_module, monkeypatch):
    """16 paths of 9 times, and 3 end states; the largest program holds at least the data."""
    import jax

    script = benchmark_module("compile_presets")
    monkeypatch.setattr(script, "CONFIGS", Path(__file__).parent / "configs")
    row = script.compile_stages("tiny", "paper", jax.devices()[0])
    data = 4 * (9 + 16 * 9 + 3)
    assert row["data, GiB"] * 2**30 == data
    largest = [row[f"{stage}, GiB"] for stage in ("simulate", "train", "sample")]
    assert row["train, GiB"] * 2**30 > 4 * (9 + 16 * 9)
    assert row["at most, GiB"] == pytest.approx(max(largest) + data / 2**30)
    # The start, the steps and the whole of simulating, and whether all is finite; that again, keys,
    # tables, range and shuffles of the data, the network's first parameters, an epoch, the miss of
    # a step, the range of its paths; sampling as simulating.
    assert row["programs"] == 4 + 9 + 3


def test_work_is_counted(benchmark_module):
    """Products, loops of known length, the branch that runs on one platform; bytes of the ends."""
    import jax
    import jax.numpy as jnp

    import smdp_jax as smdp

    work_of = benchmark_module("work").work_of
    a, x = jnp.ones((3, 5)), jnp.ones((5, 7))
    assert vars(work_of(jnp.matmul, a, x)) == {
        "products": 2 * 3 * 5 * 7,
        "other": 0,
        "bytes": 4 * (15 + 35 + 21),
    }
    turns = work_of(lambda x: jax.lax.scan(lambda x, _: (2 * x, None), x, length=10)[0], x)
    assert (turns.other, turns.bytes) == (350, 4 * 35 * 2 * 11)
    batch = work_of(jax.vmap(jnp.matmul, (None, 0)), a, jnp.ones((4, 5, 7)))
    assert batch.products == 4 * 2 * 3 * 5 * 7
    net, field = smdp.models.UNet((4,), dims=1), jnp.ones(16)
    variables = net.init(jax.random.key(0), 0.5, field, None)
    forward = work_of(lambda v: net.apply(v, 0.5, field, None), variables)
    kernels = [p for p in jax.tree.leaves(variables) if p.ndim == 3]
    convolved = sum(2 * 16 * k.size for k in kernels)
    # A dense layer of a vector adds its bias by a product with 1.
    dense = sum(2 * (p.size + p.shape[1]) for p in jax.tree.leaves(variables) if p.ndim == 2)
    assert forward.products == convolved + dense


@pytest.mark.slow
def test_accelerator(benchmark_module, tmp_path, monkeypatch, capsys):
    """Pieces are kept as they are done, a failed case is tried again, and what is done is not."""
    script = benchmark_module("accelerator")
    cases = benchmark_module("accelerator_cases")
    given = ["--quick", "--no-apart", "--folder", str(tmp_path), "--runs-dir", str(tmp_path / "r")]
    pieces = ["--pieces", "paths_exact", "navier_stokes", "foretold_heat", "paper_heat"]
    asked = []

    def part_of_preset(settings, name, *, twice):
        asked.append(name)
        return {
            "seconds": {"simulate": 1.0, "train": 3.0 + twice, "sample": 2.0},
            "peak": 1,
            "limit": None,
            "paths": 1,
        }

    def killed(*inputs, **named):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(cases.paper_presets, "run_apart", part_of_preset)
    monkeypatch.setattr(cases, "run_experiment", killed)
    record = script.main([*given, *pieces])
    ((device, rows),) = record["results"].items()
    found = {row["figure"]: row for row in rows}
    assert found["paper_heat: heat, whole"]["unit"] == "RuntimeError: out of memory"
    assert found["foretold_heat: heat, whole"]["measured"] > 0
    exact = found["paths_exact: 20 paths"]
    assert 0 < exact["share of it"] < 1
    assert exact["roofline"] == pytest.approx(exact["measured"] / exact["share of it"])
    assert found["navier_stokes: 16², 2 at once"]["measured"] > 0
    assert set(script.peaks_of(tmp_path / device)) == {"bfloat16", "float32", "other", "bytes"}

    def done(file, config, *, preset, runs_dir, say):
        folder = Path(runs_dir)
        folder.mkdir(parents=True, exist_ok=True)
        metrics = {"error": {"value": 1.0, "target": 2.0, "bound": "at most"}}
        text = json.dumps({"metrics": metrics, "seconds": {"train": 120.0}})
        (folder / "metrics.json").write_text(text)
        return folder

    monkeypatch.setattr(cases, "run_experiment", done)
    asked.clear()
    again = {row["figure"]: row for row in script.main([*given, *pieces])["results"][device]}
    assert again["paper_heat: heat, whole"]["measured"] == 2.0
    assert not asked
    assert again["paths_exact: 20 paths"] == exact
    assert "share of it" in capsys.readouterr().out
    (folder,) = (path for path in tmp_path.iterdir() if path.name == device)
    cut = json.loads((folder / "paths_exact.json").read_text())
    (folder / "paths_exact.json").write_text(json.dumps(cut)[:50])  # as no kill leaves it
    assert not script.read(folder / "paths_exact.json")["done"]


def test_accelerator_sold_peaks(benchmark_module, tmp_path):
    """An H100 has those of its data sheet; what is asked of it is not asked of others."""
    script = benchmark_module("accelerator")
    folder = tmp_path / "NVIDIA-H100-80GB-HBM3"
    assert script.peaks_of(folder)["bytes"] == 3.35e12
    row = {"part": "d", "unit": "cell-steps/s", "share of it": 0.5}
    rows = [row | {"figure": "smoke: 64², 2 at once", "measured": 30.0}]
    rows.append(row | {"figure": "smoke: 64², 2 at once, PhiFlow", "measured": 2.0})
    (target,) = script.targets_of(rows, folder.name)
    assert (target.value, target.met) == (15.0, True)
    assert script.targets_of(rows, "cpu")[0].met is None


@pytest.mark.slow
def test_scaling(benchmark_module, monkeypatch):
    """One device in this process; what the tables are made of, with numbers known."""
    script = benchmark_module("scaling")
    monkeypatch.setattr(script, "VERBS", {"simulate": script.simulate})
    strong, weak = script.count(script.Settings(batch=8, field=16, steps=2), 1)
    assert (strong["of"], weak["of"]) == (8, 1)
    # Keys of the paths and what is done once are work, too.
    assert weak["operations of each"] * 8 == pytest.approx(strong["operations of each"], rel=0.2)
    halves, whole = strong | {"devices": 2, "operations of each": 0.5}, strong
    shown = script.efficiencies([whole | {"operations of each": 0.8}, halves])
    assert shown[1]["efficiency"] == 0.8
    text = "%a = f32[3,5]{1,0} all-reduce(%b), x\n%c = (f32[7]{0}, f32[]) all-gather-start(%d)"
    assert script.collectives(text) == [15, 7]
    costs = script.costs(script.Settings(quick=True))
    assert all(row["hours"] > 0 for row in costs)
    assert costs[0]["hours"] == pytest.approx(8 * costs[1]["hours"])


def test_kernels_of_a_turn_are_counted(benchmark_module):
    """What is called and inner loops count as often as they run; of two loops the larger one."""
    script = benchmark_module("kernels")
    text = """HloModule jit_epoch

%fused (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %s = f32[4]{0} sine(%p)
}

%inner (a: (s32[], f32[4])) -> (s32[], f32[4]) {
  %a = (s32[], f32[4]{0}) parameter(0)
  %one = f32[4]{0} fusion(%a), kind=kLoop, calls=%fused
  %two = (f32[4]{0}, s8[16]{0}) custom-call(%one), custom_call_target="__cublas$gemm"
  ROOT %t = (s32[], f32[4]{0}) tuple(%a, %two)
}

%goes_on (b: (s32[], f32[4])) -> pred[] {
  %b = (s32[], f32[4]{0}) parameter(0)
  ROOT %less = pred[] fusion(%b), kind=kLoop, calls=%fused
}

%graph (c: f32[4]) -> f32[4] {
  %c = f32[4]{0} parameter(0)
  %k = f32[4]{0} fusion(%c), kind=kInput, calls=%fused
  ROOT %d = f32[4]{0} copy(%k)
}

%body (e: (s32[], /*index=1*/f32[4])) -> (s32[], /*index=1*/f32[4]) {
  %e = (s32[], f32[4]{0}) parameter(0)
  %f = (s32[], /*index=1*/f32[4]{0}) while(%e), condition=%goes_on, body=%inner, \
backend_config={"known_trip_count":{"n":"7"}}
  %g = f32[4]{0} call(%f), to_apply=%graph
  ROOT %h = (s32[], f32[4]{0}) tuple(%f, %g)
}

ENTRY %main (i: f32[4]) -> f32[4] {
  %i = f32[4]{0} parameter(0)
  %j = (s32[], f32[4]{0}) while(%i), condition=%goes_on, body=%body
  %l = (s32[], f32[4]{0}) while(%i), condition=%goes_on, body=%inner
  ROOT %m = f32[4]{0} fusion(%j), kind=kLoop, calls=%fused
}
"""
    program = benchmark_module("compiling").Program("epoch", 0, 0, 0, text, None)
    assert script.turn(program) == {"fusions": 7 + 1, "library": 7, "copies": 1}
