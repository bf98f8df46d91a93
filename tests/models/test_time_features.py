import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax.models import MLP, Fourier
from smdp_jax.models.time_features import log, raw, time_vector


@pytest.mark.parametrize("t", [0.0, 1e-3, 0.7, 10.0])
def test_values(t):
    np.testing.assert_allclose(time_vector("raw", t, jnp.float32), [t], rtol=1e-6)
    expected = np.log(t + 1e-5)
    np.testing.assert_allclose(time_vector("log", t, jnp.float32), [expected], rtol=1e-5)
    phases = 2 * np.pi * t / np.array([4.0, 2.0, 1.0])
    expected = [*np.cos(phases), *np.sin(phases)]
    features = time_vector(Fourier(3, 1.0, 4.0), t, jnp.float32)
    np.testing.assert_allclose(features, expected, atol=1e-5)
    phase = 2 * np.pi * np.log(t + 1e-5) / 40
    features = time_vector(Fourier(1, 40.0, 40.0, of=log), t, jnp.float32)
    np.testing.assert_allclose(features, [np.cos(phase), np.sin(phase)], atol=1e-5)


def test_default_of_fields_tells_times_apart():
    ts = jnp.geomspace(1e-4, 100.0, 60)
    features = jax.vmap(lambda t: time_vector("log_fourier", t, jnp.float32))(ts)
    distance = np.linalg.norm(features[:, None] - features[None], axis=-1)
    assert distance[~np.eye(60, dtype=bool)].min() > 0.05


def test_log_is_finite_just_below_zero():
    assert np.isfinite(log(jnp.array(-1e-3))).all()
    assert np.isfinite(jax.grad(lambda t: log(t)[0])(0.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: time_vector("sqrt", 0.1, jnp.float32),
            "must be one of .* got 'sqrt'",
        ),
        (lambda: time_vector(raw, jnp.zeros(2), jnp.float32), "scalar"),
        (lambda: time_vector(lambda t: t, 0.1, jnp.float32), "must be a vector"),
        (lambda: Fourier(0, 1.0, 2.0), "at least 1"),
        (lambda: Fourier(2, 2.0, 1.0), r"max_period must be in \[2.0, inf\), got 1.0"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_own_function_of_time():
    model = MLP(time_features=lambda t: jnp.stack([t, t**2, jnp.sqrt(t)]))
    variables = jax.jit(model.init)(jax.random.key(0), 0.5, jnp.ones(1), None)
    assert variables["params"]["Dense_0"]["kernel"].shape == (4, 30)
