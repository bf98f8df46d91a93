"""What every score network promises. A new network is one line in CASES."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax import models

# These tests spend their time in the compiler: half of it is spared by optimising less.
compiled = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


@dataclass(frozen=True, eq=False)
class Case:
    name: str
    make: Callable[[], nn.Module]
    shapes: Any  # state: a pytree of shapes
    parameters: int | None = None
    conditions: Any = None  # args the network can see, beside None
    starts_at_zero: bool = True


def small_unet(**options: Any) -> models.UNet:
    return models.UNet(channels=(3, 4), embedding=6, **options)


def one_level(**options: Any) -> models.UNet:
    return models.UNet(channels=(3,), embedding=6, **options)


def spectral(net: nn.Module, shapes: Any, **options: Any) -> models.SpectralPreconditioned:
    def table(shape: tuple[int, ...]) -> np.ndarray:
        modes = (3, *shape[:-1], shape[-1] // 2 + 1)
        return 0.5 + np.random.default_rng(0).random(modes)

    tables = jax.tree.map(table, shapes, is_leaf=lambda s: isinstance(s, tuple))
    spectrum = models.Spectrum(np.array([0.0, 0.5, 1.0]), tables)
    return models.SpectralPreconditioned(net, spectrum, **options)


def small_resnet(**options: Any) -> models.DilatedResNet:
    return models.DilatedResNet(**{"channels": 3, "blocks": 1, "dilations": (1, 2)} | options)


TREE = {"a": (2, 3), "b": (), "c": (1,)}
SMOKE = {"density": (8, 4), "velocity": (8, 4, 2)}
TWO_FIELDS = {"u": (8, 8), "v": (8, 8)}
MASK = {"mask": np.arange(32).reshape(8, 4) % 3 == 0, "viscosity": np.float32(0.1)}
STAGGERED = {"marker": (8, 4), "velocity_x": (9, 4), "velocity_y": (8, 5)}
NUMBERS = {"viscosity": np.float32(0.1), "labels": np.arange(3)}

CASES = [
    Case("mlp", models.MLP, (1,), 2536, NUMBERS),
    Case("mlp_scalar", lambda: models.MLP((8,)), (), 33),
    Case("mlp_tree", lambda: models.MLP((8, 8)), TREE, 9 * 8 + 8 + 72 + 72, NUMBERS),
    Case(
        "mlp_fourier",
        lambda: models.MLP((8,), time_features=models.Fourier(3, 0.1, 2.0)),
        (2,),
        (2 + 6) * 8 + 8 + 8 * 2 + 2,
    ),
    Case("grid", models.GridScore, (1,), 500 * 250),
    Case("grid_leaf", lambda: models.GridScore(shape=(9, 7)), {"x": ()}, 63),
    Case("unet", small_unet, SMOKE, None, MASK),
    Case("unet_1d", lambda: one_level(dims=1, kernel=5), (16,), None, NUMBERS),
    Case("unet_reflect", lambda: one_level(padding="reflect", blocks=2), (8, 4)),
    Case("unet_3d", lambda: one_level(padding="zero", coordinates=True, dims=3), (4, 4, 4)),
    Case("unet_staggered", lambda: one_level(padding="zero"), STAGGERED, None, MASK),
    Case("dilated", small_resnet, SMOKE, None, MASK),
    Case("dilated_1d", lambda: small_resnet(dims=1, embedding=4), (16,), None, NUMBERS),
    Case(
        "dilated_staggered",
        lambda: small_resnet(padding="zero", coordinates=True),
        STAGGERED,
        conditions=MASK,
    ),
    Case("encoder_decoder", lambda: models.EncoderDecoder(2, 1, kernel=2), SMOKE, None, MASK),
    Case("fno", lambda: models.FNO(2, 3, 2, 4), SMOKE, None, MASK),
    Case("fno_1d", lambda: models.FNO(3, 3, 2, 4, margin=2, dims=1), (9,), None, NUMBERS),
    Case(
        "spectral",
        lambda: spectral(one_level(), TWO_FIELDS),
        TWO_FIELDS,
        conditions={"mask": np.ones((8, 8), bool)},
        starts_at_zero=False,
    ),
    Case(
        "spectral_gain",
        lambda: spectral(models.MLP((8,)), (9,), spectral_gain=True, see_state=False),
        (9,),
        conditions=NUMBERS,
        starts_at_zero=False,
    ),
    Case(
        "spectral_1d",
        lambda: spectral(small_resnet(dims=1), (16,)),
        (16,),
        conditions=NUMBERS,
        starts_at_zero=False,
    ),
]

REFUSED = [  # network, a state that does not fit it, and what the message says
    (models.GridScore, (2,), "one number"),
    (models.GridScore, TREE, "one number"),
    (small_unet, {"a": (8, 4), "b": (4, 8)}, "share one grid"),
    (small_unet, (8, 5), "multiple of 2"),
    (small_resnet, {"a": (8, 4), "b": (10, 4)}, "share one grid"),
    (small_resnet, (2, 3, 4, 4), "use jax.vmap"),
    (lambda: models.FNO(modes=5), (8, 16), "modes must be at most 4"),
    (models.EncoderDecoder, (16,), "dims=2"),
    (small_unet, (2, 3, 4, 4), "use jax.vmap"),
    (lambda: small_unet(dims=1), (4, 4, 4), "dims=1"),
    (lambda: small_unet(dims=3), (4, 4), "dims=3"),
    (lambda: spectral(small_unet(), TWO_FIELDS), (8, 8), "must have the state's tree"),
    (lambda: spectral(small_unet(), TWO_FIELDS), {"u": (8, 8), "v": (8, 4)}, "must have shape"),
    (lambda: spectral(small_unet(), (8, 8)), (3, 8, 8), "jax.vmap"),
]

every_network = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def state(shapes: Any, seed: int = 0, dtype: str = "float32", batch: tuple[int, ...] = ()) -> Any:
    random = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...]) -> jax.Array:
        return jnp.asarray(random.normal(size=(*batch, *shape)).astype(dtype))

    return jax.tree.map(draw, shapes, is_leaf=lambda s: isinstance(s, tuple))


@functools.cache
def network(case: Case) -> tuple[nn.Module, Callable[..., Any], Callable[..., Any]]:
    """The module with `init` and `apply` compiled, which also shows that it hashes."""
    model = case.make()
    apply = compiled(model.apply)
    # One kind of time, and so one compilation, in all tests of a network.
    return model, compiled(model.init), lambda v, t, x, args: apply(v, np.float32(t), x, args)


@functools.cache
def parameter_shapes(case: Case, dtype: str, conditioned: bool) -> Any:
    x, args = state(case.shapes, dtype=dtype), case.conditions if conditioned else None
    return jax.eval_shape(network(case)[0].init, jax.random.key(0), 0.3, x, args)


def trained(case: Case, x: Any, args: Any = None) -> Any:
    """Parameters as after some training: last layers are no longer zero."""
    dtype = jax.tree.leaves(x)[0].dtype.name
    shapes = parameter_shapes(case, dtype, args is not None)
    random = np.random.default_rng(2)

    def draw(p: jax.ShapeDtypeStruct) -> np.ndarray:
        return (random.normal(size=p.shape) / np.sqrt(max(p.size, 1))).astype(p.dtype)

    return jax.tree.map(lambda p: jnp.asarray(3 * draw(p)), shapes)


def every_leaf(test: Callable[..., Any], *trees: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda *leaves: bool(test(*leaves)), *trees)))


def assert_close(a: Any, b: Any, tolerance: float = 1e-5) -> None:
    """Up to rounding, which is that of the largest of the terms that are summed."""

    def compare(p: Any, q: Any) -> None:
        np.testing.assert_allclose(p, q, rtol=0, atol=tolerance * np.abs(q).max())

    jax.tree.map(compare, a, b)


def assert_like(a: Any, x: Any) -> None:
    assert every_leaf(lambda p, q: (p.shape, p.dtype) == (q.shape, q.dtype), a, x)


@pytest.mark.slow
@every_network
def test_untrained(case: Case) -> None:
    _, init, apply = network(case)
    x = state(case.shapes)
    first, again, other = (init(jax.random.key(k), 0.3, x, None) for k in (0, 0, 1))
    assert every_leaf(np.array_equal, first, again)
    # A table of zeros draws nothing.
    assert every_leaf(np.array_equal, first, other) == case.name.startswith("grid")
    assert set(first) == {"params"}  # nothing hidden beside what is trained
    count = sum(leaf.size for leaf in jax.tree.leaves(first))
    assert count == (case.parameters or count)
    if case.starts_at_zero:
        assert every_leaf(lambda leaf: (leaf == 0).all(), apply(first, 0.3, x, None))


@every_network
def test_state_comes_back_as_it_went_in(case: Case) -> None:
    model, _, apply = network(case)
    x = state(case.shapes)
    coarse = apply(trained(case, x), 0.3, x, None)
    assert_like(coarse, x)
    assert every_leaf(lambda leaf: np.isfinite(leaf).all() and (leaf != 0).any(), coarse)
    with jax.enable_x64(True):
        x = state(case.shapes, dtype="float64")
        variables = trained(case, x)
        assert every_leaf(lambda leaf: leaf.dtype == jnp.float64, variables)
        # Times may come in another precision than the state.
        fine = apply(variables, jnp.float32(0.3), x, None)
        assert_like(fine, x)
        # Parameters in float32 leave the arithmetic in the state's precision.
        rounded = jax.tree.map(lambda p: p.astype(jnp.float32), variables)
        assert_like(jax.eval_shape(model.apply, rounded, 0.3, x, None), x)


@every_network
def test_float64_is_computed_in_float64(case: Case) -> None:
    # The same numbers in both precisions agree to float32's rounding, and no further.
    _, _, apply = network(case)
    x = state(case.shapes)
    variables = trained(case, x)
    coarse = apply(variables, 0.3, x, None)
    with jax.enable_x64(True):
        variables, x = jax.tree.map(lambda a: a.astype(jnp.float64), (variables, x))
        fine = apply(variables, jnp.float32(0.3), x, None)
    coarse = jax.tree.map(np.float64, coarse)
    assert_close(fine, coarse, 1e-4)
    assert not every_leaf(np.array_equal, fine, coarse)


@every_network
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_numbers_are_stored_and_not_computed_in(case: Case, dtype: str) -> None:
    model, x = network(case)[0], jax.tree.map(lambda a: a.astype(dtype), state(case.shapes))
    variables = jax.eval_shape(model.init, jax.random.key(0), 0.3, x, None)
    assert every_leaf(lambda leaf: leaf.dtype == jnp.float32, variables)
    assert_like(jax.eval_shape(model.apply, variables, 0.3, x, None), x)


FINE = models.Fourier(3, 3e-3, 0.1)
STEEP = [  # in time, so that the short numbers of the output can show it
    Case("mlp", lambda: models.MLP((8,), time_features=FINE), (2,)),
    Case("grid", lambda: models.GridScore((400, 5)), (1,)),
    Case("dilated", lambda: small_resnet(dims=1, time_features=FINE), (16,)),
    Case("spectral_gain", lambda: spectral(models.MLP((8,), FINE), (9,), spectral_gain=True), (9,)),
]


@pytest.mark.parametrize("case", STEEP, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_close_times_are_told_apart_in_short_numbers(case: Case, dtype: str) -> None:
    # In bfloat16 the three times are the same one.
    apply = network(case)[2]
    x = jax.tree.map(lambda a: a.astype(dtype), state(case.shapes))
    wide = jax.tree.map(lambda a: a.astype("float32"), x)
    variables = jax.tree.map(lambda p: 3 * p, trained(case, wide))
    found = {}
    for t in (0.5, 0.5005, 0.501):
        exact = apply(variables, t, wide, None)
        rounded = apply(variables, t, x, None)
        jax.tree.map(
            lambda p, q: np.testing.assert_allclose(
                np.float32(p), q, rtol=2 * float(jnp.finfo(dtype).eps), atol=1e-3
            ),
            rounded,
            exact,
        )
        found[t] = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(rounded)]
    assert len({tuple(leaves) for leaves in found.values()}) == 3


@every_network
def test_vmap_is_one_by_one(case: Case) -> None:
    model, _, apply = network(case)
    xs, ts = state(case.shapes, batch=(3,)), jnp.array([0.1, 0.4, 0.9])
    rows = [jax.tree.map(lambda leaf, i=i: leaf[i], xs) for i in range(3)]
    variables = trained(case, rows[0])
    singly = [apply(variables, t, x, None) for t, x in zip(ts, rows, strict=True)]
    together = compiled(jax.vmap(model.apply, (None, 0, 0, None)))(variables, ts, xs, None)
    assert_close(together, jax.tree.map(lambda *leaves: np.stack(leaves), *singly))
    assert every_leaf(np.array_equal, apply(variables, ts[0], rows[0], None), singly[0])


@every_network
def test_time_matters(case: Case) -> None:
    apply, x = network(case)[2], state(case.shapes)
    variables = trained(case, x)
    early, late = (apply(variables, t, x, None) for t in (0.1, 0.8))
    assert every_leaf(lambda p, q: (p != q).any(), early, late)


@pytest.mark.slow
@every_network
def test_gradients_are_finite_and_reach_everything(case: Case) -> None:
    model, x = network(case)[0], state(case.shapes)
    variables = trained(case, x)

    def loss(variables: Any, t: Any, x: Any) -> Any:
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(model.apply(variables, t, x, None)))

    gradient = compiled(jax.grad(loss, argnums=(0, 1, 2)))
    for t in (0.0, 0.3):  # at 0 logarithms and roots could fail
        grads = gradient(variables, t, x)
        assert every_leaf(lambda leaf: np.isfinite(leaf).all(), grads)
    assert every_leaf(lambda leaf: (leaf != 0).any(), (grads[0], grads[2]))


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.conditions is not None], ids=lambda case: case.name
)
def test_every_condition_is_seen(case: Case) -> None:
    apply, x = network(case)[2], state(case.shapes)
    variables = trained(case, x, case.conditions)
    base = apply(variables, 0.3, x, case.conditions)
    assert_like(base, x)
    leaves, treedef = jax.tree.flatten(case.conditions)
    for i, leaf in enumerate(leaves):
        other = ~leaf if leaf.dtype == bool else leaf + leaf.dtype.type(1)
        args = jax.tree.unflatten(treedef, [*leaves[:i], other, *leaves[i + 1 :]])
        assert not every_leaf(np.array_equal, base, apply(variables, 0.3, x, args))


@pytest.mark.parametrize(("make", "shapes", "message"), REFUSED)
def test_state_that_does_not_fit(make: Any, shapes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(make().init, jax.random.key(0), 0.3, state(shapes), None)


@every_network
def test_bad_times_and_dtypes(case: Case) -> None:
    init, x = case.make().init, state(case.shapes)
    with pytest.raises(ValueError, match=r"a scalar .*, got"):
        jax.eval_shape(init, jax.random.key(0), jnp.zeros(3), x, None)
    whole = jax.tree.map(lambda leaf: leaf.astype(int), x)
    with pytest.raises(TypeError, match="floating point, got int"):
        jax.eval_shape(init, jax.random.key(0), 0.3, whole, None)
