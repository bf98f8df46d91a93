"""How fast does ``fit`` train, against the same update dispatched one at a time from Python?

    python benchmarks/training_throughput.py

Quadratic SDE, MLP, batch 256, for windows of 1 and of 10 steps, all in one process and in turn:

- *fit*: ``smdp.fit``, whose epochs of 500 updates run on the device. Its wall time less what JAX
  reports for tracing, lowering and compiling, for a long and a short run: the difference of the two
  is the time of the updates alone.
- *Python*: the same update written by hand around the library's objective (random windows,
  gradient, optax, moving average), jitted, and called in a Python loop that waits only at its end.
- *Python, reads every loss*: the same loop, which looks at the loss after every update.
- *fit, one at a time*: ``smdp.fit(epoch_steps=1)``, which also looks at the loss every time.

"compile s" is what JAX reports for tracing, lowering and compiling the epoch of the first ``fit``
and the update in Python; "first fit s" is that whole ``fit`` of one update, compilation and final
diagnostics included. That later ones compile no epoch is checked on the way.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import harness
import jax
import jax.numpy as jnp
import optax
import timing

import smdp_jax as smdp
from smdp_jax.physics import Quadratic
from smdp_jax.trajectories import window

WANTED_RATIO = {1: 2.5, 10: 1.0}
WANTED_COMPILATION = 3.0
DECAY = 0.999
SIDES = ("fit", "Python", "Python, reads every loss", "fit, one at a time")


@dataclass(frozen=True)
class Settings(harness.Settings):
    """What is trained, and how long."""

    windows: tuple[int, ...] = (1, 10)
    """Steps per window."""
    updates: int = 30_000
    """Steps of windows that are timed: updates times steps per window."""
    repeats: int = 3
    """Rounds."""
    trajectories: int = 250
    """Paths to learn from."""
    batch_size: int = 256
    """Windows per update."""
    epoch_steps: int = 500
    """Updates per dispatch."""


class Problem:
    """What both sides train: process, network, paths, optimiser, objective."""

    def __init__(self, settings: Settings, size: int) -> None:
        system = Quadratic()
        self.sde = system.sde()
        self.model = smdp.models.MLP()
        self.batch_size = settings.batch_size
        self.objective = smdp.MultiStep(windows=(size,)) if size > 1 else smdp.OneStep()
        self.size = size
        self.optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3, b2=0.99))
        self.data = smdp.simulate(
            self.sde,
            system.prior(jax.random.key(0), settings.trajectories),
            smdp.linear_grid(0.0, 10.0, 500),
            key=jax.random.key(1),
        )

    def fit(self, updates: int, epoch_steps: int) -> smdp.Fit:
        """Train by the library."""
        return smdp.fit(
            self.sde,
            self.model,
            self.data,
            self.objective,
            self.optimizer,
            steps=updates,
            key=jax.random.key(2),
            batch_size=self.batch_size,
            ema=DECAY,
            epoch_steps=epoch_steps,
            progress=False,
        )

    def by_hand(self) -> tuple[Callable[[Any, Any], Any], Any]:
        """Write the same update by hand; return it and its initial state."""
        preconditioner = smdp.Preconditioner.of(self.sde, self.data)
        x = self.data.at(0, -1)
        params = self.model.init(jax.random.key(2), self.data.ts[-1], x, None)
        first, last = self.objective.first_time, self.data.num_times - 1 - self.size

        def loss(params: Any, data: smdp.Trajectories, key: Any) -> Any:
            score = smdp.LearnedScore(self.model, params, preconditioner)
            k_sample, k_start, k_loss = jax.random.split(key, 3)
            samples = jax.random.randint(k_sample, (self.batch_size,), 0, data.num_samples)
            starts = jax.random.randint(k_start, (self.batch_size,), first, last + 1)

            def one(sample: Any, start: Any, key: Any) -> Any:
                piece = window(data, sample, start, self.size)
                return self.objective.loss(score, self.sde, piece, None, key)

            keys = jax.random.split(k_loss, self.batch_size)
            return jax.vmap(one)(samples, starts, keys).mean()

        @jax.jit
        def update(state: Any, data: smdp.Trajectories) -> Any:
            params, average, opt_state, step = state
            key = jax.random.fold_in(jax.random.key(3), step)
            value, gradient = jax.value_and_grad(loss)(params, data, key)
            updates, opt_state = self.optimizer.update(gradient, opt_state, params)
            params = optax.apply_updates(params, updates)
            decay = jnp.minimum(DECAY, (1.0 + step) / (10.0 + step))
            average = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), average, params)
            return (params, average, opt_state, step + 1), value

        return update, (params, params, self.optimizer.init(params), jnp.zeros((), jnp.int32))


def without_compilation(call: Callable[[], Any]) -> tuple[float, timing.Compilations]:
    """Time a call, less what JAX reports to have spent on compiling meanwhile."""
    with timing.watch_compilation() as compiled:
        took = timing.seconds(call)
    return took - compiled.total, compiled


def measure(settings: Settings, size: int) -> list[dict[str, Any]]:
    """Time all sides for one window length."""
    problem = Problem(settings, size)
    updates = max(settings.updates // size, 1)
    short, long = settings.epoch_steps, settings.epoch_steps + updates
    few = max(updates // 4, 1)
    update, initial = problem.by_hand()

    def in_python(updates: int, reads: bool) -> Any:
        state = initial
        for _ in range(updates):
            state, loss = update(state, problem.data)
            if reads:
                float(loss)
        return state

    begun = time.perf_counter()
    with timing.watch_compilation() as first:
        problem.fit(1, settings.epoch_steps)
    first_fit = time.perf_counter() - begun
    with timing.watch_compilation() as by_hand:
        jax.block_until_ready(update(initial, problem.data))
    rates: dict[str, list[float]] = {name: [] for name in SIDES}
    for n in range(settings.repeats):
        harness.say(f"window {size}, round {n + 1} of {settings.repeats}")
        a, _ = without_compilation(lambda: problem.fit(short, settings.epoch_steps))
        b, again = without_compilation(lambda: problem.fit(long, settings.epoch_steps))
        rates["fit"].append(updates / max(b - a, 1e-9))
        if first.count("epoch") != 1 or again.count("epoch"):
            counts = f"{first.count('epoch')} times first, then {again.count('epoch')} times"
            raise RuntimeError(f"the epoch was compiled {counts}, not once and never again")
        rates["Python"].append(updates / timing.seconds(lambda: in_python(updates, False)))
        took = timing.seconds(lambda: in_python(few, True))
        rates["Python, reads every loss"].append(few / took)
        c, _ = without_compilation(lambda: problem.fit(1, 1))
        d, _ = without_compilation(lambda: problem.fit(1 + few, 1))
        rates["fit, one at a time"].append(few / max(d - c, 1e-9))
    compilation = {"fit": first.of("epoch"), "Python": by_hand.of("update")}
    rows = []
    for name, found in rates.items():
        rows.append(
            {
                "updates": name,
                "window": size,
                "median / s": statistics.median(found),
                "most / s": max(found),
                "fit over it, median": statistics.median(
                    ours / theirs for ours, theirs in zip(rates["fit"], found, strict=True)
                ),
                "fit over it, most": max(rates["fit"]) / max(found),
                "compile s": compilation.get(name),
                "first fit s": first_fit if name == "fit" else None,
            }
        )
    return rows


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    quick = {"updates": 200, "repeats": 1, "epoch_steps": 50}
    settings = harness.parse(Settings(), quick, __doc__, given)
    started = time.perf_counter()
    rows, targets = [], []
    for size in settings.windows:
        found = measure(settings, size)
        rows += found
        sides = {row["updates"]: row for row in found}
        targets += [
            harness.Target(
                f"window {size}: fit over {side}",
                sides[side]["fit over it, median"],
                WANTED_RATIO.get(size, 1.0),
                at_least=True,
            )
            for side in ("Python", "Python, reads every loss")
        ]
        compilation = sides["fit"]["compile s"]
        targets.append(harness.Target(f"window {size}: compile s", compilation, WANTED_COMPILATION))
    return harness.publish(settings, __file__, {"Training": rows}, targets, started)


if __name__ == "__main__":
    main()
