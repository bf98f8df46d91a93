"""What a stranger waits for: from a clone to posterior samples, the documentation, a large file.

The clone of this checkout's HEAD lies in a temporary folder, its environment is new, and pip keeps
nothing: all is fetched. Run it on an idle machine: seconds are wall clock. The documentation, the
file and the types are measured in the environment that runs this script (``.[dev]``).

    python benchmarks/first_hour.py
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness

ROOT = Path(__file__).parents[1]
_PASS = """
import resource, sys, h5py, jax, numpy
from smdp_jax import datasets
with h5py.File(sys.argv[1], "w") as file:
    file["t-coordinate"] = numpy.linspace(0, 1, 32, dtype="float32")
    paths = file.create_dataset("tensor", (512, 32, 32768), "float32", chunks=(1, 32, 32768))
    for i in range(512):
        paths[i] = numpy.float32(i)
stream = datasets.open_foreign(sys.argv[1])
jax.random.permutation(jax.random.key(0), 512).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
blocks, read = stream.blocks(jax.random.key(0)), 0
while read < 2**31:
    read += next(blocks).xs.nbytes
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@dataclass(frozen=True)
class Settings(harness.Settings):
    """What is measured."""

    parts: tuple[str, ...] = ("samples", "docs", "file", "types")
    """Which of the four."""


def timed(command: Sequence[str], folder: Path, **env: str) -> tuple[float, str]:
    """Seconds of a command, and what it wrote; neither this session's paths nor its caches help."""
    inherited = {n: v for n, v in os.environ.items() if not n.startswith(("PYTHON", "JAX_"))}
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=inherited | env, check=True, capture_output=True, text=True
    )
    return time.perf_counter() - started, done.stdout


def samples(folder: Path) -> list[harness.Target]:
    """The README's own block about the pretrained heat equation, in a new clone."""
    clone, python = folder / "clone", str(folder / "clone" / ".venv" / "bin" / "python")
    seconds = {"clone": timed(["git", "clone", "-q", str(ROOT), str(clone)], folder)[0]}
    readme = (clone / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", readme, re.M | re.S)
    (block,) = [block for block in blocks if 'smdp.pretrained("heat")' in block]
    (clone / "heat.py").write_text(block, encoding="utf-8")
    seconds["environment"] = timed(["python3", "-m", "venv", ".venv"], clone)[0]
    install = [python, "-m", "pip", "install", "-q", "."]
    seconds["installation"] = timed(install, clone, PIP_NO_CACHE_DIR="1")[0]
    seconds["program"], told = timed([python, "heat.py"], clone)
    if len(told.split()) != 2:
        raise RuntimeError(f"the README's program must print two numbers, got {told!r}")
    split = [harness.Target(f"of these: {name}", s) for name, s in seconds.items()]
    return [harness.Target("clone to samples of a field, s", sum(seconds.values()), 90), *split]


def docs(folder: Path) -> list[harness.Target]:
    """Built anew; a warning ends it."""
    command = [sys.executable, "-m", "sphinx", "-EWq", "docs", str(folder / "html")]
    return [harness.Target("documentation, s", timed(command, ROOT)[0], 120)]


def file(folder: Path) -> list[harness.Target]:
    """One pass over 2 GiB, in the blocks that nobody asked for."""
    told = timed([sys.executable, "-c", _PASS, str(folder / "a.h5")], ROOT)[1]
    before, peak = (int(kib) * 1024 / 1e6 for kib in told.split())
    return [
        harness.Target("2 GiB streamed: memory beside JAX, MB", peak - before, 400),
        harness.Target("2 GiB streamed: memory in all, MB", peak),
    ]


def types(folder: Path) -> list[harness.Target]:
    """Share of what the package exports whose types are known."""
    ours = Path(sys.executable).parent  # as where it is activated: else nothing is found
    path = {"PATH": f"{ours}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": str(ours.parent)}
    command = [sys.executable, "-m", "pyright", "--ignoreexternal", "--verifytypes", "smdp_jax"]
    done = subprocess.run(
        [*command, "--outputjson"],
        cwd=folder, env=os.environ | path, capture_output=True, check=False,
    )  # fmt: skip
    score = json.loads(done.stdout)["typeCompleteness"]["completenessScore"]
    return [harness.Target("share of types that are known", score, 0.95, at_least=True)]


PARTS = {"samples": samples, "docs": docs, "file": file, "types": types}


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    settings = harness.parse(Settings(), {"parts": ("docs",)}, __doc__, given)
    started, targets = time.perf_counter(), []
    for name in settings.parts:
        with tempfile.TemporaryDirectory() as folder:
            targets += PARTS[name](Path(folder))
    return harness.publish(settings, __file__, {}, targets, started)


if __name__ == "__main__":
    main()
