"""The door to jax-cfd, and its finite-volume solver as a drift."""

import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax.physics import jax_cfd
from smdp_jax.physics.jax_cfd import finite_volume_drift, finite_volume_projection
from smdp_jax.physics.spectral import vorticity
from smdp_jax.physics.spectral.periodic import refine
from smdp_jax.physics.turbulence import Turbulence

pytestmark = pytest.mark.usefixtures("compiles_quickly")


def taylor_green(size, k=1):
    """Velocities on faces: u = sin(2 pi k x) cos(2 pi k y), v = -cos(2 pi k x) sin(2 pi k y)."""
    face, centre = (2 * np.pi * k * (np.arange(size) + o) / size for o in (1.0, 0.5))
    u = np.sin(face)[:, None] * np.cos(centre)[None, :]
    v = -np.cos(centre)[:, None] * np.sin(face)[None, :]
    return {"u": jnp.asarray(u, float), "v": jnp.asarray(v, float)}


def rough(size, seed=0):
    keys = jax.random.split(jax.random.key(seed))
    return {n: jax.random.normal(k, (size, size), float) for n, k in zip("uv", keys, strict=True)}


def divergence(x):
    size = x["u"].shape[0]
    change = lambda f, axis: size * (f - jnp.roll(f, 1, axis))
    return change(x["u"], 0) + change(x["v"], 1)


def integrate(drift, x, time, steps):
    """Fourth-order Runge-Kutta, by hand: the drift's error is the only one that shows."""
    dt = time / steps
    move = lambda x, k, h: jax.tree.map(lambda x, k: x + h * k, x, k)
    stages = dt * jnp.array([0.0, 0.5, 0.5, 1.0]), dt / 6 * jnp.array([1.0, 2.0, 2.0, 1.0])

    def body(x, _):
        def stage(held, sizes):  # one copy of the drift to compile
            last, end = held
            rate = drift(0.0, move(x, last, sizes[0]), None)
            return (rate, move(end, rate, sizes[1])), None

        return jax.lax.scan(stage, (jax.tree.map(jnp.zeros_like, x), x), stages)[0][1], None

    return jax.jit(lambda x: jax.lax.scan(body, x, length=steps)[0])(x)


def canary() -> dict[str, str]:
    """Try every call of jax-cfd that the adapter makes."""
    square, modes = jnp.ones((4, 4)), jnp.fft.rfft2(jnp.ones((4, 4)))
    faces = lambda: jax_cfd.face_velocity(square, square)
    grid = lambda: jax_cfd.library("base.grids.Grid")((4, 4), domain=((0.0, 1.0),) * 2)
    equation = lambda: jax_cfd.library("spectral.equations.NavierStokes2D")
    flow = lambda: equation()(0.1, grid(), smooth=None)
    trials = {
        "base.grids.Grid": lambda f: f((4, 4), domain=((0.0, 1.0),) * 2),
        "base.boundaries.periodic_boundary_conditions": lambda f: f(2),
        "base.grids.GridVariable": lambda f: faces(),
        "base.advection.convect_linear": lambda f: f(faces()),
        "base.diffusion.diffuse": lambda f: f(faces()[0], 0.1),
        "base.pressure.solve_fast_diag": lambda f: f(faces()),
        "base.pressure.projection": lambda f: f(faces()),
        "spectral.equations.NavierStokes2D": lambda f: flow().explicit_terms(modes),
        "spectral.time_stepping.crank_nicolson_rk4": lambda f: f(flow(), 0.1)(modes),
    }
    broken = {}
    for name, trial in trials.items():
        try:
            with jax_cfd.lenient():
                trial(jax_cfd.library(name))
        except Exception as error:  # whatever a foreign library raises is the report
            broken[f"jax_cfd.{name}"] = f"{type(error).__name__}: {error}"
    return broken


@pytest.mark.slow
def test_every_call_works():
    assert canary() == {}


@pytest.mark.parametrize("name", ["base.pressure.projection", "spectral.equations.NavierStokes2D"])
def test_canary_names_the_call_that_broke(monkeypatch, name):
    def breaks(*args, **kwargs):
        raise AttributeError("jax.tree_map was removed")

    whole = jax_cfd.library
    monkeypatch.setattr(jax_cfd, "library", lambda asked: breaks if asked == name else whole(asked))
    broken = canary()
    assert broken[f"jax_cfd.{name}"] == "AttributeError: jax.tree_map was removed"
    assert len(broken) <= 2  # NavierStokes2D breaks the time stepper's trial as well


@pytest.mark.parametrize("name", ["base.pressure.solve_magic", "no_such_module.thing"])
def test_missing_names(name):
    with pytest.raises(ImportError, match=rf"jax_cfd\.{name} cannot be had .* jax-cfd 0\.2\.1"):
        jax_cfd.library(name)


def test_importing_the_package_does_not_import_jax_cfd():
    code = "import sys, smdp_jax; sys.exit(any(m.startswith('jax_cfd') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_taylor_green_converges_with_the_square_of_the_cells():
    """The vortices decay as exp(-8 pi^2 nu t) without changing shape."""
    errors = []
    for size in (16, 32):
        x = taylor_green(size)
        end = integrate(finite_volume_drift(size, viscosity=0.01), x, 0.5, 100)
        exact = math.exp(-8 * math.pi**2 * 0.01 * 0.5)
        errors.append(float(jnp.max(jnp.abs(end["u"] - exact * x["u"]))))
    assert errors[1] < 2e-3
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.1)


@pytest.mark.usefixtures("x64")
def test_conservation():
    """Without viscosity the drift keeps energy, momentum and incompressibility, on white noise."""
    x = finite_volume_projection(rough(16))
    np.testing.assert_allclose(divergence(x), 0, atol=1e-11)
    np.testing.assert_allclose(finite_volume_projection(x)["u"], x["u"], atol=1e-12)
    rates = finite_volume_drift(16, viscosity=0.0)(0.0, x, None)
    np.testing.assert_allclose(divergence(rates), 0, atol=1e-8)
    power = [float(jnp.sum(x[n] * rates[n])) for n in x]
    assert abs(sum(power)) < 1e-11 * sum(float(jnp.sum(jnp.abs(x[n] * rates[n]))) for n in x)
    for n in x:
        assert abs(float(jnp.mean(rates[n]))) < 1e-11


@pytest.mark.usefixtures("x64")
def test_laminar_kolmogorov_flow():
    """u = A sin(q y) / (nu q^2 + mu): the drift vanishes, with q^2 as the grid has it."""
    size, k, a, nu, mu = 32, 2, 0.7, 0.01, 0.3
    square = 4 * size**2 * math.sin(math.pi * k / size) ** 2
    centre = (np.arange(size) + 0.5) / size
    profile = a * np.sin(2 * np.pi * k * centre) / (nu * square + mu)
    x = {"u": jnp.asarray(np.tile(profile, (size, 1)), float), "v": jnp.zeros((size, size))}
    drift = finite_volume_drift(size, viscosity=nu, drag=mu, forcing=a, wavenumber=k)
    rates = drift(0.0, x, None)
    np.testing.assert_allclose(rates["u"], 0, atol=1e-12)
    np.testing.assert_allclose(rates["v"], 0, atol=1e-12)
    assert square == pytest.approx((2 * math.pi * k) ** 2, rel=0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_finite_volumes_agree_with_the_spectral_solver():
    """Both solve the same forced flow; the difference falls with the square of the cells."""
    coarse = 30 * Turbulence(size=8).prior(jax.random.key(0), 1)[0]
    system = Turbulence(
        size=64, viscosity=2e-3, drag=0.1, forcing="kolmogorov", forcing_wavenumber=2,
        inner_steps=64,
    )  # fmt: skip
    end = jax.jit(system.step)(0.0, 0.5, refine(coarse, 64))
    differences = []
    for size in (32, 64):
        # Face velocities are differences of the stream function at the corners (i + 1, j + 1).
        psi = jnp.roll(refine(vorticity.stream_function(coarse), size), (-1, -1), (0, 1))
        x = {"u": size * (psi - jnp.roll(psi, 1, 1)), "v": -size * (psi - jnp.roll(psi, 1, 0))}
        drift = finite_volume_drift(size, viscosity=2e-3, drag=0.1, forcing=0.1, wavenumber=2)
        got = integrate(drift, x, 0.5, 100)
        curl = jnp.roll(got["v"], -1, 0) - got["v"] - jnp.roll(got["u"], -1, 1) + got["u"]
        at_corners = jnp.roll(size * curl, (1, 1), (0, 1))
        differences.append(float(jnp.max(jnp.abs(at_corners - end[:: 64 // size, :: 64 // size]))))
    assert differences[1] < 0.02 * float(jnp.max(jnp.abs(end)))
    assert math.log2(differences[0] / differences[1]) == pytest.approx(2, abs=0.3)
