import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax.models import GridScore

GRID = GridScore(shape=(6, 9), t_range=(0.0, 2.0), x_range=(-1.0, 1.0))
TS, XS = np.linspace(0, 2, 6), np.linspace(-1, 1, 9)


def evaluate(table, ts, xs):
    variables = {"params": {"table": jnp.asarray(table, jnp.float32)}}
    apply = jax.jit(jax.vmap(lambda t, x: GRID.apply(variables, t, x, None)))
    return apply(jnp.asarray(ts, jnp.float32), jnp.asarray(xs, jnp.float32))


def test_exact_at_nodes():
    table = np.random.default_rng(0).normal(size=(6, 9))
    t, x = np.meshgrid(TS, XS, indexing="ij")
    values = evaluate(table, t.ravel(), x.ravel()).reshape(6, 9)
    np.testing.assert_allclose(values, table, atol=1e-5)


def test_reproduces_bilinear_functions():
    def f(t, x):
        return 1.5 - 2 * t + 0.7 * x + 3 * t * x

    t, x = np.random.default_rng(1).uniform([[0], [-1]], [[2], [1]], (2, 200))
    values = evaluate(f(TS[:, None], XS[None, :]), t, x)
    np.testing.assert_allclose(values, f(t, x), atol=1e-5)


def test_error_falls_with_the_square_of_the_cell():
    t, x = np.random.default_rng(2).uniform([[0], [-1]], [[2], [1]], (2, 400))
    errors = []
    for n in (8, 16, 32):
        model = GridScore(shape=(n + 1, n + 1), t_range=(0.0, 2.0), x_range=(-1.0, 1.0))
        nodes = np.sin(np.linspace(0, 2, n + 1))[:, None] * np.cos(2 * np.linspace(-1, 1, n + 1))
        variables = {"params": {"table": jnp.asarray(nodes, jnp.float32)}}
        apply = jax.jit(jax.vmap(lambda t, x, m=model, v=variables: m.apply(v, t, x, None)))
        values = apply(jnp.asarray(t, jnp.float32), jnp.asarray(x, jnp.float32))
        errors.append(np.sqrt(np.mean((values - np.sin(t) * np.cos(2 * x)) ** 2)))
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(orders, 2, atol=0.2)


def test_clamped_outside():
    table = np.random.default_rng(3).normal(size=(6, 9))
    outside = evaluate(table, [-1, 5, 0.4, 0.4, 9], [0.25, 0.25, -3, 3, 3])
    edge = evaluate(table, [0, 2, 0.4, 0.4, 2], [0.25, 0.25, -1, 1, 1])
    np.testing.assert_allclose(outside, edge, rtol=1e-6)


def test_not_a_number_is_passed_on():
    values = evaluate(np.ones((6, 9)), [0.5, np.nan], [np.nan, 0.5])
    assert np.isnan(values).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (1, 5)}, "at least 2"),
        ({"t_range": (1.0, 1.0)}, "t_range must be increasing"),
        ({"x_range": (1.0, -1.0)}, "x_range must be increasing"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(GridScore(**options).init, jax.random.key(0), 0.1, jnp.ones(1), None)
