"""Write measured results: all into benchmarks/RESULTS.md, ten of them into README.md.

python benchmarks/readme_table.py
"""

import json
from pathlib import Path
from typing import Any

from harness import say

_MARKS = ("<!-- results: benchmarks/readme_table.py -->", "<!-- end of results -->")
_HEAD = ["| what | wanted | measured | reached |", "| --- | --- | --- | --- |"]

SHOWN = {  # is it right, is it fast: by file, the names of its targets
    "experiments": (
        "affine: error of P(+1 | x_T), largest",
        "affine: score error, t = 0.5",
        "quadratic: Q, reverse-time SDE",
        "heat: RMSE of the mean / exact",
        "heat: distance of std / exact from 1",
        "burgers: reconstruction MSE of a sample / noise floor",
        "turbulence: reconstruction MSE, best physics alone / a sample",
    ),
    "sampling": ("overhead on fields",),
    "smoke": ("PhiFlow's time / ours",),
    "training_throughput": ("window 1: fit over Python",),
}


def row(target: dict[str, Any]) -> str:
    """Return the line of one target."""
    sign = "≥" if target["at_least"] else "≤"
    wanted = "" if target["bound"] is None else f"{sign} {target['bound']:g}"
    reached = {True: "yes", False: "**no**", None: ""}[target["met"]]
    what = target["what"].replace("|", "\\|")
    return f"| {what} | {wanted} | {float(target['value']):.3g} | {reached} |"


def rows(record: dict[str, Any]) -> list[str]:
    """Return the lines of one benchmark: a heading with its command, and one line per target."""
    environment = record["environment"]
    devices = environment["devices"]
    where = f"{environment['cpus']} cores" if devices.endswith("(cpu)") else devices
    heading = f"| **`{record['command']}`** | | | {record['date'][:10]}, {where} |"
    return [heading, *map(row, record["targets"])]


def shown(records: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lines of the README, and how many of all targets are met."""
    lines = list(_HEAD)
    for name, wanted in SHOWN.items():
        targets = {target["what"]: target for target in records[name]["targets"]}
        lines += [row(targets[what]) for what in wanted]
    met = [target["met"] for record in records.values() for target in record["targets"]]
    judged = [m for m in met if m is not None]
    summary = f"Of all {len(judged)} targets {sum(judged)} are met; the others say **no**."
    return [*lines, "", summary]


def replace(file: Path, lines: list[str], marks: tuple[str, str] = _MARKS) -> None:
    """Replace what stands between the marks."""
    text = file.read_text(encoding="utf-8")
    before, rest = text.split(marks[0])
    after = rest.split(marks[1], 1)[1]
    file.write_text("\n".join([before + marks[0], *lines, marks[1]]) + after, encoding="utf-8")


def main() -> None:
    """Write both tables."""
    root = Path(__file__).parent
    files = sorted((root / "results").glob("*.json"))
    records = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    table = [*_HEAD, *(line for record in records.values() for line in rows(record))]
    replace(root / "RESULTS.md", table)
    replace(root.parent / "README.md", shown(records))
    say(f"RESULTS.md: {len(table) - 2} lines from {len(files)} benchmarks")


if __name__ == "__main__":
    main()
