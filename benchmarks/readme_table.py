"""Write the table of measured results into README.md, from the JSON files of the benchmarks.

python benchmarks/readme_table.py
"""

import json
from pathlib import Path
from typing import Any

from harness import say

_MARKS = ("<!-- results: benchmarks/readme_table.py -->", "<!-- end of results -->")


def rows(record: dict[str, Any]) -> list[str]:
    """Return the lines of one benchmark: a heading with its command, and one line per target."""
    environment = record["environment"]
    devices = environment["devices"]
    where = f"{environment['cpus']} cores" if devices.endswith("(cpu)") else devices
    lines = [f"| **`{record['command']}`** | | | {record['date'][:10]}, {where} |"]
    for target in record["targets"]:
        sign = "≥" if target["at_least"] else "≤"
        wanted = "" if target["bound"] is None else f"{sign} {target['bound']:g}"
        reached = {True: "yes", False: "**no**", None: ""}[target["met"]]
        what = target["what"].replace("|", "\\|")
        lines.append(f"| {what} | {wanted} | {float(target['value']):.3g} | {reached} |")
    return lines


def main() -> None:
    """Replace what stands between the marks."""
    root = Path(__file__).parent
    files = sorted((root / "results").glob("*.json"))
    table = ["| what | wanted | measured | reached |", "| --- | --- | --- | --- |"]
    for file in files:
        table += rows(json.loads(file.read_text(encoding="utf-8")))
    readme = root.parent / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(_MARKS[0])
    after = rest.split(_MARKS[1])[1]
    readme.write_text("\n".join([before + _MARKS[0], *table, _MARKS[1]]) + after, encoding="utf-8")
    say(f"README.md: {len(table) - 2} lines from {len(files)} benchmarks")


if __name__ == "__main__":
    main()
