"""How fast does ``fit`` train, against the same update dispatched one at a time from Python?

    python benchmarks/training_throughput.py

Quadratic SDE, MLP, windows of 1 step (batch 256) and of 10 (batch 512), all in one process and in
turn:

- *fit*: ``smdp.fit``, whose epochs of 500 updates run on the device. Its wall time less what JAX
  reports for tracing, lowering and compiling, for a long and a short run: the difference of the two
  is the time of the updates alone.
- *Python*: the same update written by hand around the library's objective (random windows,
  gradient, optax, moving average), jitted, and called in a Python loop that waits only at its end.
- *Python, reads every loss*: the same loop, which looks at the loss after every update.
- *by hand*: what one writes without the library, as the published code does: a network of flax on
  arrays (batch, features), the steps of a window unrolled in Python, jitted, and every loss read.
  That its loss is the library's is checked on the way.
- *fit, one at a time*: ``smdp.fit(epoch_steps=1)``, which also looks at the loss every time.
- *floor*: a loop on the device around the network, its gradient and the optimiser alone, on a batch
  that stays the same: no loop can train this network faster, however it draws, weighs and averages.
  No side can be quicker than *Python* by more than *floor* is.

"compile s" is what JAX reports for tracing, lowering and compiling the epoch of the first ``fit``
and the update in Python; "first fit s" is that whole ``fit`` of one update, compilation and final
diagnostics included. That later ones compile no epoch is checked on the way.

Ratios are of wall times, and of the processor's ("CPU"): where other work shares the machine the
latter are what to look at; on an idle one *Python* dispatches on the second core while the first
computes, which spares it up to half of its wall time.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing

import smdp_jax as smdp
from smdp_jax.physics import Quadratic
from smdp_jax.trajectories import window

WANTED = {1: ("Python", 3.0), 10: ("by hand", 2.0)}
WANTED_COMPILATION = 3.0
DECAY = 0.999
ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3, b2=0.99))


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
    batch_sizes: tuple[int, ...] = (256, 512)
    """Windows per update, one for each of their lengths."""
    epoch_steps: int = 500
    """Updates per dispatch."""


class Problem:
    """What both sides train: process, network, paths, optimiser, objective."""

    def __init__(self, settings: Settings, size: int, batch_size: int) -> None:
        system = Quadratic()
        self.sde = system.sde()
        self.model = smdp.models.MLP()
        self.batch_size = batch_size
        self.objective = smdp.MultiStep(windows=(size,)) if size > 1 else smdp.OneStep()
        self.size = size
        self.optimizer = optax.flatten(ADAM)  # as the default optimiser is
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

    def start(self) -> tuple[Any, Any]:
        """Scales of the data, and first variables of the network."""
        scales, x = smdp.Preconditioner.of(self.sde, self.data), self.data.at(0, -1)
        return scales, self.model.init(jax.random.key(2), self.data.ts[-1], x, None)

    def places(self, data: smdp.Trajectories, key: Any) -> tuple[Any, Any]:
        """Draw paths and first times of a batch of windows."""
        first, last = self.objective.first_time, self.data.num_times - 1 - self.size
        k_sample, k_start = jax.random.split(key)
        samples = jax.random.randint(k_sample, (self.batch_size,), 0, data.num_samples)
        return samples, jax.random.randint(k_start, (self.batch_size,), first, last + 1)

    def loss(self, params: Any, scales: Any, data: smdp.Trajectories, key: Any) -> Any:
        """Mean of the library's loss over random windows."""
        score = smdp.LearnedScore(self.model, params, scales)

        def one(sample: Any, start: Any, key: Any) -> Any:
            piece = window(data, sample, start, self.size)
            return self.objective.loss(score, self.sde, piece, None, key)

        keys = jax.random.split(jax.random.fold_in(key, 1), self.batch_size)
        return jax.vmap(one)(*self.places(data, key), keys).mean()

    def unrolled(self, params: Any, scales: Any, data: smdp.Trajectories, key: Any) -> Any:
        """Write the same loss on arrays (batch, features), its steps unrolled."""
        samples, starts = self.places(data, key)
        steps, total = jnp.arange(self.size + 1), 0.0
        ts, path = (
            data.ts[starts[:, None] + steps],
            data.xs[samples[:, None], starts[:, None] + steps],
        )
        x, network, system = path[:, -1], Rows(self.model.widths), Quadratic()
        drift, c = jax.vmap(system.drift), jnp.sqrt(jnp.mean(scales.variance))
        for i in range(self.size, 0, -1):
            t, dt = ts[:, i], (ts[:, i] - ts[:, i - 1])[:, None]
            mean, variance, noise = (v[:, None] for v in jax.vmap(scales._at)(t))
            out: Any = network.apply(params, t, (x - mean) / c)
            score = out / jnp.sqrt(noise) - (x - mean) / variance
            x = x - dt * (drift(t, x) - system.noise**2 * score)
            total = total + jnp.mean((x - path[:, i - 1]) ** 2 / (system.noise**2 * dt))
        return total / self.size

    def update(self, loss: Callable[..., Any], optimizer: Any) -> tuple[Callable[..., Any], Any]:
        """One update, jitted, and the state it starts from."""
        scales, params = self.start()

        @jax.jit
        def update(state: Any, data: smdp.Trajectories) -> Any:
            params, average, opt_state, step = state
            key = jax.random.fold_in(jax.random.key(3), step)
            value, gradient = jax.value_and_grad(loss)(params, scales, data, key)
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            params = optax.apply_updates(params, updates)
            decay = jnp.minimum(DECAY, (1.0 + step) / (10.0 + step))
            average = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), average, params)
            return (params, average, opt_state, step + 1), value

        return update, (params, params, optimizer.init(params), jnp.zeros((), jnp.int32))

    def floor(self) -> Callable[[int], Any]:
        """A loop around network, gradient and optimiser alone."""
        _, params = self.start()
        x, t = self.data.xs[:, :4].reshape(-1, 1)[: self.batch_size], self.data.ts[-1]

        def loss(params: Any) -> Any:
            y: Any = x
            for _ in range(self.size):
                out: Any = jax.vmap(lambda v: self.model.apply(params, t, v, None))(y)
                y = y - 1e-3 * out
            return jnp.mean(y**2)

        def body(state: tuple) -> tuple:
            params, opt_state, left = state
            updates, opt_state = self.optimizer.update(jax.grad(loss)(params), opt_state, params)
            return optax.apply_updates(params, updates), opt_state, left - 1

        run = jax.jit(lambda state: jax.lax.while_loop(lambda state: state[2] > 0, body, state))
        start = params, self.optimizer.init(params)
        return lambda updates: run((*start, jnp.asarray(updates, jnp.int32)))


class Rows(nn.Module):
    """The library's ``MLP`` as one writes it: on arrays (batch, features)."""

    widths: Sequence[int]

    @nn.compact
    def __call__(self, t: Any, x: Any) -> Any:
        """Score of a batch."""
        h = jnp.concatenate([x, jnp.log(t + 1e-5)[:, None]], axis=1)
        for width in self.widths:
            h = nn.elu(nn.Dense(width)(h))
        return nn.Dense(1)(h)


def check_same_loss(problem: Problem) -> None:
    """The loss written by hand is the library's, on a network that is not 0."""
    scales, params = problem.start()
    params = jax.tree.map(lambda p: p + 0.01, params)
    found = [
        f(params, scales, problem.data, jax.random.key(7)) for f in (problem.loss, problem.unrolled)
    ]
    np.testing.assert_allclose(*found, rtol=1e-3)


def without_compilation(call: Callable[[], Any]) -> tuple[float, timing.Compilations]:
    """Time a call, less what JAX reports to have spent on compiling meanwhile."""
    with timing.watch_compilation() as compiled:
        took = timing.seconds(call)
    return took - compiled.total, compiled


def taken(call: Callable[[], Any]) -> np.ndarray:
    """Wall time of a call, less compilation, and its processor time."""
    begun = time.process_time()
    wall, _ = without_compilation(call)
    return np.array([wall, time.process_time() - begun])


def speeds(given: np.ndarray, ours: np.ndarray) -> dict[str, float]:
    """Of seconds per update (rounds, 2), wall and processor's, and beside ours."""
    wall, busy = given.T
    over, busy_over = np.median(given / ours, axis=0)
    return {
        "median / s": float(1 / np.median(wall)),
        "most / s": float(1 / wall.min()),
        "CPU us": float(1e6 * np.median(busy)),
        "fit over it, median": float(over),
        "fit over it, CPU": float(busy_over),
    }


def measure(settings: Settings, size: int, batch_size: int) -> list[dict[str, Any]]:
    """Time all sides for one window length."""
    problem = Problem(settings, size, batch_size)
    check_same_loss(problem)
    updates = max(settings.updates // size, 1)
    short, long = settings.epoch_steps, settings.epoch_steps + updates
    few = max(updates // 4, 1)
    sides = {
        "Python": (*problem.update(problem.loss, problem.optimizer), False),
        "by hand": (*problem.update(problem.unrolled, ADAM), True),
    }
    sides["Python, reads every loss"] = (*sides["Python"][:2], True)
    floor = problem.floor()

    def in_python(name: str, updates: int) -> Any:
        update, state, reads = sides[name]
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
        jax.block_until_ready(in_python("Python", 1))
    jax.block_until_ready((in_python("by hand", 1), floor(1)))
    seconds: dict[str, list[np.ndarray]] = {}  # per update
    for n in range(settings.repeats):
        harness.say(f"window {size}, round {n + 1} of {settings.repeats}")
        with timing.watch_compilation() as again:
            few_fits, fits = (taken(lambda n=n: problem.fit(n, short)) for n in (short, long))
        if first.count("epoch") != 1 or again.count("epoch"):
            counts = f"{first.count('epoch')} times first, then {again.count('epoch')} times"
            raise RuntimeError(f"the epoch was compiled {counts}, not once and never again")
        found = {"fit": (fits - few_fits) / updates}
        for name in sides:
            found[name] = taken(lambda name=name: in_python(name, few)) / few
        one, more = (taken(lambda n=n: problem.fit(n, 1)) for n in (1, 1 + few))
        found["fit, one at a time"] = (more - one) / few
        found["floor"] = taken(lambda: floor(updates)) / updates
        for name, took in found.items():
            seconds.setdefault(name, []).append(np.maximum(took, 1e-9))
    compilation = {"fit": first.of("epoch"), "Python": by_hand.of("update")}
    rows, ours = [], np.array(seconds["fit"])
    for name, given in seconds.items():
        rows.append(
            {
                "updates": name,
                "window": size,
                "batch": batch_size,
                **speeds(np.array(given), ours),
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
    for size, batch_size in zip(settings.windows, settings.batch_sizes, strict=True):
        found = measure(settings, size, batch_size)
        rows += found
        sides = {row["updates"]: row for row in found}
        peer, wanted = WANTED.get(size, ("Python", 1.0))
        for side in (peer, "Python, reads every loss"):
            for kind in ("median", "CPU"):
                ratio = sides[side][f"fit over it, {kind}"]
                what = f"window {size}: fit over {side}{', CPU' * (kind == 'CPU')}"
                targets.append(harness.Target(what, ratio, wanted, at_least=True))
        compilation = sides["fit"]["compile s"]
        targets.append(harness.Target(f"window {size}: compile s", compilation, WANTED_COMPILATION))
    return harness.publish(settings, __file__, {"Training": rows}, targets, started)


if __name__ == "__main__":
    main()
