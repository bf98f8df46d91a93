"""One call from held-out paths to a verdict: right posteriors pass, wrong and lost ones do not.

Ornstein-Uhlenbeck processes started from Gaussians: the score of p_t is known, scaled wrongly it
gives posteriors that are too wide or too narrow, and shifted it moves them.
"""

import math

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smdp_jax as smdp
from smdp_jax import evaluate

pytestmark = pytest.mark.usefixtures("compiles_quickly")

CASES, DRAWS = 80, 19
LEVELS = jnp.array([0.5, 0.9])
TS = jnp.linspace(0.0, 1.0, 17)
KEY = jax.random.key(5)


def drift(t, x, args):
    return jax.tree.map(lambda x: -args["rate"] * x, x)


SDE = smdp.SDE(drift, diffusion={"u": 0.8, "v": 0.8})


def score(t, x, args):
    """Of N(0, 1) entries at t = 0; rate, scale and shift are those of the path's args."""
    rate = args["rate"]
    variance = jnp.exp(-2 * rate * t) + 0.32 / rate * (1 - jnp.exp(-2 * rate * t))
    s = jax.tree.map(lambda x: -args["scale"] * (x - args["shift"]) / variance, x)
    lost = (t < 0.3) & (x["u"] > args["wall"])
    return s | {"u": jnp.where(lost, jnp.nan, s["u"])}


def paths(scale=1.0, shift=0.0, wall=np.inf):
    """Paths of a pytree of a number and a field, each with its own rate."""
    keys = jax.random.split(jax.random.key(0), 4)
    x0 = {
        "u": jax.random.normal(keys[0], (CASES,)),
        "v": jax.random.normal(keys[1], (CASES, 12)),
    }
    args = {"rate": jax.random.uniform(keys[2], (CASES,), minval=0.2, maxval=2.0)}
    data = smdp.simulate(SDE, x0, TS, key=keys[3], args=args, args_axes=0)
    wrong = {"scale": scale, "shift": shift, "wall": wall}
    args |= {name: jnp.full(CASES, value, jnp.float32) for name, value in wrong.items()}
    return smdp.Trajectories(data.ts, data.xs, args, None, 0)


def report(data, **options):
    chosen = {"key": jax.random.key(5), "num_samples": DRAWS, "solver": diffrax.ShARK()} | options
    return smdp.calibration_report(SDE, score, data, **chosen)


@pytest.fixture(scope="module")
def exact():
    return report(paths())


def missed(found):
    return {row.name for row in found.metrics if row.met is False}


@pytest.mark.slow
def test_exact_score_passes(exact):
    # 3 standard errors or 1 % for each of nine rows: false-alarm rate about 4 %.
    assert missed(exact) == set()
    assert exact.passed
    assert exact.lost == 0
    assert (exact.cases_used, exact.draws_used) == (CASES, DRAWS)
    assert exact.sbc_ranks.shape == (CASES, len(exact.observables))
    assert exact.observables == (
        "u value",
        "v maximum",
        "v mean square",
        "v mode 1",
        "v mode 4",
        "v patch mean",
    )
    np.testing.assert_allclose(exact.nominal, [0.5, 0.9], rtol=1e-6)


@pytest.mark.slow
def test_figures_are_those_of_the_tools(exact):
    """Drawn elsewhere, the same draws give the same report, and the same as each tool by itself."""
    data = paths()
    ends = jax.tree.map(lambda x: x[:, -1], data.xs)
    drawn = smdp.sample_posterior(
        SDE,
        score,
        ends,
        TS,
        num_samples=DRAWS,
        key=jax.random.split(jax.random.key(5), 3)[0],
        args=data.args,
        args_axes=0,
        batch_axes=1,
        solver=diffrax.ShARK(),
    )
    again = report(data, drawn=drawn)
    assert str(again) == str(exact)
    truth, samples = data.xs["u"][:, 0], drawn.samples["u"]
    ranks = evaluate.sbc_ranks(truth, samples)
    np.testing.assert_array_equal(exact.sbc_ranks[:, 0], ranks)
    p = evaluate.uniformity_test(ranks, DRAWS).p_value
    np.testing.assert_allclose(exact.sbc_p[0], p, rtol=1e-4)
    crps = jax.vmap(evaluate.crps_ensemble)(samples, truth)
    others = np.stack([np.delete(truth, i) for i in range(CASES)])
    prior = jax.vmap(evaluate.crps_ensemble)(others, truth)
    np.testing.assert_allclose(exact.crps["u"].value, crps.mean(), rtol=1e-4)
    np.testing.assert_allclose(exact.crps["u"].reference, prior.mean(), rtol=1e-3)
    inside = evaluate.marginal_coverage(data.xs["v"][:, 0], drawn.samples["v"], LEVELS)
    u = evaluate.marginal_coverage(truth, samples, LEVELS)
    np.testing.assert_allclose(exact.coverage, (12 * inside.mean(axis=1) + u) / 13, rtol=1e-4)
    # Without noise the process only decays: the floor is its noise at the end, given the start.
    rate = data.args["rate"]
    noise = jnp.mean(0.32 / rate * (1 - jnp.exp(-2 * rate)))
    # A mean of 960 squares: standard error 5 %, three of them, false-alarm rate 0.3 %.
    np.testing.assert_allclose(exact.reconstruction["v"].reference, noise, rtol=0.15)


@pytest.mark.parametrize(
    ("wrong", "rows"),
    [
        ({"scale": 0.3}, {"SBC p, smallest of 6", "coverage of 50% intervals"}),
        ({"scale": 2.5}, {"coverage of 50% intervals", "coverage of 90% intervals"}),
        ({"shift": 1.0}, {"SBC p, smallest of 6", "coverage of 50% intervals"}),
    ],
)
def test_wrong_scores_are_caught(wrong, rows):
    found = report(paths(**wrong))
    # A right posterior misses one of these rows at a rate below 1 %.
    assert rows <= missed(found)
    assert not found.passed
    assert f"missed: {', '.join(r.name for r in found.metrics if r.met is False)}" in found.status


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*paths were lost")  # sample_posterior says so as well
def test_lost_paths_are_said_and_never_ranked():
    found = report(paths(wall=0.8))
    assert 0.02 < found.lost < 0.4
    assert "lost paths" in missed(found)
    assert found.draws_used < DRAWS
    assert found.sbc_ranks.min() >= 0
    assert found.sbc_ranks.max() <= found.draws_used
    lost = round(found.lost * CASES * DRAWS)
    assert f"{lost} of {CASES * DRAWS} paths lost" in found.status
    assert "may be the easy part" in str(found)
    nothing = report(paths(wall=-1e9))
    assert nothing.lost == 1
    assert nothing.cases_used == 0
    assert missed(nothing) == {row.name for row in nothing.metrics}
    with pytest.raises(ValueError, match="must have a case to draw, got 100% of paths lost"):
        nothing.figure()


def test_table_and_figure(exact):
    table = str(exact)
    assert table.splitlines()[1] == "9 of 9 targets met; 0 of 1520 paths lost"
    assert max(len(line) for line in table.splitlines()) < 140
    assert len(exact.figure().axes) == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
def test_discrete_starts_are_covered_as_often_as_they_should(number):
    """Truth and draws from the same few values: ties are ranked at random, not as misses."""
    k_true, k_drawn = jax.random.split(jax.random.key(21))
    values = lambda key, *shape: jax.random.randint(key, shape, 0, number).astype(jnp.float32)
    x0 = values(k_true, 400)
    xs = jnp.stack([x0, jnp.zeros(400)], axis=1)
    drawn = smdp.Posterior(values(k_drawn, 400, DRAWS), None)
    still = smdp.SDE(lambda t, x, args: -x, diffusion=0.1)
    found = smdp.calibration_report(
        still, None, smdp.Trajectories(TS[jnp.array([0, -1])], xs), key=KEY, drawn=drawn
    )
    # Binomial over 400 cases, two rows of five standard errors: once in a million.
    error = np.sqrt(found.nominal * (1 - found.nominal) / 400)
    assert (np.abs(found.coverage - found.nominal) < 5 * error).all()


def test_own_observables_and_what_they_agree_in():
    found = report(paths(), observables=lambda x: {"sign": jnp.sign(x["u"]), "one": 0 * x["u"] + 1})
    assert found.observables == ("sign",)
    assert found.constant == ("one",)
    # Ties are broken at random: a sign, drawn from the right posterior, has uniform ranks.
    assert found.sbc_p[0] > 1e-3  # false-alarm rate 0.1 %
    assert "Left out, the same in all true starts: one" in str(found)


def test_observables_of_other_shapes():
    field = evaluate.default_observables(jnp.arange(24.0).reshape(4, 6))
    assert list(field) == ["mode 1, 0", "mode 0, 1", "patch mean", "maximum", "mean square"]
    np.testing.assert_allclose(field["patch mean"], np.mean([0, 1, 2, 6, 7, 8]))
    assert list(evaluate.default_observables(jnp.ones((1, 3)))) == [
        f"entry 0, {i}" for i in range(3)
    ]
    wave = jnp.cos(2 * math.pi * 4 * jnp.arange(16.0) / 16)
    np.testing.assert_allclose(
        evaluate.default_observables(wave)["mode 4"], math.sqrt(16) / 2, rtol=1e-5
    )


def test_bad_inputs(untyped):
    data = paths()
    few = jax.tree.map(lambda x: x[:7], (data.xs, data.args))
    few = smdp.Trajectories(TS, few[0], few[1], None, 0)
    same = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), data.xs)
    same = smdp.Trajectories(TS, same, data.args, None, 0)
    drawn = smdp.Posterior(jax.tree.map(lambda x: jnp.stack([x[:, 0]] * DRAWS, 1), data.xs), None)
    short = smdp.Posterior(jax.tree.map(lambda x: x[:, :3], drawn.samples), None)
    for given, options, message in [
        (few, {}, "test_paths must hold at least 20 held-out paths, .*, got 7"),
        (data, {"num_samples": 4}, "num_samples must be at least 9, got 4"),
        (data, {"num_samples": 0}, "num_samples must be at least 9, got 0"),
        (data, {"levels": (0.5, 1.2)}, r"levels must be in \[0, 1\], got"),
        (data, {"save": "all"}, r"must leave \['save'\] to the report"),
        (same, {"drawn": drawn}, "must start from states that differ"),
        (data, {"drawn": short}, "drawn must hold at least 9 draws per case, got 3"),
        (data, {"drawn": smdp.Posterior(data.xs["u"], None)}, "drawn.samples must have an axis"),
        (data, {"drawn": drawn, "observables": lambda x: x["v"]}, "observables must return"),
    ]:
        with pytest.raises(ValueError, match=message):
            report(given, **options)
    with pytest.raises(TypeError, match="test_paths must be Trajectories"):
        report(data.xs)
