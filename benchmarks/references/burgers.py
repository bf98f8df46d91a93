"""Reference posterior of the preset small of Burgers' equation: the ten initial coefficients.

pCN chains over (initial coefficients, noise path) on the Gauss-Newton Gaussian of each held-out
pair, run until R-hat is at most 1.01 and stored as ``burgers.npz`` beside this file. Noise comes in
at few times: how viscosity damps what is added within a step is exact; how the flow shears it there
is left out, a few per cent of the noise at the default.

    python benchmarks/references/burgers.py
"""

import json
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from smdp_jax import baselines
from smdp_jax.physics.exact.law import noise_variance
from smdp_jax.physics.spectral.periodic import waves

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
from configs.burgers import PRESETS


@dataclass(frozen=True)
class Options:
    """Settings of this script."""

    cases: int = 60
    """Held-out pairs."""
    noise_times: int = 4
    """Times at which noise comes in."""
    steps: int = 2000
    """Proposals of each of four chains; four times as many where R-hat asks for it."""
    seed: int = 2_000_000
    """Of the pairs and of the chains; training seeds of the tables are small."""
    output: str = str(Path(__file__).with_suffix(".npz"))
    """Where the draws go."""


def sampler(config: Any, options: Options) -> Any:
    """Chains of the coefficients over their prior's spread, given an end state and a key."""
    system = config.system()
    size, spread = 2 * system.modes, config.amplitude / system.modes**0.5
    basis = spread * jnp.asarray(waves(system.size, system.modes), float)
    ts = jnp.linspace(0.0, config.end_time, options.noise_times + 1)

    def root(t0: Any, t1: Any) -> Any:
        return jnp.sqrt(noise_variance(system.decay_rates(), config.noise, t1 - t0))

    def apply(t0: Any, t1: Any, z: Any) -> Any:
        return jnp.fft.irfft(root(t0, t1) * jnp.fft.rfft(z))

    def whiten(t0: Any, t1: Any, d: Any) -> Any:
        return jnp.fft.irfft(jnp.fft.rfft(d) / root(t0, t1))

    @partial(jax.jit, static_argnames="longer")
    def sample(x_end: Any, key: Any, longer: int) -> Any:
        residuals, entries = baselines.bridge_residuals(
            system.sde(),
            lambda z: z @ basis,
            x_end,
            ts,
            size=size,
            noise=(apply, whiten),
            substeps=max(1, 16 // options.noise_times),
        )
        mean, factor = baselines.gauss_newton_reference(residuals, jnp.zeros(entries))
        return baselines.pcn(
            residuals,
            mean,
            factor,
            key=key,
            steps=longer * options.steps,
            warmup=options.steps // 4,
            thin=longer * max(1, options.steps // 250),
            observed=size,
        )

    return sample


def main() -> None:
    """Run all pairs, and store them."""
    options = tyro.cli(Options, description=__doc__)
    config = PRESETS["small"]
    system, started = config.system(), time.perf_counter()
    spread = config.amplitude / system.modes**0.5
    k_pairs, k_chains = jax.random.split(jax.random.key(options.seed))
    paths = config.paths(k_pairs, options.cases, targets=False)
    sample, draws, hats, accepted = sampler(config, options), [], [], []
    for x_end, key in zip(paths.xs[:, -1], jax.random.split(k_chains, options.cases), strict=True):
        chains = sample(x_end, key, 1)
        if float(chains.r_hat.max()) > 1.01:
            chains = sample(x_end, key, 4)
        found = spread * np.asarray(chains.draws, np.float32)
        draws.append(found.reshape(-1, found.shape[-1]))
        hats.append(float(chains.r_hat.max()))
        accepted.append(float(chains.accepted.mean()))
        print(len(draws), hats[-1], accepted[-1], file=sys.stderr, flush=True)
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    np.savez_compressed(
        options.output,
        truths=np.asarray(jax.vmap(system.leading_modes)(paths.xs[:, 0])),
        ends=np.asarray(paths.xs[:, -1]),
        draws=np.stack(draws),
        r_hat=np.array(hats),
        accepted=np.array(accepted),
        settings=json.dumps(settings | {"seconds": time.perf_counter() - started}),
    )


if __name__ == "__main__":
    main()
