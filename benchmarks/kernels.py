"""How many kernels is one update, one backward step, as compiled for an H100?

    JAX_PLATFORMS=cpu python benchmarks/kernels.py

No such device is needed, only its compiler (``pip install "smdp_jax[cuda12]"``). Programs are those
that ``fit`` and ``sample_posterior`` run. Counted is one turn of the loop in which their time goes,
an epoch's update or a solve's step, with what it calls and with inner loops as often as they turn.
A *fusion* is a kernel of the compiler's own; *library* is cuBLAS, cuDNN, cuFFT or Triton; *copies*
are copies and fills. Operations and bytes are the least that the mathematics asks for
(``work.py``), "roofline us" the time that an H100 as sold needs for them: where kernels times two
microseconds, about what one costs to start, is more than that, launches are what is paid for.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import harness
import jax
import jax.numpy as jnp
import optax
import training_throughput
from compiling import Chip, Program, compiling_for, device_of
from sampling import random_score
from work import SOLD, Work, work_of

import smdp_jax as smdp
from smdp_jax.physics import Quadratic

LAUNCH = 2e-6
"""Seconds that starting one kernel costs, about, within a graph of them."""
_COPIES = ("copy", "copy-start", "memset", "dynamic-update-slice", "dynamic-slice")
_KERNELS = ("fusion", "convolution", "dot", "reduce", "sort", "scatter", "fft", "custom-call")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) (?:\(.*\) -> .*)?\{$", re.M)
_LINE = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = (?:\([^=]*?\)|\S+) ([\w-]+)\((.*)$")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclass(frozen=True)
class Settings(harness.Settings):
    """What is compiled for what."""

    chip: Chip = "h100"
    """NVIDIA H100, or whatever is here."""
    field: int = 64
    """Points per side of a field."""
    batch: int = 256
    """Fields at once."""
    steps: int = 32
    """Backward steps of a solve."""


def computations(text: str) -> dict[str, list[str]]:
    """Lines of a compiled program by the computation they stand in."""
    parts = _COMPUTATION.split(re.sub(r"/\*.*?\*/", "", text))
    return {
        name: body.split("\n}")[0].splitlines()
        for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }


def kernels(lines: Sequence[str], known: Mapping[str, Sequence[str]]) -> Counter:
    """Kernels of a computation by kind, with those of what it calls."""
    found: Counter = Counter()
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            continue
        kind, rest = match.groups()
        if kind in _COPIES:
            found["copies"] += 1
        elif kind in _KERNELS:
            found["fusions" if kind in ("fusion", "reduce", "scatter") else "library"] += 1
        elif kind in ("call", "conditional", "while", "async-start"):
            inner = [kernels(known[name], known) for name in _called(rest, known)]
            turns = int(number[1]) if (number := _TURNS.search(rest)) else 1
            for counted in inner:
                found.update({name: turns * count for name, count in counted.items()})
    return found


def _called(rest: str, known: Mapping[str, Sequence[str]]) -> list[str]:
    """Computations that an instruction names, but for the condition of a loop."""
    named = re.findall(r"(\w+)=\{?(%[\w.-]+(?:, %[\w.-]+)*)", rest)
    calls = [n[1:] for key, names in named if key != "condition" for n in names.split(", ")]
    return [name for name in calls if name in known]


def turn(program: Program) -> Counter:
    """Kernels of one turn of the loop of a program that has the most of them."""
    known = computations(program.text)
    bodies = re.findall(r" while\(.*?body=%?([\w.-]+)", program.text)
    if not bodies:
        raise ValueError(f"{program.name} must have a loop")
    return max((kernels(known[name], known) for name in bodies), key=Counter.total)


def _hot(device: Any, run: Callable[[], Any]) -> Program:
    """The epoch of a fit or the solve of a posterior, not the checks around them."""
    with compiling_for(device) as programs:
        run()
    (hot,) = (p for p in programs.values() if p.name.split(".")[-1] in ("epoch", "_sample"))
    return hot


def toy_update(size: int, batch: int) -> tuple[Callable[[], Any], Work]:
    """An update of the quadratic problem's network."""
    chosen = training_throughput.Settings(trajectories=50)
    problem = training_throughput.Problem(chosen, size, batch)
    update, state = problem.update(problem.loss, problem.optimizer)
    return partial(problem.fit, 8, 4), work_of(update, state, problem.data)


def _solved(sde: Any, score: Any, x_end: Any, steps: int, paths: int, **how: Any) -> Any:
    ts, key = smdp.linear_grid(0.0, 0.2, steps), jax.random.key(0)

    def sample(x: Any) -> Any:
        given = (sde, score, x, ts)
        return smdp.sample_posterior(*given, num_samples=paths, key=key, **how).samples

    return partial(sample, x_end), work_of(sample, x_end) * (1 / steps)


def cases(settings: Settings) -> Iterator[tuple[str, Callable[[], Any], Work]]:
    """What is compiled: its name, what runs it, and the least that one turn is."""
    for size, batch in ((1, 256), (10, 512)):
        yield f"update, MLP, window {size}, batch {batch}", *toy_update(size, batch)
    one, scalar = jnp.full((1,), 0.1), Quadratic()
    score = random_score(smdp.models.MLP(), one)
    yield "backward step, MLP, 1000 paths", *_solved(scalar.sde(), score, one, 500, 1000)

    decay = smdp.SDE(lambda t, x, args: -x, diffusion=0.1)
    side, batch = settings.field, settings.batch
    x = jax.random.normal(jax.random.key(1), (side, side))
    for dtype in (None, "bfloat16"):
        model = smdp.models.UNet(dtype=dtype)
        score, name = random_score(model, x), dtype or "float32"
        how = f"U-Net {side}², {name}"
        solve = _solved(decay, score, x, settings.steps, batch)
        yield f"backward step, {how}, {batch} paths", *solve
        if side <= 64:
            yield f"update, {how}, batch 64", *_field_update(model, score, side)


def _field_update(model: Any, score: Any, side: int) -> tuple[Callable[[], Any], Work]:
    """An update by one backward step; a gradient takes twice what its value does."""
    decay = smdp.SDE(lambda t, x, args: -x, diffusion=0.1)
    xs = jax.random.normal(jax.random.key(1), (64, 3, side, side))
    data = smdp.Trajectories(smdp.linear_grid(0.0, 0.2, 2), xs)

    def fit() -> Any:
        how: dict[str, Any] = {"steps": 8, "batch_size": 64, "epoch_steps": 4, "progress": False}
        return smdp.fit(
            decay, model, data, smdp.OneStep(), optax.adam(1e-4), key=jax.random.key(2), **how
        )

    one = work_of(lambda v: model.apply(v, 0.1, xs[0, 0], None), score.variables)
    return fit, one * (3 * 64)


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Compile all, and publish what one turn is."""
    quick = {"chip": "here", "field": 8, "batch": 2, "steps": 2}
    settings = harness.parse(Settings(), quick, __doc__, given)
    device, peaks = device_of(settings.chip), SOLD["H100"]

    def row(name: str, run: Callable[[], Any], least: Work) -> harness.Row:
        counted = turn(_hot(device, run))
        dtype = "bfloat16" if "bfloat16" in name else "float32"
        roofline, kernels = least.seconds(peaks, dtype), counted.total()
        return {
            "one": name,
            "kernels": kernels,
            **{kind: counted[kind] for kind in ("fusions", "library", "copies")},
            "Mflop": (least.products + least.other) / 1e6,
            "MB": least.bytes / 1e6,
            "roofline us": roofline * 1e6,
            "launches / roofline": kernels * LAUNCH / roofline,
        }

    started, rows = time.perf_counter(), [row(*case) for case in cases(settings)]
    counted = [harness.Target(f"{row['one']}: kernels", row["kernels"]) for row in rows]
    heading = f"One turn, compiled for {device.device_kind}"
    return harness.publish(settings, __file__, {heading: rows}, counted, started)


if __name__ == "__main__":
    main()
