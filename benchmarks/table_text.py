"""Tables of ``tables.py`` as Markdown and CSV, and those of docs/compared.md."""

import csv
import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def rows_of(cells: Mapping[str, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds, one row for each method."""
    rows = []
    for method, runs in cells.items():
        good = [run["row"] for run in runs if "row" in run]
        row: dict[str, Any] = {"method": method}
        for name in good[0] if good else ():
            values = [run[name] for run in good if name in run]
            if isinstance(values[0], str):
                row[name] = values[0]
                continue
            spread = statistics.stdev(values) if len(values) > 1 else None
            row[name] = (statistics.mean(values), spread)
        if len(good) > 1:
            row["seeds"] = len(good)
        if faults := [run["failed"] for run in runs if "failed" in run]:
            row["fault"] = f"{len(faults)} of {len(runs)}: {faults[0]}"
        elif not runs:
            row["fault"] = "not run"
        rows.append(row)
    return rows


def text(value: Any) -> str:
    """Write one entry of a table."""
    if value is None or isinstance(value, str):
        return value or ""
    mean, spread = value if isinstance(value, tuple) else (value, None)
    if math.isnan(mean):
        return "lost"
    return f"{mean:.3g}" + (f" ± {spread:.1g}" if spread else "")


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


def _read(folder: Path, name: str) -> list[dict[str, str]]:
    file = folder / f"{name}.csv"
    if not file.is_file():
        return []
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


def _number(row: Mapping[str, str], name: str, digits: str) -> str:
    told = f"{float(row[name]):{digits}}" if row.get(name) else "–"
    spread = row.get(f"{name} (sd)")
    return f"{told} ± {float(spread):{digits}}" if spread else told


def _short(row: Mapping[str, str]) -> str:
    """CRPS over the exact posterior's, and C2ST; or why not."""
    if not row.get("CRPS / exact"):
        return row.get("fault", "").split(": ")[-1] or "–"
    entry = _number(row, "CRPS / exact", ".2f")
    return f"{entry} · {float(row['C2ST']):.2f}" if row.get("C2ST") else entry


def _hits(row: Mapping[str, str]) -> str:
    if not row.get("Q, SDE"):
        return row.get("fault", "").split(": ")[-1] or "–"
    return f"{_number(row, 'Q, ODE', '.2f')} / {_number(row, 'Q, SDE', '.2f')}"


def _flow(row: Mapping[str, str]) -> str:
    if not row.get("reconstruction / floor"):
        return row.get("fault", "").split(": ")[-1] or "–"
    names = ("reconstruction / floor", "CRPS / prior", "coverage 80%", "SBC p", "TARP p")
    return " · ".join(_number(row, n, ".2g") for n in names if row.get(n))


def _grid(
    folder: Path, names: Sequence[str], entry: Callable[[Mapping[str, str]], str]
) -> list[str]:
    """One line for each method, one column for each experiment that there is."""
    read = {name: rows for name in names if (rows := _read(folder, name))}
    found: dict[str, dict[str, str]] = {}
    for name, rows in read.items():
        for row in rows:
            found.setdefault(row["method"], {})[name] = entry(row)
    if not read:
        return []
    lines = [f"| method | {' | '.join(read)} |", "| --- " * (1 + len(read)) + "|"]
    for method, entries in found.items():
        told = [entries.get(name, "") for name in read]
        if set(told) - {"", "–"}:
            lines.append(f"| {method} | {' | '.join(told)} |")
    return lines


def summary(
    folder: Path, truth: Sequence[str], fractions: Sequence[str], flows: Sequence[str]
) -> list[str]:
    """Three tables: against what is exact, Q by share of the paths, and flows without a truth."""
    return [
        "CRPS over that of exact samples (1 is the best there is; a single estimate has no spread)",
        "· accuracy of a classifier between samples and exact ones (0.5: cannot tell).",
        "",
        *_grid(folder, truth, _short),
        "",
        "Q of the quadratic process (ODE / SDE), three seeds, by share of the 2500 paths:",
        "",
        *_grid(folder, fractions, _hits),
        "",
        "Flows: reconstruction MSE over the noise floor · CRPS over the prior's · coverage of 80 %",
        "intervals · least SBC p-value times their number · TARP p-value, over held-out pairs:",
        "",
        *_grid(folder, flows, _flow),
    ]
