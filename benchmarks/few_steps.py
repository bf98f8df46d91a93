"""How few backward steps are as good as many? Burgers' shipped score, by Euler and by GaussianStep.

From unseen end states: CRPS of the ten initial coefficients, reconstruction over the noise floor,
lost paths, and processor seconds, compilation included, all in one process.

    python benchmarks/few_steps.py
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np

import smdp_jax as smdp
from smdp_jax import evaluate
from smdp_jax.studies import noise_free

SOLVERS = {
    "Euler": None,
    "GaussianStep": smdp.GaussianStep(),
    "order 1": smdp.GaussianStep(order=1),
}
WAYS = (("Euler", 256), ("GaussianStep", 32), ("GaussianStep", 24), ("order 1", 48))


@dataclass(frozen=True)
class Settings(harness.Settings):
    """How many of what."""

    cases: int = 50
    """End states."""
    draws: int = 16
    """Paths from each."""
    chunk: int = 128
    """Paths solved at once."""


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Sample by all ways, and publish how the shortest compare with Euler's."""
    settings = harness.parse(Settings(), {"cases": 2, "draws": 2}, __doc__, given)
    started, weights = time.perf_counter(), smdp.pretrained("burgers")
    system, ts = weights.system, weights.ts
    k_prior, k_noise, k_past = jax.random.split(jax.random.key(0), 3)
    starts = system.prior(k_prior, settings.cases)
    x_end = smdp.simulate(weights.sde, starts, ts, key=k_noise).xs[:, -1]

    forward = jax.jit(jax.vmap(lambda x: noise_free.walk(system.step, x, ts)))
    modes = jax.jit(jax.vmap(system.leading_modes))
    floor, true = evaluate.ensemble_mse(forward(starts), x_end), modes(starts)

    def row(name: str, steps: int) -> dict[str, Any]:
        grid = ts[np.linspace(0, len(ts) - 1, steps + 1).round().astype(int)]
        begun, how = time.process_time(), {"solver": SOLVERS[name], "chunk_size": settings.chunk}
        past: Any = smdp.sample_posterior(
            weights.sde,
            weights.score,
            x_end,
            grid,
            num_samples=settings.draws,
            key=k_past,
            batch_axes=1,
            **how,
        ).samples.block_until_ready()
        taken = time.process_time() - begun
        crps = jax.vmap(evaluate.crps_ensemble)(jax.vmap(modes)(past), true).mean()
        again = evaluate.ensemble_mse(jax.vmap(forward)(past), x_end) / floor
        lost = int((~jnp.isfinite(past).all(axis=-1)).sum())
        calls = steps * getattr(SOLVERS[name], "evaluations", 1)
        return {"steps": f"{name}, {steps}", "calls of the score": calls} | {
            "CRPS": float(crps),
            "reconstruction / floor": again,
            "lost": lost,
            "CPU s": taken,
        }

    euler, *few = rows = [row(*way) for way in WAYS]
    targets = [
        target
        for found in few
        for target in (
            harness.Target(
                f"{found['steps']}: CRPS over Euler's", found["CRPS"] / euler["CRPS"], 1.03
            ),
            harness.Target(
                f"{found['steps']}: Euler's time over it",
                euler["CPU s"] / found["CPU s"],
                4.0,
                at_least=True,
            ),
        )
    ]
    return harness.publish(settings, __file__, {"Burgers": rows}, targets, started)


if __name__ == "__main__":
    main()
