"""How does the work of each device fall with their number, and what do large problems cost?

    python benchmarks/scaling.py

On 1, 2, 4 and 8 host devices, each number in a process of its own: these share the cores of one
machine, so what counts is not the clock but what the compiler made. *Strong*: the same batch and
paths for all; *weak*: as many for each device. Operations and bytes of one device are those of its
part of the program (``work.py``); its memory and the collectives, with the numbers that they carry,
are read from the compiled program. Efficiency is the work of one device alone over that of all.

*Costs* computes from the same counts what larger problems take on how many H100: operations at a
share of the peak that was reached or is hoped for, gradients summed over the link between devices.
"""

import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import jax
import jax.numpy as jnp
import optax
from work import SOLD, Work, work_of

import smdp_jax as smdp
from smdp_jax.solve.batches import split_of
from smdp_jax.training.updates import Fixed, Problem, TrainingState, averages

SDE = smdp.SDE(lambda t, x, args: -x, diffusion=0.1)
KEY = jax.random.key


@dataclass(frozen=True)
class Settings(harness.Settings):
    """Sizes."""

    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of devices."""
    batch: int = 64
    """Windows of an update, and paths of a solve: of all (strong), or of eight devices (weak)."""
    field: int = 32
    """Points per side of a field."""
    steps: int = 16
    """Steps of a path."""
    channels: tuple[int, ...] = (8, 16)
    """Of the U-Net."""
    peak_share: float = 0.4
    """Share of an H100's peak that costs are computed with."""
    link: float = 4.5e11
    """Bytes / s between devices."""
    job: int = 0
    """Count for this number of devices, in this process."""


def update(settings: Settings, split: Any, batch: int) -> tuple[Callable, tuple]:
    """One update of a U-Net, as ``fit`` compiles it, and its inputs."""
    side = (settings.field,) * 2
    data = smdp.Trajectories(jnp.linspace(0.0, 1.0, 3), jnp.ones((batch, 3, *side)))
    model, optimizer = smdp.models.UNet(settings.channels), optax.adam(1e-3)
    objective = smdp.OneStep()
    problem = Problem(
        SDE, model, objective, optax.with_extra_args_support(optimizer), batch, 0.999, split
    )
    params = model.init(KEY(0), 0.5, data.at(0, 0), None)["params"]
    state = TrainingState(params, averages(params), optimizer.init(params), jnp.array(0))
    fixed = Fixed({}, objective.scales(SDE, data, True), data.ts)
    if split is not None:
        state, fixed = split.put((state, fixed), whole=True)
    stop = jnp.asarray(1, jnp.int32)

    def one(state: Any, fixed: Any, source: Any) -> Any:
        return problem.epoch(state, fixed, source, None, stop, steps=1)

    return one, (state, fixed, problem.windows(data, None, KEY(1)))


def simulate(settings: Settings, split: Any, batch: int) -> tuple[Callable, tuple]:
    """Paths of fields."""
    ts, mesh = smdp.linear_grid(0.0, 1.0, settings.steps), split and split.asked
    x0 = jnp.ones((batch, settings.field, settings.field))
    return lambda x: smdp.simulate(SDE, x, ts, key=KEY(0), mesh=mesh).xs, (x0,)


def sample(settings: Settings, split: Any, batch: int) -> tuple[Callable, tuple]:
    """Backward paths of fields, by a U-Net."""
    ts, mesh = smdp.linear_grid(0.0, 1.0, settings.steps), split and split.asked
    model, x = smdp.models.UNet(settings.channels), jnp.ones((settings.field,) * 2)
    variables = model.init(KEY(0), 0.5, x, None)

    def solve(variables: Any, x: Any) -> Any:
        score = smdp.LearnedScore(model, variables)
        named = {"num_samples": batch, "key": KEY(0), "mesh": mesh}
        return smdp.sample_posterior(SDE, score, x, ts, **named).samples

    return solve, (variables, x)


VERBS = {"update": update, "simulate": simulate, "sample": sample}


def count(settings: Settings, devices: int) -> list[dict[str, Any]]:
    """Count the work of one of so many devices."""
    mesh = jax.make_mesh((devices,), ("data",))
    split, rows = (split_of(mesh) if devices > 1 else None), []
    for kind in ("strong", "weak"):
        batch = settings.batch if kind == "strong" else settings.batch // 8 * devices
        for name, verb in VERBS.items():
            function, inputs = verb(settings, split, batch)
            work = work_of(function, *inputs)
            program: Any = jax.jit(function).lower(*inputs).compile()
            planned = program.memory_analysis()
            moved = collectives(program.as_text())
            rows.append(
                {
                    "program": name,
                    "scaling": kind,
                    "devices": devices,
                    "of": batch,
                    "operations of each": work.products + work.other,
                    "MB moved by each": work.bytes / 1e6,
                    "scratch MB of each": planned.temp_size_in_bytes / 1e6,
                    "collectives": len(moved),
                    "numbers in them": sum(moved),
                }
            )
    return rows


def collectives(text: str) -> list[int]:
    """Return how many numbers each collective of a compiled program carries."""
    kinds = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    found = re.findall(rf"= \(?\w+\[([\d,]*)\].*? (?:{kinds})(?:-start)?\(", text)
    return [math.prod(int(n) for n in shape.split(",") if n) for shape in found]


def apart(settings: Settings, devices: int) -> list[dict[str, Any]]:
    """Count in a process that has so many devices."""
    harness.say(f"{devices} devices")
    given = {"job": devices, "batch": settings.batch, "field": settings.field}
    given |= {"steps": settings.steps}
    options = [f"--{name}={value}" for name, value in given.items()]
    options += ["--channels", *map(str, settings.channels)]
    flags = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), *options],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def efficiencies(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add what one device alone works on the same, over what all of them do."""
    alone = {(r["program"], r["scaling"]): r for r in rows if r["devices"] == 1}
    shown = []
    for row in rows:
        one = alone[row["program"], row["scaling"]]["operations of each"]
        share = row["devices"] if row["scaling"] == "strong" else 1
        shown.append(row | {"efficiency": one / (share * row["operations of each"])})
    return shown


def costs(settings: Settings) -> list[dict[str, Any]]:
    """Compute what large problems take, from their traced programs alone."""
    peaks, rows = SOLD["H100"], []
    small = settings.quick
    net = smdp.models.UNet((4, 8) if small else (32, 64, 96, 128), dims=3, dtype="bfloat16")
    field = jax.ShapeDtypeStruct((8 if small else 256,) * 3, jnp.float32)
    variables = jax.eval_shape(lambda: net.init(KEY(0), 0.5, jnp.zeros(field.shape), None))
    one = work_of(lambda v, x: net.apply(v, 0.5, x, None), variables, field)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables))
    mlp, x = smdp.models.MLP(), jax.ShapeDtypeStruct((1,), jnp.float32)
    light = jax.eval_shape(lambda: mlp.init(KEY(0), 0.5, jnp.zeros(1), None))
    step = work_of(lambda v, x: mlp.apply(v, 0.5, x, None), light, x)
    cases: dict[str, tuple[Work, int, str]] = {
        "256³ field, 100 samples of 64 steps": (one * 6400, 0, "bfloat16"),
        "256³ field, 10 000 updates of 8 windows": (one * (3 * 8 * 10_000), 10_000, "bfloat16"),
        "scalar, 10⁶ paths of 500 steps, MLP": (step * (1_000_000 * 500), 0, "float32"),
    }
    for name, (work, sums, dtype) in cases.items():
        # A batch of windows gives every device at most one: more devices than windows are idle.
        for devices in (1, 8, 64) if not sums else (1, 8):
            seconds = work.seconds(peaks, dtype) / settings.peak_share / devices
            linked = sums * 2 * 4 * parameters * (1 - 1 / devices) / settings.link
            rows.append(
                {
                    "problem": name,
                    "H100": devices,
                    "hours": (seconds + linked) / 3600,
                    "share of sums": linked / (seconds + linked),
                    "10^15 operations": (work.products + work.other) / 1e15,
                }
            )
    return rows


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    quick = {"devices": (1, 2), "batch": 16, "field": 4, "steps": 2, "channels": (2,)}
    settings = harness.parse(Settings(), quick, __doc__, given)
    if settings.job:
        rows = count(settings, settings.job)
        print(json.dumps(rows))
        return {"rows": rows}
    started = time.perf_counter()
    rows = efficiencies([row for n in settings.devices for row in apart(settings, n)])
    targets = [
        harness.Target(
            f"{row['program']}, {row['scaling']}, {row['devices']} devices: efficiency by work",
            row["efficiency"],
            0.95,
            at_least=True,
        )
        for row in rows
        if row["devices"] == max(settings.devices)
    ]
    update_rows = [r for r in rows if r["program"] == "update" and r["devices"] > 1]
    most = max(r["collectives"] for r in update_rows)
    targets.append(harness.Target("collectives of an update", most, 1))
    tables = {"Work of each device": rows, "Costs": costs(settings)}
    return harness.publish(settings, __file__, tables, targets, started)


if __name__ == "__main__":
    main()
