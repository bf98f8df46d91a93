"""Does the certificate say how many nats a sampler is from the truth? Heat, in closed form.

Backward paths of the heat equation on 32 x 32 points from one end state, weighed against the
simulator's own law of them. With steps that are exact for Gaussians (``GaussianStep``) and the
exact score nothing is missing; with Euler's steps, or with a score made wrong on purpose, the gap
has a closed form, mode by mode (``linear_gaussian.euler_elbo``). Without one: the learned score of
the finished run ``runs/heat/small``, and a backward kernel estimated from paths.

    python benchmarks/certificate.py
"""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from harness import Row, Settings, Target, parse, publish_cells, say
from linear_gaussian import euler_elbo, exact_heat_paths

import smdp_jax as smdp
from smdp_jax import physics

START, END = 0.02, 0.2


@dataclass(frozen=True)
class Options(Settings):
    """Settings of this benchmark."""

    size: int = 32
    """Points per side."""
    paths: int = 1000
    """Backward paths of every certificate."""
    data: int = 2048
    """Simulated paths to learn a Gaussian or a kernel from."""
    gaussian_steps: int = 32
    """Gaussian-exact steps."""
    euler_steps: tuple[int, ...] = (128, 256, 512)
    """Euler steps."""
    run: str = "runs/heat/small"
    """A trained run; empty: none."""
    only: tuple[str, ...] = ()
    """Tables to measure again, by words of their names."""
    seed: int = 0
    """Root of all random numbers."""


Cell = tuple[list[Row], list[Target]]


@dataclass(frozen=True)
class Case:
    """One end state, whose log density is known."""

    options: Options
    system: physics.Heat
    end: Any

    @classmethod
    def of(cls, options: Options) -> "Case":
        """Draw the end state from the process itself."""
        system = physics.Heat(size=options.size)
        k_prior, k_noise = jax.random.split(jax.random.key(options.seed))
        start = system.prior(k_prior, 1)[0]
        return cls(options, system, system.transition(k_noise, 0.0, END, start))

    @property
    def evidence(self) -> float:
        """Of the continuous process."""
        return float(self.system.log_evidence(self.end))

    def grid(self, steps: int) -> Any:
        """Equal steps."""
        return smdp.linear_grid(START, END, steps)

    def linear(self) -> smdp.LinearPart:
        """The whole physics."""
        rates = self.system.decay_rates()[:, : self.options.size // 2 + 1]
        return smdp.LinearPart(rates, (_to_modes, _to_field))

    def step(self, reference: Any = None, order: int = 2) -> smdp.GaussianStep:
        """Gaussian-exact, with the exact reference by default."""
        half = self.options.size // 2 + 1
        exact = lambda t: self.system.marginal_variance(t)[:, :half]
        return smdp.GaussianStep(order, self.linear(), exact if reference is None else reference)

    def certify(self, score: Any, ts: Any, **more: Any) -> tuple[smdp.Certificate, float]:
        """Certificate, and its seconds."""
        began = time.process_time()
        prior = lambda x, args: self.system.log_density(START, x)
        given = {"num_paths": self.options.paths, "key": jax.random.key(self.options.seed + 1)}
        found = smdp.certify(
            self.system.continuous_sde(), score, self.end, ts, prior, **given, **more
        )
        jax.block_until_ready(found.log_weights)
        say(str(found))
        return found, (time.process_time() - began) / 2

    def row(self, name: str, found: smdp.Certificate, seconds: float) -> dict[str, Any]:
        """What is common to all tables."""
        return {
            "sampler": name,
            "gap to the exact evidence": self.evidence - float(found.elbo),
            "stated error": float(found.elbo_error),
            "log evidence": float(found.log_evidence),
            "its error": float(found.log_evidence_error),
            "exact": self.evidence,
            "share that counts": float(found.share),
            "s": seconds,
        }


def _to_modes(x: Any) -> Any:
    return jnp.fft.rfft2(x, norm="ortho")


def _to_field(w: Any) -> Any:
    return jnp.fft.irfft2(w, norm="ortho")


def gaussian(case: Case) -> Cell:
    """Gaussian-exact steps: the exact reference, and one measured from paths."""
    options = case.options
    ts = case.grid(options.gaussian_steps)
    data = _paths(case, ts)
    measured = smdp.GaussianReference.of(data, (_to_modes, _to_field))
    rows, reached = [], []
    for name, step in {
        "exact reference, order 1": case.step(order=1),
        "exact reference, order 2": case.step(),
        "measured reference, order 2": case.step(measured),
    }.items():
        row = case.row(name, *case.certify(case.system.score, ts, solver=step))
        rows.append(row)
        bound = 0.5 if "exact" in name else None
        reached.append(Target(f"gap, {name}, nats", abs(row["gap to the exact evidence"]), bound))
    return rows, reached


def euler(case: Case) -> Cell:
    """Euler's steps: the gap that their errors make, and the evidence of their chain."""
    rows, reached = [], []
    for steps in case.options.euler_steps:
        ts = case.grid(steps)
        elbo, chain = euler_elbo(case.system, ts, case.end)
        found, seconds = case.certify(case.system.score, ts, reference=case.system.log_density)
        row = case.row(f"{steps} Euler steps", found, seconds)
        row |= {"predicted gap": case.evidence - elbo, "evidence of the chain": chain}
        row["least ESS"] = float(found.ess.min())
        rows.append(row)
        ratio = row["gap to the exact evidence"] / row["predicted gap"]
        off = abs(row["log evidence"] - chain) / row["its error"]
        reached += [
            Target(f"{steps} steps: |gap / predicted - 1|", abs(ratio - 1), 0.1),
            Target(f"{steps} steps: |log evidence - the chain's|, in stated errors", off, 3.0),
        ]
    return rows, reached


def wrong(case: Case) -> Cell:
    """Scores made wrong on purpose, at the finest Euler steps: by how much the gap grows."""
    options = case.options
    steps = options.euler_steps[-1]
    ts, size = case.grid(steps), options.size
    waves = 2.0 * jnp.sin(2 * jnp.pi * jnp.arange(size) / size)
    right, _ = case.certify(case.system.score, ts)
    best, _ = euler_elbo(case.system, ts, case.end)
    rows, reached = [], []
    for name, scale, shift in (
        ("scale 1.1", 1.1, 0.0),
        ("scale 0.9", 0.9, 0.0),
        ("shifted by a wave", 1.0, 10 * waves[:, None] + jnp.zeros((size, size))),
    ):
        tilted = lambda t, x, args, a=scale, b=shift: a * case.system.score(t, x) + b
        found, seconds = case.certify(tilted, ts)
        elbo, _ = euler_elbo(case.system, ts, case.end, scale, shift)
        row = case.row(name, found, seconds)
        row |= {"gap grows by": float(right.elbo - found.elbo), "closed form": best - elbo}
        rows.append(row)
        ratio = row["gap grows by"] / row["closed form"]
        reached.append(
            Target(f"{name}: |growth of the gap / closed form - 1|", abs(ratio - 1), 0.1)
        )
    return rows, reached


def learned(case: Case) -> Cell:
    """Of what has no closed form: a trained score and a kernel."""
    rows: list[Row] = []
    options = case.options
    ts = case.grid(options.gaussian_steps)
    run = Path(options.run or "nowhere")
    if run.exists():
        score = smdp.load(run).score
        step = case.step(score.model.variance)
        row = case.row(f"learned score of {run.name}", *case.certify(score, ts, solver=step))
        rows.append(row)
    kernel = smdp.estimate_kernel(case.system.continuous_sde(), _paths(case, ts))
    # Forward the chain that is exact for the linear part: no score is asked for.
    row = case.row("kernel estimated from paths", *case.certify(kernel, ts, solver=case.step()))
    rows.append(row)
    return rows, [Target(f"{r['sampler']}: gap", r["gap to the exact evidence"]) for r in rows]


def _paths(case: Case, ts: Any) -> smdp.Trajectories:
    """Paths of the continuous process at the times of a grid."""
    whole = jnp.concatenate([jnp.zeros(1, ts.dtype), ts])
    key = jax.random.key(case.options.seed + 2)
    paths = exact_heat_paths(case.system, whole, key, case.options.data)
    return smdp.Trajectories(ts, paths.xs[:, 1:])


CELLS = {
    "Gaussian-exact steps": gaussian,
    "Euler steps": euler,
    "wrong on purpose": wrong,
    "learned": learned,
}


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Measure what is missing, and publish."""
    quick = {
        "size": 8, "paths": 50, "data": 100, "gaussian_steps": 4, "euler_steps": (16,), "run": "",
    }  # fmt: skip
    options = parse(Options(), quick, __doc__, given)
    case = Case.of(options)
    cells = {name: partial(cell, case) for name, cell in CELLS.items()}
    return publish_cells(options, __file__, cells, options.only)


if __name__ == "__main__":
    main()
