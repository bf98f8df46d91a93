"""Numbers of parameters: SPEC's where it gives them, and those that follow from its layers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smdp_jax import models


def count(model, shapes, args=None):
    x = jax.tree.map(jnp.zeros, shapes, is_leaf=lambda s: isinstance(s, tuple))
    variables = jax.eval_shape(model.init, jax.random.key(0), 0.3, x, args)
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


def conv(before, after, cells):
    return before * after * cells + after


INNER = {"marker": (64, 64), "velocity_x": (63, 64), "velocity_y": (64, 63)}
FACES = {"marker": (64, 64), "velocity_x": (65, 64), "velocity_y": (64, 65)}
MASK = {"obstacles": np.zeros((64, 64), bool)}


def test_heat_encoder_decoder():
    # 331 thousand: first layer, ten blocks of two layers, the way through one channel, last layer.
    expected = conv(2, 32, 16) + 20 * conv(32, 32, 16) + conv(32, 1, 1) + conv(1, 32, 16)
    expected += conv(32, 1, 25)
    assert count(models.heat_encoder_decoder(), (32, 32)) == expected == 330754
    assert round(expected, -3) == 331000


def test_burgers_resnet():
    net = models.burgers_resnet()
    expected = conv(2 + 8, 32, 3) + 16 * conv(32, 32, 3) + conv(32, 1, 3)
    table = models.Spectrum(np.array([0.0, 1.0]), np.ones((2, 65)))
    wrapped = models.SpectralPreconditioned(net, table)
    assert count(wrapped, (128,)) == expected == 50753
    assert round(expected, -3) == 51000


def test_smoke_resnet():
    # Seen: marker, two velocities, mask, two coordinates, time.
    expected = conv(7, 48, 9) + 16 * conv(48, 48, 9) + conv(48, 3, 9)
    assert count(models.smoke_resnet(), INNER, MASK) == expected == 336915
    with_walls = conv(9, 48, 9) + 16 * conv(48, 48, 9) + conv(48, 5, 9)
    assert count(models.smoke_resnet(), FACES, MASK) == with_walls == 338645
    deeper = models.smoke_resnet(dilations=(1, 2, 4, 8, 4, 2, 1))
    assert count(deeper, INNER, MASK) == expected + 12 * conv(48, 48, 9)


def test_smoke_unet():
    def block(before, after):
        shortcut = conv(before, after, 1) if before != after else 0
        return conv(before, after, 9) + conv(after, after, 9) + conv(64, 2 * after, 1) + shortcut

    widths = [16, 32, 48, 64, 80, 96, 112]
    pairs = list(itertools.pairwise(widths))
    expected = conv(8, 64, 1) + conv(64, 64, 1) + conv(6, 16, 9) + conv(16, 3, 9)
    expected += block(16, 16) + sum(block(a, b) for a, b in pairs)
    expected += sum(conv(b, a, 1) + block(a, a) for a, b in pairs)
    assert count(models.smoke_unet(), INNER, MASK) == expected == 1169891


def test_baseline_fno():
    # Li et al.: lifting, four layers of 2 x 12 x 12 complex matrices and one real, projection.
    layer = 2 * 2 * 12 * 12 * 20 * 20 + conv(20, 20, 1)
    expected = conv(1 + 2 + 1, 20, 1) + 4 * layer + conv(20, 128, 1) + conv(128, 1, 1)
    assert count(models.baseline_fno(), (64, 64)) == expected == 926197


@pytest.mark.parametrize(
    ("make", "option", "value"),
    [
        (models.heat_encoder_decoder, "channels", 8),
        (models.burgers_resnet, "blocks", 2),
        (models.smoke_resnet, "padding", "reflect"),
        (models.smoke_unet, "channels", (16, 32)),
        (models.baseline_fno, "modes", 6),
    ],
)
def test_options_can_be_replaced(make, option, value):
    assert getattr(make(**{option: value}), option) == value
    assert make() == make()
