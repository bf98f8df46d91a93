"""Everything that an accelerator should tell, in the minutes that there are.

    python benchmarks/accelerator.py --minutes 12

On whatever device JAX finds, in order of worth: (a) how long the paper presets take, foretold from
a hundredth of each; (b) updates and paths of the toy problems; (c) the share of its peak that field
networks reach, in float32 (products rounded as the device does) and bfloat16; (d) cell-steps of
smoke and of Navier-Stokes, beside PhiFlow and exponax where they are installed (our spectral steps
are jax-cfd's); (e) heat and Burgers ``paper`` in full; (f) turbulence and smoke ``paper``.

Every case is written to ``FOLDER/DEVICE/PIECE.json`` the moment it is done, and not done again on
that device: killed at any moment, the same command goes on. Each piece has a process of its own,
which is ended when its part's share of the minutes is over; when all had their turn, those that are
left take what is left. Beside a figure stands what the device could do at best: the roofline of the
operations and bytes of ``benchmarks/work.py``, with the peaks of the data sheet, or as measured
where there is none.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import harness
import jax
from accelerator_cases import PARTS, QUICK, Sizes
from work import SOLD, Work

from smdp_jax.evaluate import describe_environment
from smdp_jax.files import write_atomically

PEERS = (", PhiFlow", ", exponax")
WANTED = {
    "unet_wide: training, bfloat16": 0.4,
    "unet_wide: sampling, bfloat16": 0.4,
    "paths_exact": 1e9,
    "navier_stokes": 1e9,
}
"""Least best share of the roofline, or rate, of the figures that begin so; on an H100 or H200."""


@dataclass(frozen=True)
class Settings(Sizes):
    """What is measured, where it goes, and for how long."""

    output: str = "FOLDER/DEVICE/NAME.json"
    """Where the table goes."""
    folder: str = "benchmarks/results/accelerator"
    """Where the figures go."""
    minutes: float = 12.0
    """How long, at most."""
    parts: tuple[str, ...] = ("a", "b", "c", "d", "e", "f")
    """Which parts."""
    pieces: tuple[str, ...] = ()
    """Which pieces of them; none: all."""
    apart: bool = True
    """Each piece in a process of its own."""
    job: str = ""
    """Do this piece in this process; "device": print what the device is called."""


def device_name() -> str:
    """Return the kind of the devices, as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9]+", "-", jax.devices()[0].device_kind).strip("-")


def read(file: Path) -> dict[str, Any]:
    """Return what is known of a piece."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return json.loads(file.read_text(encoding="utf-8"))
    return {"done": False, "cases": {}}


def measure(settings: Settings, part: str, piece: str, file: Path) -> None:
    """Do the cases of a piece that are not done, and note each; one that fails is tried again."""
    known = read(file)
    if "command" not in known:
        known = {"part": part, "piece": piece, **known, "command": " ".join(sys.argv)}
    failed = False
    for name, case in PARTS[part][1][piece](settings):
        if "value" in known["cases"].get(name, {}):
            continue
        harness.say(f"({part}) {piece}: {name}")
        try:
            known["cases"][name] = case()
        except (Exception, SystemExit) as error:  # too little memory, a peer that is broken
            known["cases"][name] = {"error": f"{type(error).__name__}: {error}"[:500]}
            failed = True
        known |= {"environment": describe_environment(), "sizes": settings.__dict__}
        write_atomically(file, json.dumps(known, indent=1, default=str))
    write_atomically(file, json.dumps(known | {"done": not failed}, indent=1, default=str))


@contextlib.contextmanager
def child(settings: Settings, job: str) -> Iterator[subprocess.Popen]:
    """Start this script on one job; it and what it started ends with the context."""
    options = ["--job", job, "--folder", settings.folder, "--runs-dir", settings.runs_dir]
    options += ["--quick"] if settings.quick else []
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(Path(settings.runs_dir).absolute() / "compiled")
    }
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__)), *options],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**environment, **os.environ},
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def do(settings: Settings, part: str, piece: str, file: Path, seconds: float) -> None:
    """Do a piece, for so long at most."""
    if not settings.apart:
        return measure(settings, part, piece, file)
    with child(settings, piece) as process:
        try:
            process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            harness.say(f"({part}) {piece}: stopped after {seconds:.0f} s")


def schedule(settings: Settings, folder: Path, started: float) -> None:
    """Give every part its share of the time, and then what is left to those that are left."""
    end, spent_by = started + 60 * settings.minutes, started
    chosen = [p for p in PARTS if p == "peaks" or p in settings.parts]
    for first in (True, False):
        for part in chosen:
            share, pieces = PARTS[part]
            spent_by = end if not first else spent_by + share * 60 * settings.minutes
            for piece in pieces:
                file = folder / f"{piece}.json"
                wanted = not settings.pieces or piece in settings.pieces or part == "peaks"
                # Without the peaks no figure has a roofline.
                left = (spent_by if first and part != "peaks" else end) - time.perf_counter()
                if wanted and left > 1 and not read(file)["done"]:
                    do(settings, part, piece, file, left)


def peaks_of(folder: Path) -> dict[str, float]:
    """Return operations and bytes per second: as sold, and where that is not known as measured."""
    found = read(folder / "peaks.json")["cases"]
    measured = {name: case["value"] for name, case in found.items() if "value" in case}
    sold = next((s for kind, s in SOLD.items() if kind.replace(" ", "-") in folder.name), {})
    return {**measured, **sold}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return the table: every case that is known of a device, beside its roofline."""
    peaks, rows = peaks_of(folder), []
    for part, (_, pieces) in PARTS.items():
        for piece in pieces:
            for name, case in read(folder / f"{piece}.json")["cases"].items():
                share = None
                if "work" in case and len(peaks) == 4:
                    share = Work(**case["work"]).seconds(peaks, case["dtype"]) / case["seconds"]
                value = case.get("value")
                rows.append(
                    {
                        "part": part,
                        "figure": f"{piece}: {name}",
                        "measured": value,
                        "unit": case.get("unit", case.get("error", "")[:40]),
                        "roofline": value / share if share else None,
                        "share of it": share,
                    }
                )
    return rows


def targets_of(rows: Sequence[dict[str, Any]], device: str) -> list[harness.Target]:
    """Return what the best of each kind should reach, on the devices that it is asked of."""
    asked, found = "H100" in device or "H200" in device, []
    for begin, bound in WANTED.items():
        column = "share of it" if bound < 1 else "measured"
        values = [
            r[column]
            for r in rows
            if r["figure"].startswith(begin) and not r["figure"].endswith(PEERS)
        ]
        known = [v for v in values if v is not None]
        if known:
            target = harness.Target(
                f"{begin}, best {column}", max(known), bound if asked else None, at_least=True
            )
            found.append(target)
    rates = {r["figure"]: r["measured"] for r in rows if r["measured"]}
    faster = [rates[n.removesuffix(PEERS[0])] / v for n, v in rates.items() if n.endswith(PEERS[0])]
    if faster:
        bound = 10.0 if asked else None
        found.append(harness.Target("smoke over PhiFlow, best", max(faster), bound, at_least=True))
    for row in rows:
        if row["part"] == "e" and row["measured"] is not None:
            bound = 12.0 if asked else None
            found.append(harness.Target(f"{row['figure']}: minutes", row["measured"], bound))
    return found


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    settings = harness.parse(Settings(), QUICK | {"folder": "runs/quick"}, __doc__, given)
    if settings.job == "device":
        print(device_name())
        return {}
    if settings.job:
        part = next(p for p, (_, pieces) in PARTS.items() if settings.job in pieces)
        file = Path(settings.folder) / device_name() / f"{settings.job}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        measure(settings, part, settings.job, file)
        return read(file)
    started = time.perf_counter()
    if settings.apart:  # this process must not hold the device's memory
        with child(settings, "device") as process:
            device = process.communicate()[0].strip()
    else:
        device = device_name()
    folder = Path(settings.folder) / device
    folder.mkdir(parents=True, exist_ok=True)
    schedule(settings, folder, started)
    rows = rows_of(folder)
    output = settings.output.replace("FOLDER", settings.folder).replace("DEVICE", device)
    return harness.publish(
        replace(settings, output=output),
        __file__,
        {device: rows},
        targets_of(rows, device),
        started,
    )


if __name__ == "__main__":
    main()
