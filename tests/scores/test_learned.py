"""Preconditioning of a network, and where a step correction may be used."""

import math
import re
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp

TS = smdp.linear_grid(0.0, 2.0, 20)
X = {"a": jnp.ones(3), "b": jnp.ones(())}


def drift(t, x, args):
    return jax.tree.map(jnp.zeros_like, x)


class Constant(nn.Module):
    """The same number everywhere."""

    @nn.compact
    def __call__(self, t, x, args):
        value = self.param("value", nn.initializers.constant(6.0), ())
        return jax.tree.map(lambda x: value * jnp.ones_like(x), x)


VARIABLES = {"params": {"value": jnp.array(6.0)}}


def spreading(times=9):
    """Paths whose spread grows from 0.1 to 10, about 3, under little noise."""
    ts = smdp.linear_grid(0.0, 2.0, times - 1)
    k_a, k_b = jax.random.split(jax.random.key(0))
    spread = jnp.logspace(-1.0, 1.0, times)
    xs = {
        "a": 3.0 + spread[None, :, None] * jax.random.normal(k_a, (50, times, 4)),
        "b": 3.0 + spread[None] * jax.random.normal(k_b, (50, times)),
    }
    sde = smdp.SDE(drift, diffusion={"a": lambda t: 0.01 * (1 + t), "b": 0.02})
    return sde, smdp.Trajectories(ts, xs)


def still(t, x, args):
    return jax.tree.map(jnp.zeros_like, x)


def gathered(name, t):
    """int_0^t g^2 of ``spreading``: (0.01 (1 + s))^2 and 0.02^2."""
    return 1e-4 * ((1 + t) ** 3 - 1) / 3 if name == "a" else 4e-4 * t


@pytest.mark.slow
@pytest.mark.parametrize("i", [0, 1, 4, 8])
def test_preconditioner_alone_is_the_score_of_a_broader_gaussian(i):
    """-(x - m) / C, C the data's variance pooled over entries and that of the noise."""
    sde, data = spreading()
    out = smdp.Preconditioner.of(sde, data)(still, data.ts[i], X, None)
    for name, x in X.items():
        values = np.asarray(data.xs[name][:, i], np.float64)
        noise = gathered(name, float(data.ts[max(i, 1)]))
        expected = -(np.asarray(x) - values.mean()) / (values.var() + noise)
        np.testing.assert_allclose(out[name], expected, rtol=2e-4)


def test_network_is_divided_by_the_noise_gathered():
    """The trapezoidal rule with 8 intervals."""
    sde, data = spreading()
    scale = smdp.Preconditioner.of(sde, data)

    def six(t, x, args):
        return jax.tree.map(lambda x: jnp.full_like(x, 6.0), x)

    for t in (0.25, 0.5, 1.25, 2.0):
        with_network = scale(six, jnp.array(t), X, None)
        alone = scale(still, jnp.array(t), X, None)
        for name in X:
            added = np.asarray(with_network[name] - alone[name])
            np.testing.assert_allclose(added, 6 / math.sqrt(gathered(name, t)), rtol=5e-3)


def test_network_sees_inputs_of_order_one_over_all_times():
    """One divisor for all times: the mean square over the nodes is 1, up to the mean at each."""
    sde, data = spreading()
    scale = smdp.Preconditioner.of(sde, data)
    seen = []

    def record(t, y, args):
        seen.append(y)
        return y

    for i in range(9):
        x = {"a": data.xs["a"][:, i].ravel(), "b": data.xs["b"][:, i]}
        scale(record, data.ts[i], x, None)
    for name in X:
        square = np.mean([np.mean(np.square(y[name])) for y in seen])
        assert 0.25 < square < 4, name


def test_a_prior_without_spread_gives_no_infinite_score():
    """Paths from one point that hardly move."""
    data = smdp.Trajectories(TS, {"a": jnp.ones((5, 21, 3)), "b": jnp.ones((5, 21))})
    scale = smdp.Preconditioner.of(smdp.SDE(drift, diffusion=0.5), data)
    x = jax.tree.map(lambda x: x + 1, X)
    np.testing.assert_allclose(scale(still, jnp.array(1.0), x, None)["b"], -1 / 0.25, rtol=1e-4)
    at_start = scale(still, jnp.array(0.0), x, None)["b"]
    np.testing.assert_allclose(at_start, -1 / (0.25 * 0.1), rtol=1e-4)


@pytest.mark.parametrize(("outside", "inside"), [(-1.0, 0.0), (9.0, 2.0)])
def test_preconditioner_holds_its_ends(outside, inside):
    scale = smdp.Preconditioner.of(*spreading())
    at, held = (scale(still, jnp.array(t), X, None) for t in (outside, inside))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), at, held)


def test_preconditioner_of_many_times_keeps_the_ends():
    """700 times, at most 97 of them tabulated; the first two and the last are exact."""
    sde, data = spreading(700)
    scale = smdp.Preconditioner.of(sde, data)
    assert scale.ts.shape[0] <= 97
    for i in (0, 1, 699):
        values = np.asarray(data.xs["b"][:, i], np.float64)
        out = scale(still, data.ts[i], X, None)["b"]
        expected = -(1 - values.mean()) / (values.var() + gathered("b", float(data.ts[max(i, 1)])))
        np.testing.assert_allclose(out, expected, rtol=2e-4)


def test_learned_score():
    plain = smdp.LearnedScore(Constant(), VARIABLES)
    t = jnp.array(1.0)
    np.testing.assert_allclose(plain(t, X, None)["a"], 6 * np.ones(3))
    np.testing.assert_allclose(plain(1.0, X, None)["a"], 6 * np.ones(3))
    scale = smdp.Preconditioner.of(*spreading())
    conditioned = smdp.LearnedScore(Constant(), VARIABLES, scale)
    expected = scale(lambda t, x, args: jax.tree.map(lambda x: 0 * x + 6, x), t, X, None)
    np.testing.assert_allclose(conditioned(t, X, None)["a"], expected["a"], rtol=1e-6)


def test_learned_terms_are_pytrees():
    """They cross jit and grad as arguments, and keep their kind."""
    score = smdp.LearnedScore(Constant(), VARIABLES, smdp.Preconditioner.of(*spreading()))
    gradient = jax.jit(jax.grad(lambda s: s(jnp.array(1.0), X, None)["b"]))(score)
    assert isinstance(gradient, smdp.LearnedScore)
    np.testing.assert_allclose(gradient.variables["params"]["value"], 50, rtol=1e-4)


# What a step correction may be used for ----------------------------------------------------------


def flow(t0, t1, x, args):
    return x * jnp.exp(-(t1 - t0))


FLOW = smdp.SDE(step=flow, diffusion=0.5)
END = jnp.ones(3)


def correction(noise_level=1.0):
    return smdp.StepCorrection(Constant(), VARIABLES, ts=TS, noise_level=noise_level)


def sample(score, ts=TS, sde=FLOW, **settings):
    return smdp.sample_posterior(
        sde, score, END, ts, num_samples=2, key=jax.random.key(0), **settings
    )


def test_correction_is_used_on_its_own_steps():
    whole = sample(correction())
    assert whole.samples.shape == (2, 3)
    part = sample(correction(), TS[5:12])
    assert part.samples.shape == (2, 3)
    path = smdp.probability_flow(FLOW, correction(0.0), END, TS)
    assert path.xs.shape == (21, 3)


def test_correction_is_its_step():
    """x -> 2 x - flow(x) + dt g^2 c, by hand over two steps without noise in the last."""
    ts = TS[:3]
    got = smdp.probability_flow(FLOW, correction(0.0), END, ts).xs[0]
    x = np.ones(3)
    for _ in range(2):
        x = 2 * x - x * math.exp(-0.1) + 0.5 * 0.1 * 0.25 * 6
    np.testing.assert_allclose(got, x, rtol=1e-5)


GRIDS = {
    "twice as fine": smdp.linear_grid(0.0, 2.0, 40),
    "half as fine": TS[::2],
    "one time left out": jnp.delete(TS, 7),
    "shifted": TS + 0.05,
    "longer": smdp.linear_grid(0.0, 2.1, 21),
    "one time moved": TS.at[7].add(0.01),
}


@pytest.mark.parametrize("name", GRIDS)
def test_correction_is_refused_on_other_steps(name):
    with pytest.raises(ValueError, match="needs the steps that this StepCorrection was trained on"):
        sample(correction(), GRIDS[name])
    score = smdp.LearnedScore(Constant(), VARIABLES)
    assert sample(score, GRIDS[name]).samples.shape == (2, 3)


@pytest.mark.parametrize(("trained", "asked"), [(1.0, 0.0), (1.0, 0.5), (0.0, 1.0)])
def test_correction_is_refused_at_another_noise_level(trained, asked):
    message = f"sample_posterior at noise level {asked:g} needs a score; this StepCorrection was"
    with pytest.raises(ValueError, match=message):
        sample(correction(trained), noise_level=asked)


def test_correction_is_refused_by_probability_flow():
    with pytest.raises(ValueError, match="probability_flow at noise level 0 needs a score"):
        smdp.probability_flow(FLOW, correction(), END, TS)


def test_correction_is_refused_on_a_drift():
    sde = smdp.SDE(lambda t, x, args: -x, diffusion=0.5)
    with pytest.raises(ValueError, match="sample_posterior on a drift needs a score"):
        sample(correction(), sde=sde)


@pytest.mark.parametrize(
    "settings",
    [{"substeps": 2}, {"corrector": smdp.Langevin(1e-3)}],
    ids=["substeps", "corrector"],
)
def test_correction_is_refused_where_it_is_not_its_step(settings):
    """Half a step and a Langevin move each need a score."""
    with pytest.raises(ValueError, match="StepCorrection"):
        sample(correction(), **settings)


def test_correction_of_a_probability_flow_is_refused_in_substeps():
    with pytest.raises(ValueError, match="substeps and corrector need a score"):
        smdp.probability_flow(FLOW, correction(0.0), END, TS, substeps=2)


# States and times that a network was not trained on ----------------------------------------------


def fitted():
    """A network with parameters for states of three entries."""
    model = smdp.models.MLP((4,))
    ts, xs = smdp.linear_grid(0.0, 1.0, 4), jnp.zeros((2, 5, 3))
    scale = smdp.Preconditioner.of(SPREAD, smdp.Trajectories(ts, xs))
    variables = model.init(jax.random.key(0), jnp.zeros(()), END, None)
    return smdp.LearnedScore(model, variables, scale)


SPREAD = smdp.SDE(drift, diffusion=0.5)


@pytest.mark.parametrize("shape", [(2,), (6, 3)])
def test_state_of_another_shape_is_named(shape):
    message = rf"parameters of MLP .* state {re.escape(str(shape))} and args None; .* batch_axes or"
    if shape[1:] == END.shape:
        message = r"batch_axes must be given .* or 6 of shape \(3,\)"
    with pytest.raises(ValueError, match=message):
        smdp.probability_flow(SPREAD, fitted(), jnp.ones(shape), TS[:5])


def test_state_of_another_tree_is_named():
    with pytest.raises(ValueError, match=r"trained on states of the tree .* got .*'a'"):
        smdp.probability_flow(SPREAD, fitted(), {"a": END}, TS[:5])


def test_times_beyond_those_of_the_training_are_warned_of():
    """TS ends at 2, the training at 1."""
    plain = replace(fitted(), preconditioner=None, ts=jnp.array([0.0, 1.0]))
    for score in (fitted(), plain):
        with pytest.warns(UserWarning, match=re.escape("[0, 2] goes beyond the times [0, 1]")):
            score.check_use(SPREAD, TS, 1.0, whole_steps=True, use="test")
        score.check_use(SPREAD, TS[:11], 1.0, whole_steps=True, use="test")
        score.check_use(SPREAD, TS[3:8], 1.0, whole_steps=False, use="test")
    # A score in closed form, or of another source, knows none.
    replace(plain, ts=None).check_use(SPREAD, TS, 1.0, whole_steps=True, use="test")
