"""Paths of unequal lengths and with missing times: learned from what was seen, and that alone."""

from dataclasses import replace

import diffrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import smdp_jax as smdp

pytestmark = pytest.mark.usefixtures("compiles_quickly")

KEY = jax.random.key(3)
TS = jnp.linspace(0.0, 1.2, 7)
STEP, NOISE, PATHS = 0.2, 0.6, 48


class Slope(nn.Module):
    """s = -a x: the losses are squares in a."""

    @nn.compact
    def __call__(self, t, x, args):
        return -self.param("a", nn.initializers.constant(1.0), ()) * x


def paths(spoiled=jnp.nan):
    """An Ornstein-Uhlenbeck process that ends early on some paths, begins late or has holes."""
    sde = smdp.SDE(lambda t, x, args: -0.5 * x, diffusion=NOISE)
    x0 = 1.5 * jax.random.normal(KEY, (PATHS, 2))
    data = smdp.simulate(sde, x0, TS, key=KEY, score_targets=smdp.PowerRamp())
    lengths = np.arange(PATHS) % 6 + 2
    mask = np.arange(7) < lengths[:, None]
    mask[::5] = mask[::5, ::-1]
    mask[3::7, 2] = False
    hide = lambda x: jnp.where(mask[..., None], x, spoiled)
    hidden = smdp.Trajectories(TS, hide(data.xs), score_targets=hide(data.score_targets), mask=mask)
    return sde, hidden, mask, np.asarray(data.xs), np.asarray(data.score_targets)


def loss_by_hand(objective, a, mask, xs, targets):
    """Mean over what was seen whole, and its derivative in a, by numpy."""
    if isinstance(objective, smdp.PathScore):
        chosen = [(s, i) for s, i in np.argwhere(mask) if i > 0]
        x, target = (np.stack([v[c] for c in chosen]) for v in (xs, targets))
        squares = [np.mean(targets[mask[:, i], i] ** 2) for _, i in chosen]
        missed, scale = -a * x - target, np.reshape(squares, (-1, 1))
        return np.mean(missed**2 / scale), np.mean(-2 * x * missed / scale)
    # x_i = x - [P - g^2 s] dt, by Euler's step back; the miss is over the noise of a step.
    chosen = np.argwhere(mask[:, :-1] & mask[:, 1:])
    x, early = (np.stack([xs[s, i + k] for s, i in chosen]) for k in (1, 0))
    missed = x - (-0.5 * x + NOISE**2 * a * x) * STEP - early
    scale = NOISE**2 * STEP
    return np.mean(missed**2) / scale, np.mean(-2 * NOISE**2 * STEP * x * missed) / scale


OBJECTIVES = [smdp.OneStep(solver=diffrax.Euler()), smdp.PathScore()]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=["one step", "path score"])
def test_losses_are_means_over_what_was_seen(objective):
    """Against sums by hand, with nothing but NaN in the gaps."""
    sde, data, mask, xs, targets = paths()
    training, state = smdp.training.prepare(
        sde, Slope(), data, objective, optax.sgd(0.1), batch_size=4096, precondition=False, key=KEY
    )
    gradients = jax.vmap(lambda n: training.gradient(state.params, data, KEY, n))
    losses, slopes = jax.jit(gradients)(jnp.arange(16))
    values = loss_by_hand(objective, 1.0, mask, xs, targets)
    for found, value in zip((losses, slopes["a"]), values, strict=True):
        error = found.std(ddof=1) / np.sqrt(len(found))
        # Six standard errors of 16 batches: by Student's t, once in 40 000 runs for each.
        assert abs(found.mean() - value) < 6 * error, (found.mean(), value)
        assert error < 0.05 * abs(value)


@pytest.mark.slow
def test_what_fills_the_gaps_does_not_matter():
    """Training, its validation and its miss are the same bits, whatever is there."""
    fits = []
    for spoiled in (jnp.nan, 1e30):
        sde, data, *_ = paths(spoiled)
        fits.append(
            smdp.fit(
                sde,
                smdp.models.MLP((4,)),
                data,
                smdp.MultiStep((1, 2)),
                steps=4,
                batch_size=8,
                epoch_steps=2,
                key=KEY,
                validation=data[:16],
                progress=False,
            )
        )
    one, other = ((f.learned.variables, f.history, f.step_miss) for f in fits)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(a).all()


@pytest.mark.parametrize(
    ("mask", "objective", "message"),
    [
        (np.ones((48, 6), bool), None, r"mask must be bool \(samples, times\)=\(48, 7\)"),
        (np.ones((48, 7)), None, r"mask must be bool .* got float"),
        (np.arange(48)[:, None] + np.zeros(7, int) != 5, None, "got none in sample 5"),
        (np.tile(np.arange(7) % 2 == 0, (48, 1)), smdp.OneStep(), "windows of 2 successive states"),
        (np.tile(np.arange(7) < 4, (48, 1)), smdp.MultiStep((1, 4)), "windows of 5 successive"),
        (np.tile(np.arange(7) < 4, (48, 1)), None, "BackwardKernel must have whole paths"),
    ],
)
def test_masks_that_do_not_fit(mask, objective, message):
    sde, data, *_ = paths(0.0)
    data = replace(data, mask=mask)
    with pytest.raises(ValueError, match=message):
        smdp.fit(sde, smdp.models.MLP((4,)), data, objective, steps=2, key=KEY, progress=False)


def test_only_fit_honours_a_mask():
    sde, data, *_ = paths()
    with pytest.raises(ValueError, match="must be whole here, got 41 of 48 with missing states"):
        smdp.calibration_report(sde, lambda t, x, args: -x, data, key=KEY)
    assert data[data.mask.all(axis=1)].num_samples == 7
    with pytest.raises(ValueError, match=r"xs is not finite in \d+ of 48 samples"):
        replace(data, mask=np.ones_like(data.mask)).check()


def test_masks_are_stored(tmp_path):
    _, data, *_ = paths(0.0)
    path = smdp.datasets.write(tmp_path / "x.zarr", lambda k: data, chunks=2, key=KEY)
    back = smdp.datasets.open_trajectories(path)
    np.testing.assert_array_equal(back.mask, np.concatenate([data.mask] * 2))
    np.testing.assert_array_equal(back.xs[:48], data.xs)


class SlopeByLabel(nn.Module):
    @nn.compact
    def __call__(self, t, x, args):
        assert jnp.issubdtype(args.dtype, jnp.integer)
        return -self.param("a", nn.initializers.ones, (3,))[args] * x


@pytest.mark.slow
def test_labels_as_conditions():
    """Whole numbers as args, of simulator and network: each stationary process has its score."""
    rates, noise, count = jnp.array([0.5, 1.0, 2.0]), 0.5, 3000
    sde = smdp.SDE(lambda t, x, args: -rates[args] * x, diffusion=noise)
    labels, inverse = jnp.arange(count) % 3, 2 * rates / noise**2
    x0 = jax.random.normal(KEY, (count, 4)) / jnp.sqrt(inverse[labels])[:, None]
    ts = smdp.linear_grid(0.0, 2.0, 8)
    data = smdp.simulate(
        sde, x0, ts, key=KEY, args=labels, args_axes=0, substeps=4, score_targets=True
    )
    fit = smdp.fit(
        sde,
        SlopeByLabel(),
        data,
        smdp.PathScore(),
        optax.adam(optax.cosine_decay_schedule(0.3, 300)),
        precondition=False,
        ema=0.9,
        steps=300,
        key=KEY,
        progress=False,
    )
    # 1000 paths of 4 entries for each: their mean squares alone are off by 2 % at one time.
    np.testing.assert_allclose(fit.score.variables["params"]["a"], inverse, rtol=0.08)
