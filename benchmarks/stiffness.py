"""What can a finite backward step do on a stiff process? The heat equation, exact score plugged in.

    python benchmarks/stiffness.py

Compares solvers on the stochastic heat equation (32 x 32, noise 0.1, T = 0.2), walked back from T
with the exact score in N equal steps, with the exact posterior: error of the posterior mean
relative to it (RMS over end states), and ratio of the pointwise std to the exact one. Beside them
stand the figures of an earlier calculation, mode by mode ("earlier"), which this reproduces.

All is linear and diagonal in Fourier space, so a delta function pushed through each step of a
solver tells what the step does to every mode (``linear_response.py``): figures of our solvers on
32 x 32 fields in float64, without Monte Carlo error. The rows:

- *score*: the continuous drift and ``Heat.score``, by a diffrax solver. (Earlier, the zero mode was
  left as it was observed under Heun: that alone is 1.4e-3.)
- *splitting*: the same score; the flow map is walked back by the negated increment.
- *exponential*: physics and score together, ``x exp(b dt)`` with the rate b frozen at the midpoint,
  as a flow map; noise g sqrt(dt) after it. (Earlier: the exact integral of the noise.)
- *minimiser, chain*: what the 1-step loss learns for that very step in closed form, as a step
  correction: inverse plus correction are the conditional mean. The data are a chain with the same
  steps, noise g sqrt(dt) after each (what ``simulate`` makes without substeps), and so is the
  posterior that it is compared with. Noise g sqrt(dt), none in the last step.
- *minimiser, fine*: the same for data of the continuous process.

The last table is the sampler itself, ``sample_posterior`` in float32 from one end state: distance
of the samples' mean from the exact one in units of what as many exact samples would have (1: no
bias that can be seen), and the ratio of the stds.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import diffrax
import harness
import jax
import jax.numpy as jnp
import numpy as np
from linear_response import Law, scheme_laws

import smdp_jax as smdp
from smdp_jax.physics import Heat
from smdp_jax.physics.spectral.gaussian_field import filter_modes

HEAT = Heat()
DRIFT, FLOW_MAP = HEAT.continuous_sde(), HEAT.sde()
T = float(HEAT.end_time)
EULER, HEUN, LIE, EXPONENTIAL, CHAIN, FINE = (
    "score, Euler-Maruyama",
    "score, Heun",
    "score, splitting",
    "exponential",
    "minimiser, chain",
    "minimiser, fine",
)
EARLIER: dict[tuple[str, int], tuple[float, float | None]] = {
    (EULER, 32): (float("inf"), None),
    (EULER, 64): (1.1e-2, 0.82),
    (EULER, 128): (5.6e-3, 0.89),
    (EULER, 256): (2.8e-3, 0.94),
    (EULER, 512): (1.4e-3, 0.97),
    (LIE, 64): (float("inf"), None),
    (LIE, 128): (1.1e-2, 0.82),
    (LIE, 256): (5.6e-3, 0.89),
    (HEUN, 64): (1.4e-3, 0.989),
    (HEUN, 128): (1.4e-3, 0.997),
    (HEUN, 256): (1.4e-3, 0.999),
    (EXPONENTIAL, 32): (4e-5, 0.995),
    (CHAIN, 32): (0.0, 0.86),
    (CHAIN, 64): (0.0, 0.92),
    (CHAIN, 128): (0.0, 0.96),
}
"""Error of the mean and ratio of the stds, as calculated before; infinite: diverges."""
SCORE_SOLVERS = {
    EULER: diffrax.Euler(),
    HEUN: diffrax.Heun(),
    "score, ShARK": diffrax.ShARK(),
    "score, SRA1": diffrax.SRA1(),
    "score, SlowRK": diffrax.SlowRK(),
    "score, GeneralShARK": diffrax.GeneralShARK(),
    "score, SPaRK": diffrax.SPaRK(),
    "score, Tsit5": diffrax.Tsit5(),
}
SECOND_ORDER = tuple(name for name in SCORE_SOLVERS if name not in (EULER, "score, Tsit5"))
DIVERGED = 10.0


@dataclass(frozen=True)
class Settings(harness.Settings):
    """How much is computed."""

    score_steps: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Numbers of steps of the solvers with the exact score; those of the others are fixed."""
    samples: int = 512
    """Posterior samples of one end state."""
    sampled: tuple[str, ...] = (HEUN, "score, ShARK", "score, SRA1")
    """Solvers that are sampled, with 64 steps."""
    chunk: int = 64
    """Paths solved at once."""


class Exact(NamedTuple):
    """Gaussian posterior per mode: ``gain x_end`` and its variance; and the variance of x_end."""

    gain: np.ndarray
    variance: np.ndarray
    marginal: np.ndarray


def exact_posterior() -> Exact:
    """Look up the posterior of the continuous process."""
    marginal = np.asarray(HEAT.marginal_variance(T))
    decay = np.exp(-np.asarray(HEAT.decay_rates()) * T)
    gain = np.asarray(HEAT.prior_variance()) * decay / marginal
    return Exact(gain, np.asarray(HEAT.posterior_variance()), marginal)


def chain_variances(steps: int) -> np.ndarray:
    """Variance per mode of a chain of exact flow maps, each followed by noise g sqrt(dt)."""
    dt = T / steps
    damping = np.exp(-2 * np.asarray(HEAT.decay_rates()) * dt)
    variances = [np.asarray(HEAT.prior_variance())]
    for _ in range(steps):
        variances.append(damping * variances[-1] + HEAT.noise**2 * dt)
    return np.stack(variances)


def chain_posterior(steps: int) -> Exact:
    """Compute the posterior of that chain."""
    prior, end = np.asarray(HEAT.prior_variance()), chain_variances(steps)[-1]
    decay = np.exp(-np.asarray(HEAT.decay_rates()) * T)
    return Exact(prior * decay / end, prior - (prior * decay) ** 2 / end, end)


def minimiser(steps: int, variances: np.ndarray) -> smdp.SDE:
    """Reverse the flow map with the correction that makes each step the conditional mean."""
    dt = T / steps
    damping = jnp.exp(-HEAT.decay_rates() * dt)
    table = jnp.asarray(variances)

    def correction(t: Any, x: Any, args: Any) -> Any:
        i = jnp.round(t / dt).astype(int)
        conditional_mean = damping * table[i - 1] / table[i]
        return filter_modes((conditional_mean - (2 - damping)) / (dt * HEAT.noise**2), x)

    return smdp.reverse_sde(FLOW_MAP, correction)


def exponential_step(tau0: Any, tau1: Any, x: Any, args: Any) -> Any:
    """Solve physics and score together, their rate frozen at the midpoint."""
    rates = HEAT.linear_rates(-(tau0 + tau1) / 2).backward
    return filter_modes(jnp.exp(rates * (tau1 - tau0)), x)


def rows_of(
    name: str,
    process: smdp.SDE,
    solver: diffrax.AbstractSolver,
    steps: Sequence[int],
    exact: Exact,
    *,
    denoise_last: bool = False,
) -> list[dict[str, Any]]:
    """Compare what a solver makes of every mode with the exact posterior."""
    harness.say(name)
    grids = [-np.linspace(0.0, T, n + 1)[::-1] for n in steps]
    delta = jnp.zeros((HEAT.size, HEAT.size)).at[0, 0].set(1.0)
    laws = scheme_laws(
        process,
        solver,
        grids,
        delta,
        lambda x: jnp.real(jnp.fft.fft2(x)),
        denoise_last=denoise_last,
    )
    return [
        {"method": name, "N": n, **_against(law, exact, EARLIER.get((name, n)))}
        for n, law in zip(steps, laws, strict=True)
    ]


def _against(law: Law, exact: Exact, earlier: tuple | None) -> dict[str, Any]:
    miss = ((law.gain - exact.gain) ** 2 * exact.marginal).sum()
    error = float(np.sqrt(miss / (exact.gain**2 * exact.marginal).sum()))
    ratio = float(np.sqrt(law.variance.sum() / exact.variance.sum()))
    was_error, was_ratio = earlier or (None, None)
    diverged = not error < DIVERGED
    return {
        "mean error": float("inf") if diverged else error,
        "std ratio": None if diverged else ratio,
        "earlier mean error": was_error,
        "earlier std ratio": was_ratio,
    }


def scheme_rows(settings: Settings) -> list[dict[str, Any]]:
    """Compute the table of methods."""
    exact = exact_posterior()
    back = smdp.reverse_sde(DRIFT, HEAT.score)
    rows = []
    for name, solver in SCORE_SOLVERS.items():
        few = settings.score_steps if name in (EULER, HEUN) else (64,)
        rows += rows_of(name, back, solver, few, exact)
    split = smdp.reverse_sde(FLOW_MAP, HEAT.score)
    rows += rows_of(LIE, split, smdp.Splitting(), (64, 128, 256), exact)
    exponential = smdp.SDE(step=exponential_step, diffusion=HEAT.noise)
    rows += rows_of(EXPONENTIAL, exponential, smdp.Splitting(), (32, 64), exact)
    for n in (32, 64, 128):
        process = minimiser(n, chain_variances(n))
        chain = chain_posterior(n)
        rows += rows_of(CHAIN, process, smdp.Splitting(), (n,), chain, denoise_last=True)
    for n in (32, 64, 128):
        fine = np.stack([np.asarray(HEAT.marginal_variance(t)) for t in np.linspace(0, T, n + 1)])
        rows += rows_of(FINE, minimiser(n, fine), smdp.Splitting(), (n,), exact)
    return rows


def sampled_rows(settings: Settings) -> list[dict[str, Any]]:
    """Sample the past of one end state."""
    k_start, k_end, k_past = jax.random.split(jax.random.key(0), 3)
    x_end = HEAT.transition(k_end, 0.0, T, HEAT.prior(k_start, 1)[0])
    mean, std = HEAT.posterior_mean(x_end), jnp.sqrt(HEAT.posterior_point_variance())
    rows = []
    for name in settings.sampled:
        harness.say(f"sampling: {name}")
        begun = time.perf_counter()
        past = smdp.sample_posterior(
            DRIFT,
            HEAT.score,
            x_end,
            smdp.linear_grid(0.0, T, 64),
            num_samples=settings.samples,
            key=k_past,
            solver=SCORE_SOLVERS[name],
            chunk_size=settings.chunk,
        ).samples
        off = float(jnp.sqrt(jnp.mean((past.mean(axis=0) - mean) ** 2)))
        ratio = jnp.sqrt(past.var(axis=0, ddof=1).mean()) / std
        unavoidable = float(std) / settings.samples**0.5
        rows.append(
            {
                "method": name,
                "N": 64,
                "mean off / chance": off / unavoidable,
                "mean error": off / float(jnp.sqrt(jnp.mean(mean**2))),
                "std ratio": float(ratio),
                "seconds": time.perf_counter() - begun,
            }
        )
    return rows


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    quick = {"score_steps": (32, 64), "samples": 8, "sampled": (HEUN,)}
    settings = harness.parse(Settings(), quick, __doc__, given)
    started = time.perf_counter()
    with jax.enable_x64(True):
        rows = scheme_rows(settings)
    second = [r for r in rows if r["method"] in SECOND_ORDER and r["N"] == 64]
    known = [r for r in rows if r["earlier std ratio"] is not None]
    targets = [
        harness.Target(
            "mean error at 64 steps, worst of Heun and SRK",
            max(r["mean error"] for r in second),
            0.02,
        ),
        harness.Target(
            "|std ratio - 1| at 64 steps, worst of Heun and SRK",
            max(abs(r["std ratio"] - 1) for r in second),
            0.02,
        ),
        harness.Target(
            "|std ratio - earlier|, largest",
            max(abs(r["std ratio"] - r["earlier std ratio"]) for r in known),
            0.01,
        ),
    ]
    tables = {
        "Stiffness: the schemes themselves, exactly": rows,
        f"Stiffness: {settings.samples} samples of one end state": sampled_rows(settings),
    }
    return harness.publish(settings, __file__, tables, targets, started)


if __name__ == "__main__":
    main()
