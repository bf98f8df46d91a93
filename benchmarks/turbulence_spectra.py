"""Is the forced turbulence stationary: do its energy and the slope of its spectrum stay put?

    python benchmarks/turbulence_spectra.py

``Turbulence.stationary()`` from draws of its prior, without noise. From the end of the spin-up to
the end of the window, at every unit of time, over an ensemble of paths:

- the mean energy, and its largest relative distance from the window's mean;
- the exponent p of the mean energy spectrum, E(k) ~ k^-p fitted over a range of shells, likewise;
- what the forcing puts in beside what viscosity and drag take out.

The setting of the Fourier neural operator paper (``Turbulence()``: no drag, 20 units of time) is
shown for information: it gains energy all along, and has no stationary window.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import harness
import jax
import numpy as np

from smdp_jax.evaluate.spectra import power_spectrum
from smdp_jax.physics.spectral import vorticity
from smdp_jax.physics.system import spin_up
from smdp_jax.physics.turbulence import Turbulence


@dataclass(frozen=True)
class Settings(harness.Settings):
    """Sizes."""

    members: int = 16
    """Paths of the ensemble."""
    spin_up: int = 20
    """Units of time before the window."""
    window: int = 40
    """Units of time in it."""
    rows: int = 4
    """Parts of the window to be listed."""
    first_shell: int = 5
    """First shell of the fit; the forcing sits at 4."""
    last_shell: int = 14
    """Last shell of the fit; the 2/3 rule cuts at 21."""


def measure(system: Turbulence, x: Any) -> dict[str, Any]:
    """Return energy, enstrophy, input, loss, stable step and energy spectrum of one field."""
    u, v = vorticity.velocity(x)
    energy, enstrophy = vorticity.energy(x), vorticity.enstrophy(x)
    return {
        "energy": energy,
        "enstrophy": enstrophy,
        "input": system.energy_input(x),
        "loss": 2 * system.viscosity * enstrophy + 2 * system.drag * energy,
        "stable step": system.stable_step(x),
        "spectrum": (power_spectrum(u) + power_spectrum(v)) / 2,
    }


def follow(system: Turbulence, xs: Any, units: int, calls: int) -> dict[str, np.ndarray]:
    """Simulate and measure after every unit of time, each made of so many calls of the flow."""

    def body(xs: Any, _: None) -> tuple[Any, Any]:
        xs = spin_up(system.step, xs, time=1.0, calls=calls)
        return xs, jax.vmap(lambda x: measure(system, x))(xs)

    seen = jax.jit(lambda xs: jax.lax.scan(body, xs, length=units)[1])(xs)
    return {name: np.asarray(values, np.float64) for name, values in seen.items()}


def exponent(spectrum: np.ndarray, shells: np.ndarray) -> float:
    """Fit -p of E(k) ~ k^-p by least squares of the logarithms."""
    return float(np.polyfit(np.log(shells), np.log(spectrum[shells]), 1)[0])


def distance(values: np.ndarray) -> float:
    """Return the largest relative distance from the mean."""
    return float(np.max(np.abs(values / values.mean() - 1)))


def row(setting: str, start: int, seen: dict[str, np.ndarray], shells: np.ndarray) -> harness.Row:
    """List the means over a span of time and the ensemble."""
    units = len(seen["energy"])
    means = {name: float(seen[name].mean()) for name in ("energy", "enstrophy", "input", "loss")}
    return {
        "setting": setting,
        "time": f"{start + 1} to {start + units}",
        **means,
        "stable step": float(seen["stable step"].min()),
        "slope": exponent(seen["spectrum"].mean((0, 1)), shells),
    }


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    quick = {"members": 2, "spin_up": 1, "window": 2, "rows": 2}
    settings = harness.parse(Settings(), quick, __doc__, given)
    started = time.perf_counter()
    shells = np.arange(settings.first_shell, settings.last_shell + 1)
    system, calls = Turbulence.stationary(), 5
    xs = system.prior(jax.random.key(0), settings.members)
    everything = follow(system, xs, settings.spin_up + settings.window, calls)
    harness.say(f"stationary setting: {time.perf_counter() - started:.0f} s")

    def cut(first: int, last: int) -> dict[str, np.ndarray]:
        return {name: values[first:last] for name, values in everything.items()}

    edges = np.linspace(0, settings.window, settings.rows + 1).astype(int) + settings.spin_up
    rows = [row("spin-up", 0, cut(0, settings.spin_up), shells)]
    for first, last in pairwise(edges):
        rows.append(row("stationary", int(first), cut(first, last), shells))
    window = cut(settings.spin_up, settings.spin_up + settings.window)
    rows.append(row("stationary", settings.spin_up, window, shells))

    growing = Turbulence()
    units = min(20, settings.window)
    xs = growing.prior(jax.random.key(0), min(4, settings.members))
    grown = follow(growing, xs, units, calls=1)
    half = units // 2
    for first, last in ((0, half), (half, units)):
        part = {name: values[first:last] for name, values in grown.items()}
        rows.append(row("FNO paper", first, part, shells))

    inner = 1 / (calls * system.inner_steps)
    energies = window["energy"].mean(1)
    slopes = np.array([exponent(s, shells) for s in window["spectrum"].mean(1)])
    targets = [
        harness.Target("energy: largest distance from its mean", distance(energies), 0.1),
        harness.Target("slope: largest distance from its mean", distance(slopes), 0.1),
        harness.Target(
            "input over loss, distance from 1",
            abs(float(window["input"].mean() / window["loss"].mean()) - 1),
            0.02,
        ),
        harness.Target(
            "inner step over the stable one", inner / everything["stable step"].min(), 1
        ),
    ]
    heading = f"{settings.members} paths, mean over time and paths"
    return harness.publish(settings, __file__, {heading: rows}, targets, started)


if __name__ == "__main__":
    main()
