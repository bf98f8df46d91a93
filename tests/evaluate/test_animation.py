"""Animated fields: the frames asked for, still playable, whatever the colours."""

import io

import numpy as np
import pytest
from PIL import Image

from smdp_jax.evaluate.plots import field_animation

TIMES = np.linspace(1.0, 0.0, 5)
MOVING = np.linspace(-1.0, 1.0, 5)[:, None, None] * np.ones((5, 8, 6))


def frames_of(png):
    picture = Image.open(io.BytesIO(png))
    assert picture.format == "PNG"
    frames = []
    for i in range(getattr(picture, "n_frames", 1)):
        picture.seek(i)
        frames.append(np.asarray(picture.convert("RGB")))
    return frames


def test_one_frame_per_time_and_fields_move():
    frames = frames_of(field_animation(TIMES, {"moves": MOVING, "stays": MOVING[0]}))
    assert len(frames) == 5
    left, right = np.array_split(np.abs(frames[-1].astype(int) - frames[0]), 2, axis=1)
    assert (left > 50).mean() > 0.2  # from dark blue to dark red
    assert (right[80:] > 0).sum() == 0  # below the clock nothing changes


def test_long_films_are_thinned_and_end_at_the_end():
    long = np.linspace(0.0, 1.0, 100)[:, None, None] * np.ones((100, 4, 4))
    png = field_animation(np.linspace(0, 1, 100), {"x": long}, max_frames=7, signed=False)
    assert len(frames_of(png)) == 7
    whole = field_animation([1.0], {"x": long[-1:]}, signed=False)
    np.testing.assert_array_equal(frames_of(png)[-1], frames_of(whole)[0])


def test_obstacles_are_outlined():
    solid = np.zeros((8, 6), bool)
    solid[2:5, 1:4] = True
    plain, drawn = (
        frames_of(field_animation(TIMES[:1], {"x": 0 * MOVING[:1]}, solid=mask))[0]
        for mask in (None, solid)
    )
    assert (plain != drawn).any()


@pytest.mark.parametrize(
    ("times", "fields", "message"),
    [
        ([], {"x": MOVING}, "times must not be empty"),
        (TIMES, {}, "one field"),
        (TIMES[:3], {"x": MOVING}, r"x must have shape \(3, 8, 6\), got \(5, 8, 6\)"),
        (TIMES, {"x": MOVING, "y": MOVING[:, :4]}, r"y must have shape \(5, 8, 6\)"),
    ],
)
def test_errors(times, fields, message):
    with pytest.raises(ValueError, match=message):
        field_animation(times, fields)
