"""Derivatives of the smoke simulator, forward and reverse, against finite differences."""

import jax
import jax.numpy as jnp
import pytest

from smdp_jax.physics import Smoke

SMOKE = Smoke(size=24)


def flow(x, args, steps=20):
    """Simulate from t = 0.1, over the end of the inflow."""

    def advance(x, i):
        t = 0.1 + i * 0.01
        return SMOKE.step(t, t + 0.01, x, args), None

    return jax.lax.scan(advance, x, jnp.arange(steps, dtype=float))[0]


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_gradient_through_twenty_steps():
    """Against central differences, with obstacles, in a direction of all leaves.

    The marker is rough, as under noise: without it the limiter sits on its kinks wherever there
    is no smoke, and there are no derivatives to compare with.
    """
    args = {"obstacles": SMOKE.box((30, 40), (60, 52)) | SMOKE.disc((75, 60), 9)}
    keys = iter(jax.random.split(jax.random.key(0), 8))
    rest = jax.tree.map(lambda a: a[0], SMOKE.prior(next(keys), 1))
    random = lambda scale: jax.tree.map(
        lambda a: scale * jax.random.normal(next(keys), a.shape, a.dtype), rest
    )
    start = SMOKE.project(random(0.5), args)
    start["marker"] = 1 + start["marker"] ** 2 + 5 * SMOKE.inflow()
    along = random(1.0)
    weight = jax.random.normal(next(keys), (24, 24), float)

    @jax.jit
    def loss(x):
        end = flow(x, args)
        return jnp.sum(weight * end["marker"]) + jnp.sum(end["velocity_x"] ** 2)

    moved = lambda eps: loss(jax.tree.map(lambda x, a: x + eps * a, start, along))
    expected = float(moved(1e-6) - moved(-1e-6)) / 2e-6
    gradient = jax.jit(jax.grad(loss))(start)
    reverse = sum(float(jnp.sum(gradient[name] * along[name])) for name in along)
    forward = float(jax.jit(lambda x: jax.jvp(loss, (x,), (along,))[1])(start))
    assert reverse == pytest.approx(expected, rel=1e-5)
    assert forward == pytest.approx(reverse, rel=1e-8)


@pytest.mark.slow
def test_gradient_in_still_air_without_smoke():
    """Smoke added to clear air goes where the wind takes it, and counts in full.

    The derivative of the total marker is close to 1 everywhere: not shared out by the limiter,
    which has nothing to limit. It is not exactly 1, since transport does not conserve exactly.
    """
    rest = jax.tree.map(lambda a: a[0], SMOKE.prior(jax.random.key(0), 1))
    args = {"obstacles": SMOKE.box((30, 40), (60, 52))}

    def total(marker, x):
        return jnp.sum(SMOKE.step(0.3, 0.31, {**x, "marker": marker}, args)["marker"])

    blown = SMOKE.project({**rest, "velocity_x": rest["velocity_x"] + 3.0}, args)
    for x in (rest, blown):
        gradient = jax.jit(jax.grad(total))(rest["marker"], x)
        assert not jnp.any(jnp.where(args["obstacles"], gradient, 0))
        fluid = ~args["obstacles"]
        assert float(jnp.sum(gradient)) / int(jnp.sum(fluid)) == pytest.approx(1, abs=0.03)
