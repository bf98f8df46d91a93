"""How good is what is learned of the heat equation, against the exact posterior?

Runs of ``configs/heat.py`` (32 x 32, one-CPU networks): a score by path score matching and a step
correction by multi-step windows (of 128 steps: with the noise g sqrt(dt) of 64, even the exact
minimiser spreads 8 % too little, see ``stiffness.py``), both on the spectrally preconditioned
U-Net, and path score matching on the plain U-Net. Seconds include simulation, compilation and
training. RMSE of the mean over the exact posterior mean's counts the finite number of samples, too:
with m exact samples it is about sqrt(1 + 1/m).

    python benchmarks/heat.py
"""

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import jax
from harness import Row, Settings, Target, parse, publish, run_of, say

sys.path.insert(0, str(Path(__file__).parent.parent))
from configs.heat import PRESETS, Config

_CASES = {
    "path score": {},
    "windows": {"objective": "multi_step", "time_steps": 128, "steps": 900},
    "path score, plain U-Net": {"preconditioning": "none"},
}


@dataclass(frozen=True)
class Options(Settings):
    """Settings of this benchmark."""

    seed: int = 0
    """Root of all random numbers."""
    steps: int | None = None
    """Updates; default those of the small preset."""
    test_cases: int = 16
    """End states whose past is sampled."""
    posterior_samples: int = 16
    """Posterior samples for each of them."""
    cases: tuple[str, ...] = tuple(_CASES)
    """What to run."""


def measure(config: Config) -> dict[str, float]:
    """Simulate, train, sample and compare with the exact posterior."""
    k_data, k_fit, k_sample = jax.random.split(jax.random.key(config.seed), 3)
    started = time.perf_counter()
    dataset = config.simulate(k_data)
    fit = config.fit(dataset, k_fit, progress=False)
    jax.block_until_ready(fit.learned.variables)
    trained = time.perf_counter()
    run = run_of(config, dataset, fit)
    arrays = jax.device_get(config.sample(run, k_sample))
    sampled = time.perf_counter()
    found = {metric.name: float(metric.value) for metric in config.evaluate(run, arrays)}
    return {
        "train s": trained - started,
        "sample s": sampled - trained,
        "RMSE / exact": found["RMSE of the mean / exact"],
        "std / exact": found["std of the samples"] / float(arrays["exact_std"]),
        "spectral, sample": found["spectral error of a sample"],
        "spectral, mean": found["spectral error of the mean"],
        "finite": found["share of samples that are finite"],
    }


def main() -> None:
    """Run all cases and publish."""
    quick = {"steps": 4, "test_cases": 2, "posterior_samples": 2, "cases": ("path score",)}
    options = parse(Options(), quick, __doc__)
    started = time.perf_counter()
    rows: list[Row] = []
    reached: list[Target] = []
    for case in options.cases:
        changes = dict(_CASES[case])
        changes |= {name: getattr(options, name) for name in ("test_cases", "posterior_samples")}
        if options.steps is not None:
            changes["steps"] = options.steps
        config = dataclasses.replace(PRESETS["small"], seed=options.seed, **changes)
        row = measure(config)
        rows.append({"run": case, **row})
        say(str(rows[-1]))
        if case != "path score, plain U-Net":
            reached += [
                Target(f"{case}: RMSE / exact", row["RMSE / exact"], 1.10),
                Target(f"{case}: |std / exact - 1|", abs(row["std / exact"] - 1), 0.10),
                Target(f"{case}: spectral error of a sample", row["spectral, sample"], 0.27),
            ]
    publish(options, __file__, {"learned": rows}, reached, started)


if __name__ == "__main__":
    main()
