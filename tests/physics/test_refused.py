"""Parameters and states that simulators refuse. A new simulator's are lines of REFUSED."""

import math
from typing import Any

import jax
import numpy as np
import pytest

from smdp_jax import physics

SQUARE: Any = np.zeros((8, 8), np.float32)

REFUSED = [  # what is asked for, and what the message says
    (lambda: physics.Affine(rate=-0.5), "Affine.rate must be finite and not negative, got -0.5"),
    (
        lambda: physics.Affine().score(0.5, np.zeros(3, np.float32)),
        r"must have shape \(1,\) .*, got",
    ),
    (lambda: physics.Quadratic(rate=0), "Quadratic.rate must be finite and positive, got 0"),
    (lambda: physics.Heat(size=31), "Heat.size must be even and at least 4, got 31"),
    (lambda: physics.Heat(size=2), "Heat.size must be even and at least 4, got 2"),
    (lambda: physics.Heat(diffusivity=-1.0), "Heat.diffusivity .* positive, got -1.0"),
    (lambda: physics.Heat(size=8).log_density(1.0, SQUARE[None]), "use jax.vmap"),
    (lambda: physics.Burgers(size=127), "size must be even and at least 12, got 127"),
    (lambda: physics.Burgers(size=10), "size must be even and at least 12, got 10"),
    (lambda: physics.Burgers(viscosity=0.0), "Burgers.viscosity .* positive, got 0.0"),
    (lambda: physics.Burgers(inner_steps=0), "Burgers.inner_steps .* positive, got 0"),
    (lambda: physics.Turbulence(size=31), "Turbulence.size must be even and at least 4, got 31"),
    (lambda: physics.Turbulence(viscosity=0.0), "Turbulence.viscosity .* positive, got 0.0"),
    (lambda: physics.Turbulence(drag=-1.0), "Turbulence.drag must be .* not negative, got -1.0"),
    (lambda: physics.Turbulence(inner_steps=0), "Turbulence.inner_steps .* positive, got 0"),
    (lambda: physics.Turbulence.stationary(forcing="wind"), "one of .*'kolmogorov'], got 'wind'"),
    (lambda: physics.Turbulence(forcing_wavenumber=0), "forcing_wavenumber .* positive, got 0"),
    (lambda: physics.Turbulence.stationary(size=8), r"_wavenumber must be in \(0, 4.0\), got 4"),
    (lambda: physics.Smoke(size=15), "Smoke.size must be at least 16, got 15"),
    (lambda: physics.Smoke(length=0.0), "Smoke.length must be finite and positive, got 0.0"),
    (lambda: physics.Smoke(inflow_end=-1.0), "Smoke.inflow_end .* positive, got -1.0"),
    (lambda: physics.Smoke(buoyancy=0.0), "Smoke.buoyancy must be finite and not 0, got 0.0"),
    (lambda: physics.Smoke().geometries(jax.random.key(0), 0), "n must be at least 1, got 0"),
    (
        lambda: physics.finite_volume_drift(15, viscosity=0.1),
        "size must be even and at least 4, got 15",
    ),
    (
        lambda: physics.finite_volume_drift(8, viscosity=-1.0),
        "viscosity must be .* not negative, got -1.0",
    ),
    (lambda: physics.finite_volume_drift(8, viscosity=0.1, drag=math.nan), "drag .* got nan"),
    (
        lambda: physics.finite_volume_drift(8, viscosity=0.1, forcing=math.inf),
        "must be finite, got inf",
    ),
    (lambda: physics.finite_volume_drift(8, viscosity=0.1, forcing=1.0), r"in \(0, 4.0\), got 4"),
    (lambda: physics.finite_volume_projection({"v": SQUARE}), r"state .* got \{'v'"),
    (lambda: physics.finite_volume_projection({"u": SQUARE[1:, 1:], "v": SQUARE}), "got 7"),
]


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
