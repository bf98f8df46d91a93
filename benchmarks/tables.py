"""Method x metric for every experiment: ours beside what a researcher would otherwise pick.

Every cell (experiment, method, seed) is a file of its own under ``benchmarks/results/tables/``; a
finished one is read, not run again, so an interrupted call goes on, and a method that breaks or
diverges is a row that says so. The preset small writes the table of docs/compared.md as well.

    python benchmarks/tables.py --preset small --experiments affine --seeds 3
"""

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
from harness import Settings, parse, say
from peer_metrics import measure
from peer_problems import Budget, problem_of
from peers import METHODS
from readme_table import replace

from smdp_jax.evaluate import describe_environment

ROOT = Path(__file__).absolute().parent / "results" / "tables"
METHODS_OF = {
    "affine": tuple(m for m in METHODS if not m.startswith(("ResNet", "Bayesian", "FNO"))),
    "quadratic": tuple(
        m for m in METHODS if not m.startswith(("ResNet", "Bayesian", "FNO", "denoising"))
    ),
    # The exact divergence of 1024 entries is what sliced score matching is for.
    "heat": tuple(m for m in METHODS if not m.startswith(("MLP", "implicit"))),
    "burgers": tuple(m for m in METHODS if not m.startswith(("MLP", "implicit", "denoising"))),
}
PUBLISHED: dict[str, list[dict[str, Any]]] = {
    "quadratic": [
        {"method": "published: multi-step, 100 %", "Q, SDE": 0.99, "Q, ODE": 0.97},
        {"method": "published: multi-step, 10 %", "Q, SDE": 0.94, "Q, ODE": 0.91},
        {"method": "published: 1-step, 10 %", "Q, SDE": 0.71, "Q, ODE": 0.44},
        {"method": "published: implicit, 10 %", "Q, SDE": 0.94, "Q, ODE": 0.15},
        {"method": "published: sliced, VR, 10 %", "Q, SDE": 0.94, "Q, ODE": 0.49},
    ],
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

SHOWN = (
    "exact posterior",
    "backward kernel",
    "path score",
    "multi-step",
    "1-step",
    "sliced, VR",
    "score only",
    "MLP",
    "ResNet",
    "L-BFGS",
    "RML ensemble",
    "guided diffusion",
)
"""Methods of docs/compared.md."""
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
    experiments: tuple[str, ...] = tuple(METHODS_OF)
    """Which experiments."""
    methods: tuple[str, ...] = ()
    """Which methods; default all that suit."""
    seeds: int = 1
    """Runs of each."""
    steps: int = 4000
    """Updates of every learned method."""
    cases: int = 300
    """Held-out end states."""
    draws: int = 19
    """Samples for each."""


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


def rows_of(cells: Mapping[str, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds, one row for each method."""
    rows = []
    for method, runs in cells.items():
        good = [run["row"] for run in runs if "row" in run]
        row: dict[str, Any] = {"method": method}
        for name in good[0] if good else ():
            values = [float(run[name]) for run in good]
            spread = statistics.stdev(values) if len(values) > 1 else None
            row[name] = (statistics.mean(values), spread)
        if faults := [run["failed"] for run in runs if "failed" in run]:
            row["fault"] = f"{len(faults)} of {len(runs)}: {faults[0]}"
        rows.append(row)
    return rows


def text(value: Any) -> str:
    """Write one entry of a table."""
    if value is None or isinstance(value, str):
        return value or ""
    mean, spread = value if isinstance(value, tuple) else (value, None)
    if math.isnan(mean):
        return "lost"
    return f"{mean:.3g}" + (f" ± {spread:.1g}" if spread is not None else "")


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of all columns in the order of their first row, faults last."""
    names = dict.fromkeys(name for row in rows for name in row if name != "fault")
    return [*names, *(["fault"] if any("fault" in row for row in rows) else [])]


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a Markdown table."""
    names = columns_of(rows)
    lines = [f"| {' | '.join(names)} |", "| --- " * len(names) + "|"]
    for row in rows:
        entries = (text(row.get(name)).replace("|", "\\|") for name in names)
        lines.append(f"| {' | '.join(entries)} |")
    return lines


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same table as CSV, means and standard deviations apart."""
    names = columns_of(rows)
    wide = [n for n in names if any(isinstance(row.get(n), tuple) for row in rows)]
    header = [c for n in names for c in ((n, f"{n} (sd)") if n in wide else (n,))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        line: list[Any] = []
        for name in names:
            value = row.get(name)
            if name in wide:
                line += list(value) if isinstance(value, tuple) else [value, None]
            else:
                line.append(value)
        writer.writerow(line)
    return out.getvalue()


def summary(folder: Path) -> list[str]:
    """One line for each method: CRPS over the exact posterior's, and C2ST, of every experiment."""
    found: dict[str, dict[str, str]] = {}
    names = [name for name in METHODS_OF if (folder / f"{name}.csv").is_file()]
    for name in names:
        for row in csv.DictReader(
            (folder / f"{name}.csv").read_text(encoding="utf-8").splitlines()
        ):
            if row["method"] not in SHOWN:
                continue
            entry = "failed" if row.get("fault") else "–"
            if crps := row.get("CRPS / exact"):
                told = row.get("C2ST")
                entry = f"{float(crps):.2f} · {float(told):.2f}" if told else f"{float(crps):.2f}"
            found.setdefault(row["method"], {})[name] = entry
    lines = [f"| method | {' | '.join(names)} |", "| --- " * (1 + len(names)) + "|"]
    for method in SHOWN:
        if method in found:
            entries = (found[method].get(name, "–") for name in names)
            lines.append(f"| {method} | {' | '.join(entries)} |")
    return lines


def run_experiment(name: str, options: Options, folder: Path) -> list[dict[str, Any]]:
    """Run or read all cells of one experiment."""
    budget = Budget(options.steps, options.cases, options.draws)
    cells: dict[str, list[dict[str, Any]]] = {}
    problems: dict[int, Any] = {}
    for method in METHODS_OF[name]:
        wanted = not options.methods or method in options.methods
        for seed in range(options.seeds):

            def run(method: str = method, seed: int = seed) -> dict[str, float]:
                if seed not in problems:
                    problems[seed] = problem_of(name, options.preset, seed, budget)
                k_learn, k_judge = jax.random.split(jax.random.key(1000 + seed))
                answer = METHODS[method](problems[seed], budget, k_learn)
                return measure(problems[seed], answer, budget, k_judge)

            asked = {"preset": options.preset, "seed": seed, **vars(budget)}
            file = folder / name / f"{method.replace(' ', '_').replace(',', '')}-{seed}.json"
            if found := cell(file, asked, run if wanted else None):
                cells.setdefault(method, []).append(found)
                say(f"{name}, {method}, seed {seed}: {found.get('failed', 'done')}")
                jax.clear_caches()
    return rows_of(cells)


def main(given: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Run what is missing, and write the tables."""
    quick = {"experiments": ("affine",), "methods": ("exact posterior",), "cases": 100}
    options = parse(Options(), quick, __doc__, given)
    folder = Path(options.output or "runs/tables-quick").absolute() / options.preset
    tables = {name: run_experiment(name, options, folder) for name in options.experiments}
    folder.mkdir(parents=True, exist_ok=True)
    told = " ".join(f"--{n} {getattr(options, n)}" for n in ("seeds", "steps", "cases", "draws"))
    budget = (
        f"{options.steps} updates of each network, {options.draws} samples for each of "
        f"{options.cases} held-out end states, {options.seeds} seed(s):"
    )
    for name, measured in tables.items():
        rows = [*measured, *PUBLISHED.get(name, [])]
        (folder / f"{name}.csv").write_text(as_csv(rows), encoding="utf-8")
        lines = [
            f"# {name}, preset {options.preset}",
            "",
            budget,
            f"`python benchmarks/tables.py --preset {options.preset} --experiments {name} {told}`.",
            _NOTE,
            "",
            *as_markdown(rows),
        ]
        (folder / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        say("\n".join(lines))
    if folder == ROOT / "small":
        replace(Path(__file__).parent.parent / "docs" / "compared.md", summary(folder), MARKS)
    return tables


if __name__ == "__main__":
    main()
