"""The projection against dense least squares, exact flows, and its own algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax.physics import smoke
from smdp_jax.physics.smoke.grid import (
    closed_to,
    divergence,
    from_inner,
    gradient,
    open_faces,
    to_inner,
)

project = jax.jit(smoke.project)


def random_velocity(size, seed=0, speed=1.0):
    keys = jax.random.split(jax.random.key(seed))
    return tuple(speed * jax.random.normal(key, (size, size), float) for key in keys)


def some_obstacles(size, seed=0):
    """Two boxes, which may touch walls and enclose fluid, and a disc."""
    random = np.random.default_rng(seed)
    x, y = (np.indices((size, size)) + 0.5) / size
    solid = np.hypot(x - random.random(), y - random.random()) < 0.1
    for _ in range(2):
        (a, b), (width, height) = random.random(2), random.uniform([0.1, 0.05], [0.7, 0.12])
        solid |= (x > a) & (x < a + width) & (y > b) & (y < b + height)
    return jnp.asarray(solid)


def inner(a, b):
    return sum(jnp.sum(x * y) for x, y in zip(a, b, strict=True))


def largest(*velocity):
    return max(float(jnp.max(jnp.abs(v))) for v in velocity)


@pytest.mark.usefixtures("x64")
def test_differences_are_adjoint():
    """<p, D v> = -<G p, v> for velocities that stop at the walls."""
    faces = open_faces(jnp.zeros((16, 16), bool))
    v = closed_to(random_velocity(16), faces)
    p = random_velocity(16, 1)[0]
    assert jnp.sum(p * divergence(v)) == pytest.approx(-float(inner(gradient(p), v)), rel=1e-12)
    assert all((a == b).all() for a, b in zip(from_inner(*to_inner(v)), v, strict=True))


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_no_divergence_and_no_flow_through_obstacles(precision):
    """The bounds that are promised: 1e-5 and 1e-10 per unit time, at speeds as in the plume."""
    with jax.enable_x64(precision == "float64"):
        masks = jnp.stack([some_obstacles(64, seed) for seed in range(8)])
        faces = jax.vmap(open_faces)(masks)
        keys = jax.random.split(jax.random.key(1))
        v = tuple(5 * jax.random.uniform(k, masks.shape, precision, -1, 1) for k in keys)
        spacing = 100 / 64
        out = jax.jit(jax.vmap(smoke.project, (0, 0, None)))(v, faces, spacing)
        assert out[0].dtype == out[1].dtype == precision
        left = jnp.abs(jax.vmap(divergence)(out)) / spacing
        assert jnp.max(left) <= (1e-5 if precision == "float32" else 1e-10)
        for component, is_open in zip(out, faces, strict=True):
            assert not jnp.any(jnp.where(is_open, 0, component))


@pytest.mark.usefixtures("x64")
def test_equals_dense_least_squares():
    """The nearest field to v with D u = 0: v minus the part of it in the row space of D."""
    size = 16
    mask = some_obstacles(size, 3)
    faces, v = open_faces(mask), random_velocity(size)
    assert mask.any()
    is_open = np.concatenate([np.asarray(face).ravel() for face in faces])

    def flat_divergence(flat):
        return divergence(
            (flat[: size**2].reshape(size, size), flat[size**2 :].reshape(size, size))
        )

    matrix = np.asarray(jax.jacobian(flat_divergence)(jnp.zeros(2 * size**2)))
    matrix = matrix.reshape(size**2, -1)[:, is_open]
    flat = np.concatenate([np.asarray(component).ravel() for component in v])[is_open]
    pressure = np.linalg.lstsq(matrix.T, flat, rcond=None)[0]
    exact = np.zeros(2 * size**2)
    exact[is_open] = flat - matrix.T @ pressure
    found = np.concatenate([np.asarray(component).ravel() for component in project(v, faces)])
    np.testing.assert_allclose(found, exact, atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_is_an_orthogonal_projection():
    faces = open_faces(some_obstacles(32, 1))
    v, w = random_velocity(32), random_velocity(32, 1)
    pv, pw = project(v, faces), project(w, faces)
    assert largest(*(a - b for a, b in zip(project(pv, faces), pv, strict=True))) < 1e-9
    assert inner(pv, w) == pytest.approx(float(inner(v, pw)), rel=1e-9)
    mixed = project(tuple(2 * a - 3 * b for a, b in zip(v, w, strict=True)), faces)
    np.testing.assert_allclose(mixed[0], 2 * pv[0] - 3 * pw[0], atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_leaves_flows_around_obstacles_alone_and_takes_gradients_away():
    """The curl of a stream function that vanishes on walls and obstacles, and a gradient."""
    size = 32
    mask = some_obstacles(size, 2)
    faces = open_faces(mask)
    corners = jax.random.normal(jax.random.key(0), (size + 1, size + 1), float)
    free = jnp.pad(~mask, 1)  # a corner is free where all four cells around it are fluid
    free = free[1:, 1:] & free[:-1, 1:] & free[1:, :-1] & free[:-1, :-1]
    stream = jnp.where(free, corners, 0)
    flow = (stream[:-1, 1:] - stream[:-1, :-1], -(stream[1:, :-1] - stream[:-1, :-1]))
    assert largest(divergence(flow)) < 1e-12
    assert largest(*(a - b for a, b in zip(project(flow, faces), flow, strict=True))) < 1e-12
    slope = gradient(random_velocity(size)[0])
    assert largest(*project(slope, faces)) < 1e-9


def test_one_iteration_is_enough_without_obstacles():
    """The preconditioner is then the exact inverse, at rounding errors of single precision."""
    faces, v = open_faces(jnp.zeros((64, 64), bool)), random_velocity(64, speed=5.0)
    assert largest(divergence(project(v, faces))) < 1e-5


@pytest.mark.parametrize("speed", [1e-6, 1.0, 1e4])
def test_any_scale(speed):
    """Slow flows are solved to the same share of their speed, fast ones to rounding errors."""
    faces = open_faces(some_obstacles(64, 4))
    v = random_velocity(64, speed=speed)
    left = largest(divergence(project(v, faces)))
    assert left <= 5e-6 * speed * 5 if speed < 1 else left <= 1e-6 * speed * 5 + 5e-6


def test_rest_stays_at_rest():
    faces = open_faces(some_obstacles(32))
    rest = (jnp.zeros((32, 32)), jnp.zeros((32, 32)))
    assert largest(*project(rest, faces)) == 0
    gradient_there = jax.grad(lambda v: jnp.sum(project(v, faces)[0] ** 2))(rest)
    assert largest(*gradient_there) == 0


def test_regions_cut_off_from_each_other():
    """A barrier from wall to wall: each side is projected by itself."""
    mask = smoke.ClosedBox(32).box((0, 40), (100, 50))
    out = project(random_velocity(32, speed=5.0), open_faces(mask), 100 / 32)
    assert largest(divergence(out)) / (100 / 32) < 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_derivatives_are_projections():
    faces = open_faces(some_obstacles(32, 1))
    v, w = random_velocity(32), random_velocity(32, 1)
    expected = project(w, faces)
    _, forward = jax.jvp(lambda v: project(v, faces), (v,), (w,))
    (reverse,) = jax.vjp(lambda v: project(v, faces), v)[1](w)
    for found in (forward, reverse):
        assert largest(*(a - b for a, b in zip(found, expected, strict=True))) < 1e-9
    of_one = jax.grad(lambda vx: jnp.sum(project((vx, v[1]), faces)[1] * w[1]))(v[0])
    np.testing.assert_allclose(of_one, project((0 * w[0], w[1]), faces)[0], atol=1e-9)
    batch = jax.tree.map(lambda a, b: jnp.stack([a, b]), v, w)
    norm = lambda v: sum(jnp.sum(c**2) for c in project(v, faces)) / 2
    gradients = jax.vmap(jax.grad(norm))(batch)
    np.testing.assert_allclose(gradients[0][1], expected[0], atol=1e-9)
