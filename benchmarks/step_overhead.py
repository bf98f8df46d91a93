"""What do backward steps cost beside the calls of score and simulator that they make?

``GaussianStep`` on heat of 32 x 32 points with the shipped U-Net, and a backward kernel on a ring
of 64 points, by ``sample_posterior``, in turn with loops of nothing but those calls.

    python benchmarks/step_overhead.py
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import harness
import jax
import jax.numpy as jnp
import timing

import smdp_jax as smdp


@dataclass(frozen=True)
class Settings(harness.Settings):
    """Sizes."""

    fields: int = 16
    """Fields solved at once; of the ring 64 times as many."""
    repeats: int = 5
    """Rounds."""


def step_overhead(settings: Settings) -> list[dict[str, Any]]:
    """Time steps against what they call."""
    weights = smdp.pretrained("heat")
    drift: Any = weights.sde.drift
    x_end = jax.random.normal(jax.random.key(6), (settings.fields, 32, 32))
    # So many that the looks at the largest score, two in few steps, count for little.
    ts = weights.ts
    rows = []
    for order in (1, 2):

        def ours(ts: Any = ts, order: int = order) -> Any:
            return smdp.sample_posterior(
                weights.sde,
                weights.score,
                x_end,
                ts,
                num_samples=1,
                key=jax.random.key(2),
                solver=smdp.GaussianStep(order),
                batch_axes=1,
            ).samples

        def call(x: Any, t: Any, order: int = order) -> Any:
            for _ in range(order):
                x = x + 1e-3 * (weights.score(t, x, None) + drift(t, x, None))
            return x

        rows.append(beside(f"GaussianStep({order}), U-Net", ours, call, x_end, ts[1:], settings))
    return [*rows, kernel_overhead(settings)]


def kernel_overhead(settings: Settings) -> dict[str, Any]:
    """Time the steps of a kernel against its network."""
    ring = smdp.SDE(lambda t, x, args: 0.1 * (jnp.roll(x, 1) - x), diffusion=0.3)
    x0 = jax.random.normal(jax.random.key(7), (settings.fields * 64, 64))
    data = smdp.simulate(ring, x0, smdp.linear_grid(0.0, 1.0, 32), key=jax.random.key(8))
    model = smdp.models.for_fields(data)
    kernel = smdp.fit(ring, model, data, steps=2, key=jax.random.key(9), progress=False).kernel
    ends = data.xs[:, -1]

    def ours() -> Any:
        return smdp.sample_posterior(
            ring, kernel, ends, data.ts, num_samples=1, key=jax.random.key(2), batch_axes=1
        ).samples

    def call(x: Any, t: Any) -> Any:
        nothing = (jnp.zeros_like(x),) * kernel.tables.directions
        out: Any = model.apply(kernel.variables, t, (x, x, *nothing), None)
        return x + 1e-3 * sum(out)

    return beside("backward kernel, DilatedResNet", ours, call, ends, data.ts[1:], settings)


def beside(
    what: str, ours: Callable, call: Callable, x: Any, ts: Any, settings: Settings
) -> dict[str, Any]:
    """Time a solve beside a loop of calls from a state on."""
    harness.say(f"step overhead: {what}")

    @jax.jit
    def calls(x: Any) -> Any:
        return jax.vmap(lambda x: jax.lax.scan(lambda x, t: (call(x, t), None), x, ts[::-1])[0])(x)

    times = timing.interleave({"ours": ours, "calls": lambda: calls(x)}, settings.repeats)
    return {
        "step": what,
        "steps": len(ts),
        "ours, least s": times["ours"].least,
        "calls, least s": times["calls"].least,
        **timing.ratio(times["ours"], times["calls"]),
    }


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    settings = harness.parse(Settings(), {"fields": 2, "repeats": 1}, __doc__, given)
    started = time.perf_counter()
    rows = step_overhead(settings)
    targets = [
        harness.Target(f"{row['step']}: over its calls", row["median ratio"], 1.2) for row in rows
    ]
    return harness.publish(settings, __file__, {"Steps": rows}, targets, started)


if __name__ == "__main__":
    main()
