"""Method x metric for every experiment: ours beside what a researcher would otherwise pick.

Every cell (experiment, method, seed) is a file of its own under ``benchmarks/results/tables/``; a
finished one is read, not run again, so an interrupted call goes on, and a method that breaks or
diverges is a row that says so. The preset small writes the table of docs/compared.md as well.

    python benchmarks/tables.py --preset small --experiments quadratic-10 heat --minutes 30
"""

import dataclasses
import functools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
from harness import Settings, parse, say
from peer_flows import FLOW_METHODS, FLOWS, flow_of, measure_flow
from peer_masked import masked_of
from peer_metrics import measure
from peer_problems import QUADRATIC, Budget, problem_of
from peers import METHODS
from readme_table import replace
from table_text import as_csv, as_markdown, rows_of, summary

from smdp_jax.evaluate import describe_environment

ROOT = Path(__file__).absolute().parent / "results" / "tables"


def _without(*left_out: str) -> tuple[str, ...]:
    return tuple(m for m in METHODS if not m.startswith(left_out))


_NUMBERS = _without("ResNet", "Bayesian", "FNO")
_SCALAR = Budget(12_000, 500, 9)
PLANS: dict[str, tuple[tuple[str, ...], Budget, int]] = {
    "quadratic": (_without("ResNet", "Bayesian", "FNO", "denoising"), _SCALAR, 3),
    "quadratic-10": (_without("ResNet", "Bayesian", "FNO", "denoising"), _SCALAR, 3),
    "quadratic-1": (_without("ResNet", "Bayesian", "FNO", "denoising"), _SCALAR, 3),
    "affine": (_NUMBERS, _SCALAR, 1),
    # The exact divergence of 1024 entries is what sliced score matching is for.
    "heat": (_without("MLP", "implicit"), Budget(300, 500, 9), 1),
    "heat-masked": (
        ("exact posterior", "path score", "L-BFGS", "RML ensemble", "guided diffusion"),
        Budget(300, 60, 9),
        1,
    ),
    "burgers": (_without("MLP", "implicit", "denoising"), Budget(1000, 60, 9), 1),
    **{name: (tuple(FLOW_METHODS), Budget(300, 200, 9), 1) for name in FLOWS},
}
"""Methods, budget and seeds of each experiment, in the order in which they are run."""
PUBLISHED: dict[str, list[dict[str, Any]]] = {
    **{
        experiment: [
            {"method": f"published: {method}", "Q, SDE": sde[i], "Q, ODE": ode[i]}
            for method, ode, sde in (
                ("multi-step", (0.97, 0.91, 0.81), (0.99, 0.94, 0.85)),
                ("1-step", (0.78, 0.44, 0.41), (0.93, 0.71, 0.75)),
                ("implicit", (0.19, 0.15, 0.01), (0.92, 0.94, 0.52)),
                ("sliced, VR", (0.17, 0.49, 0.27), (0.88, 0.94, 0.67)),
            )
        ]
        for i, experiment in enumerate(QUADRATIC)
    },
    "heat": [
        {
            "method": f"published: {name}",
            "reconstruction MSE, sample": mse,
            "spectral error published, sample": spectral,
        }
        for name, mse, spectral in (
            ("ResNet", 1.3e-4, 1.44),
            ("FNO (MSE at least)", 1e-2, 1.08),
            ("Bayesian (MSE at least)", 1e-2, 1.48),
            ("score only, ODE", 1e-4, 1.8),
            ("score only, SDE", 4.7e-4, 1.40),
            ("SMDP, ODE", 8.8e-5, 2.0),
            ("SMDP, SDE", 5.2e-4, 0.21),
        )
    ],
}
"""Figures of Holzschuh et al. (2023), up to 10 % off where they were read from bars."""

MARKS = ("<!-- peers: benchmarks/tables.py -->", "<!-- end of peers -->")
_NOTE = (
    "Seconds are upper bounds (compilation included, a machine with other work). p-values below "
    "0.05 and a C2ST above its null show a fault; ± is the standard deviation over seeds."
)


@dataclass(frozen=True)
class Options(Settings):
    """Settings of this benchmark."""

    output: str = "benchmarks/results/tables"
    """Folder of the cells and tables."""
    preset: Literal["small", "paper"] = "small"
    """Sizes of data and networks."""
    experiments: tuple[str, ...] = tuple(PLANS)
    """Which experiments; of the quadratic process with 100, 10 and 1 % of 2500 paths."""
    methods: tuple[str, ...] = ()
    """Which methods; default all that suit. Cells of others are read where they are there."""
    seeds: int | None = None
    """Runs of each; default as the experiment plans it, as for the budget below."""
    steps: int | None = None
    """Updates of every learned method."""
    cases: int | None = None
    """Held-out end states."""
    draws: int | None = None
    """Samples for each."""
    minutes: float = math.inf
    """Begin no cell after that time; the next call goes on."""

    def plan(self, name: str) -> tuple[tuple[str, ...], Budget, int]:
        """Methods, budget and seeds of an experiment."""
        methods, budget, seeds = PLANS[name]
        told = {n: getattr(self, n) for n in vars(budget) if getattr(self, n) is not None}
        seeds = seeds if self.seeds is None else self.seeds
        return methods, dataclasses.replace(budget, **told), seeds


def cell(path: Path, asked: dict[str, Any], run: Any) -> dict[str, Any] | None:
    """Read a finished cell of the same settings, or run it if asked to; a fault is a result."""
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["asked"] == asked:
            return found
    if run is None:
        return None
    try:
        result: dict[str, Any] = {"row": run()}
    except Exception as error:  # whatever it was, the other methods go on
        text = str(error).strip()
        result = {"failed": text.splitlines()[0][:200] if text else type(error).__name__}
    found = {"asked": asked, **result, "environment": describe_environment()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def run_experiment(name: str, options: Options, folder: Path, until: float) -> list[dict[str, Any]]:
    """Run or read all cells of one experiment."""
    methods, budget, seeds = options.plan(name)
    parts: Any = (problem_of, METHODS, measure)
    if name == "heat-masked":
        parts = (masked_of, METHODS, measure)
    if name in FLOWS:
        parts = (flow_of, FLOW_METHODS, measure_flow)
    build, every, judge = parts
    problem = functools.cache(lambda seed: build(name, options.preset, seed, budget))
    cells: dict[str, list[dict[str, Any]]] = {}
    for method in methods:
        wanted = not options.methods or method in options.methods
        cells[method] = []
        for seed in range(seeds):

            def run(method: str = method, seed: int = seed) -> dict[str, Any]:
                k_learn, k_judge = jax.random.split(jax.random.key(1000 + seed))
                answer = every[method](problem(seed), budget, k_learn)
                return judge(problem(seed), answer, budget, k_judge)

            asked = {"preset": options.preset, "seed": seed, **vars(budget)}
            file = folder / name / f"{method.replace(' ', '_').replace(',', '')}-{seed}.json"
            began = time.perf_counter()
            if found := cell(file, asked, run if wanted and began < until else None):
                cells[method].append(found)
                seconds = time.perf_counter() - began
                say(f"{name}, {method}, {seed}: {found.get('failed', 'done')}, {seconds:.0f} s")
    jax.clear_caches()
    return rows_of(cells)


def write(name: str, measured: list[dict[str, Any]], options: Options, folder: Path) -> None:
    """Write the table of one experiment."""
    rows = [*measured, *PUBLISHED.get(name, [])]
    (folder / f"{name}.csv").write_text(as_csv(rows), encoding="utf-8")
    _, budget, seeds = options.plan(name)
    spent = f"{budget.steps} updates of most networks, {budget.draws} samples for each end state"
    lines = [
        f"# {name}, preset {options.preset}",
        "",
        f"{spent}, {seeds} seed(s):",
        f"`python benchmarks/tables.py --preset {options.preset} --experiments {name}`.",
        _NOTE,
        "",
        *as_markdown(rows),
    ]
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    say("\n".join(lines))


def main(given: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Run what is missing, and write the tables."""
    quick = {"experiments": ("affine",), "methods": ("exact posterior",), "cases": 100}
    options = parse(Options(), quick, __doc__, given)
    folder = Path(options.output or "runs/tables-quick").absolute() / options.preset
    folder.mkdir(parents=True, exist_ok=True)
    until, tables = time.perf_counter() + 60 * options.minutes, {}
    for name in options.experiments:
        tables[name] = run_experiment(name, options, folder, until)
        write(name, tables[name], options, folder)
    if folder == ROOT / "small":
        truth = [name for name in PLANS if name not in FLOWS]
        lines = summary(folder, truth, tuple(QUADRATIC), tuple(FLOWS))
        replace(Path(__file__).parent.parent / "docs" / "compared.md", lines, MARKS)
    return tables


if __name__ == "__main__":
    main()
