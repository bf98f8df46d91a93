"""What the benchmarks share: settings, targets, tables, and figures with their environment."""

import dataclasses
import json
import math
import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from smdp_jax.evaluate import describe_environment
from smdp_jax.experiment import Dataset, Experiment, Run
from smdp_jax.training.fit import Fit

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """What every benchmark can be told."""

    output: str = "benchmarks/results/NAME.json"
    """Where the figures go; NAME is the benchmark's. Empty: nowhere."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Tiny sizes, to see that it runs: the figures mean nothing, and are not written by default."""


Chosen = TypeVar("Chosen", bound=Settings)


def parse(
    defaults: Chosen, quick: Mapping[str, Any], doc: str | None, given: Sequence[str] | None = None
) -> Chosen:
    """Read settings from the command line.

    Parameters
    ----------
    defaults : Settings
        Their defaults.
    quick : dict
        Defaults that ``--quick`` replaces.
    doc : str
        Docstring of the benchmark, shown by ``--help``.
    given : sequence of str, optional
        Default: the arguments of the process.

    Returns
    -------
    Settings
        Like ``defaults``.
    """
    given = list(sys.argv[1:] if given is None else given)
    if "--quick" in given:
        defaults = dataclasses.replace(defaults, output="", **quick)
    return tyro.cli(type(defaults), default=defaults, description=doc, args=given)


def apart(settings: Settings, file: str, **changes: Any) -> Any:
    """Run a benchmark with other settings in a process of its own; its last line is JSON."""
    given = {**dataclasses.asdict(settings), **changes, "output": ""}
    options = []
    for name, value in given.items():
        if name == "quick":
            continue
        values = value if isinstance(value, tuple) else (value,)
        options += [f"--{name.replace('_', '-')}", *map(str, values)]
    done = subprocess.run(
        [sys.executable, file, *options], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def run_of(config: Experiment, dataset: Dataset, fit: Fit) -> Run:
    """Return a trained run that lies in no directory.

    Parameters
    ----------
    config : Experiment
        Its configuration.
    dataset : Dataset
        What was simulated.
    fit : Fit
        What was trained on it.

    Returns
    -------
    Run
        As ``config.sample`` and ``config.evaluate`` take it.
    """
    term = fit.score_or_correction
    return Run(config, config.sde(), dataset, term, fit.history, fit.step_miss, Path())


@dataclass(frozen=True)
class Target:
    """What a figure should reach.

    Parameters
    ----------
    what : str
        Name of the figure.
    value : float
        As measured.
    bound : float, optional
        As wanted. None: shown as far as it gets.
    at_least : bool
        Whether more is better.
    """

    what: str
    value: float
    bound: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the value is on the right side of the bound; None without one."""
        if self.bound is None:
            return None
        return bool(self.value >= self.bound if self.at_least else self.value <= self.bound)

    def row(self) -> dict[str, Any]:
        """Return the columns of a table."""
        sign = ">=" if self.at_least else "<="
        return {
            "target": self.what,
            "measured": self.value,
            "wanted": "" if self.bound is None else f"{sign} {self.bound:g}",
            "": {True: "PASS", False: "short of it", None: ""}[self.met],
        }


def table(rows: Sequence[Row]) -> str:
    """Align rows of the same columns.

    Parameters
    ----------
    rows : sequence of dict
        Texts and numbers; None is a dash.

    Returns
    -------
    str
        Lines: a header, and one per row.
    """

    def text(value: Any) -> str:
        if value is None:
            return "–"
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    names = list(rows[0])
    lines = [names, *([text(row[name]) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = [isinstance(rows[0][name], str) for name in names]

    def align(line: Sequence[str]) -> str:
        cells = zip(line, widths, left, strict=True)
        return "  ".join(c.ljust(w) if is_text else c.rjust(w) for c, w, is_text in cells).rstrip()

    return "\n".join(map(align, lines))


def publish(
    settings: Settings,
    script: str,
    tables: Mapping[str, Sequence[Row]],
    targets: Sequence[Target],
    started: float,
    shown: Sequence[str] | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Print the figures, and write them with what they were measured on.

    Parameters
    ----------
    settings : Settings
        Of this run.
    script : str
        ``__file__`` of the benchmark.
    tables : dict of lists of dicts
        Figures, by heading.
    targets : sequence of Target
        What they should reach.
    started : float
        ``time.perf_counter()`` at the start.
    shown : sequence of str, optional
        Which tables to print, with the targets that are named after them; default: all.
    command : str, optional
        What measures all tables; default: this run.

    Returns
    -------
    dict
        What was written.
    """
    name = Path(script).stem
    record = {
        "benchmark": name,
        "command": command or _command(script),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": time.perf_counter() - started,
        "environment": {**describe_environment(), **_machine()},
        "settings": dataclasses.asdict(settings),
        "results": tables,
        "targets": [{**dataclasses.asdict(t), "met": t.met} for t in targets],
    }
    for heading in tables if shown is None else shown:
        _say(f"\n{heading}\n{table(tables[heading])}")
    named = [t for t in targets if shown is None or t.what.startswith(tuple(shown))]
    _say(f"\n{table([t.row() for t in named])}")
    _say(f"\n{record['seconds']:.0f} s on {record['environment']['devices']}")
    if settings.output:
        path = Path(settings.output.replace("NAME", name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_jsonable(record), indent=1) + "\n")
        _say(f"written to {path}")
    return record


Cell = Callable[[], tuple[list[Row], list[Target]]]


def publish_cells(
    settings: Settings, script: str, cells: Mapping[str, Cell], only: Sequence[str] = ()
) -> dict[str, Any]:
    """Measure one table after the other, and write what there is after each.

    Tables that the file holds already are kept: a benchmark of hours may be stopped at any time.

    Parameters
    ----------
    settings : Settings
        Of this run.
    script : str
        ``__file__`` of the benchmark.
    cells : dict of callables
        Each returns the rows of its table, and targets; their names get that of the table.
    only : sequence of str
        Measure tables with one of these words in their name, again if they are there; default: all
        that are missing.

    Returns
    -------
    dict
        What was written last.
    """
    path = Path(settings.output.replace("NAME", Path(script).stem)) if settings.output else None
    old = json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else {}
    tables = {name: rows for name, rows in old.get("results", {}).items() if name in cells}
    kept = {name: [t for t in old.get("targets", ()) if _of(t, name)] for name in tables}
    targets = {name: [_target(t) for t in own] for name, own in kept.items()}
    record, started = old, time.perf_counter() - old.get("seconds", 0.0)
    for name, cell in cells.items():
        if any(word in name for word in only) if only else name not in tables:
            say(f"{name} ...")
            tables[name], own = cell()
            targets[name] = [dataclasses.replace(t, what=f"{name}: {t.what}") for t in own]
            known = [n for n in cells if n in tables]
            every = [t for n in known for t in targets[n]]
            found = {n: tables[n] for n in known}
            command = _command(script, only, () if len(known) == len(cells) else known)
            record = publish(settings, script, found, every, started, [name], command)
    return record


def _command(script: str, only: Sequence[str] = (), known: Sequence[str] = ()) -> str:
    """What was run; if with an option whose values are ``only``, then for ``known``, or for all."""
    words = sys.argv[1:]
    if values := [i for i, word in enumerate(words) if word in only]:
        first, last = values[0], values[-1] + 1
        part = [words[first - 1], *known] if known else []
        words = [*words[: first - 1], *part, *words[last:]]
    return shlex.join(["python", f"benchmarks/{Path(script).stem}.py", *words])


def _of(target: Row, name: str) -> bool:
    return str(target["what"]).startswith(f"{name}: ")


def _target(kept: Row) -> Target:
    return Target(kept["what"], float(kept["value"]), kept["bound"], kept["at_least"])


def say(line: str) -> None:
    """Show progress, on the error stream.

    Parameters
    ----------
    line : str
        What to show.
    """
    print(line, file=sys.stderr, flush=True)


def peak_memory() -> int:
    """Return the bytes of memory that this process has held at most."""
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _say(text: str) -> None:
    print(text, flush=True)


def _jsonable(value: Any) -> Any:
    """Turn what JSON does not know into what it does; infinity and NaN become texts."""
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(v) for v in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    return float(value) if math.isfinite(value) else str(float(value))


def _machine() -> dict[str, Any]:
    """Cores that this process may use, how busy they are, and what they are called."""
    info = Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip()
        for line in (info.read_text().splitlines() if info.exists() else ())
        if line.startswith("model name")
    ]
    usable = getattr(os, "sched_getaffinity", None)
    return {
        "cpus": len(usable(0)) if usable else os.cpu_count(),
        "cpu": names[0] if names else "unknown",
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
