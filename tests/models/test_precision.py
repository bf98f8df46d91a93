"""Networks whose fields are transformed in bfloat16: what stays in float32, and what it costs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import smdp_jax as smdp
from smdp_jax import models

pytestmark = pytest.mark.usefixtures("compiles_quickly")

SHORT = jnp.bfloat16
SIZE = (8, 4)


def preconditioned(**options):
    spectrum = models.Spectrum(np.array([0.0, 1.0]), np.ones((2, 8, 3)) + np.arange(3))
    return models.SpectralPreconditioned(models.UNet((3,), **options), spectrum)


NETWORKS = {
    "unet": lambda **o: models.UNet((5, 6), **o),
    "resnet": lambda **o: models.DilatedResNet(channels=5, blocks=2, dilations=(1, 2), **o),
    "modulated": lambda **o: models.DilatedResNet(channels=5, blocks=1, embedding=6, **o),
    "fno": lambda **o: models.FNO(modes=2, width=5, layers=2, projection=6, **o),
    "encoder": lambda **o: models.EncoderDecoder(channels=5, blocks=1, **o),
    "preconditioned": preconditioned,
}


def drawn(name):
    """The network in both, with parameters that are not zero, and a state."""
    long, short = (NETWORKS[name](dtype=dtype) for dtype in (None, SHORT))
    x = jax.random.normal(jax.random.key(1), SIZE)
    shapes = [jax.eval_shape(n.init, jax.random.key(0), 0.5, x, None) for n in (long, short)]
    assert shapes[0] == shapes[1]
    random = np.random.default_rng(2)
    fill = lambda p: jnp.float32(random.normal(size=p.shape) / np.sqrt(max(p.size, 1)))
    return long, short, jax.tree.map(fill, shapes[1]), x


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_agreement_and_dtypes(name):
    """A few roundings of 2^-9 each on the way, in a norm over the field."""
    long, short, variables, x = drawn(name)
    programs = [jax.jit(n.apply).trace(variables, 0.5, x, None) for n in (long, short)]
    want, got = (p.lower().compile()(variables, 0.5, x, None) for p in programs)
    assert got.dtype == jnp.float32
    miss = jnp.linalg.norm(got - want) / jnp.linalg.norm(want)
    assert 0 < miss < 0.03
    slope = jax.jit(jax.grad(lambda v: jnp.sum(short.apply(v, 0.5, x, None) ** 2)))(variables)
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves((variables, slope))}
    assert dtypes == {"float32"}
    assert "bf16[" in str(programs[1].jaxpr)
    assert "bf16[" not in str(programs[0].jaxpr)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_close_times_are_told_apart(name):
    """0.5 and 0.5015 are one number in bfloat16."""
    _, short, variables, x = drawn(name)
    variables = jax.tree.map(lambda p: 30 * p, variables)
    a, b = (short.apply(variables, t, x, None) for t in (0.5, 0.5015))
    assert jnp.any(a != b)


def test_a_dtype_that_is_none():
    for wrong in (jnp.int32, bool):
        with pytest.raises(ValueError, match="dtype must be floating"):
            models.UNet((3,), dtype=wrong).init(jax.random.key(0), 0.5, jnp.ones(SIZE), None)


@pytest.mark.slow
def test_fit_in_bfloat16():
    """Averages and losses stay in float32; the loss is that of float32 up to roundings."""
    sde = smdp.SDE(lambda t, x, args: -x, diffusion=0.5)
    ts, key = smdp.linear_grid(0.0, 1.0, 6), jax.random.key(0)
    data = smdp.simulate(sde, jax.random.normal(key, (32, 8)), ts, key=key)

    def trained(dtype, model):
        return smdp.fit(
            sde,
            model,
            data,
            smdp.OneStep(),
            optax.adam(1e-3),
            steps=20,
            key=key,
            batch_size=16,
            dtype=dtype,
            progress=False,
        )

    net = models.UNet((4,), dims=1)
    long, short = trained(None, net), trained(SHORT, net)
    assert short.score.model.dtype == SHORT
    assert {leaf.dtype.name for leaf in jax.tree.leaves(short.score)} == {"float32"}
    assert abs(short.history["loss"][-1] / long.history["loss"][-1] - 1) < 0.02
    weights = (jax.tree.leaves(fit.score.variables) for fit in (short, long))
    assert any((a != b).any() for a, b in zip(*weights, strict=True))
    with pytest.raises(TypeError, match="network on fields, such as UNet"):
        trained(SHORT, models.MLP())
