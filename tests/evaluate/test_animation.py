"""Animated fields: the frames asked for, still playable, whatever the colours."""

import io
import subprocess
import sys

import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image

from smdp_jax.evaluate.plots import field_animation, posterior_animation

TIMES = np.linspace(1.0, 0.0, 5)
MOVING = np.linspace(-1.0, 1.0, 5)[:, None, None] * np.ones((5, 8, 6))


def frames_of(png, kind="PNG"):
    picture = Image.open(io.BytesIO(png))
    assert picture.format == kind
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


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
@pytest.mark.parametrize("grid", [(12,), (6, 8)])
def test_paths_walk_back_beside_the_truth(grid, kind):
    """The first frame is the end state, where all are one; then samples and truth part."""
    ts, waves = np.linspace(0.0, 1.0, 4), np.linspace(-1, 1, int(np.prod(grid))).reshape(grid)
    truth = np.stack([(1 + t) * waves for t in ts])
    paths = np.stack([truth + (1 - ts.reshape(-1, *(1,) * len(grid))) * i for i in range(3)])
    options = {"format": kind, "dpi": 60}
    frames = frames_of(posterior_animation(ts, paths, truth, **options), kind)
    assert len(frames) == 4
    still = frames_of(posterior_animation(ts, paths[:, :, ...] * 0 + truth, truth, **options), kind)
    changes = [(a.astype(int) != b).mean() for a, b in zip(frames, still, strict=True)]
    assert changes[-1] > 0.02
    if kind == "PNG" and len(grid) == 1:
        assert (frames[0].astype(int) != frames[-1]).mean() > 0.02


def test_films_are_played_back(tmp_path, monkeypatch):
    """Every frame, the last one tenfold, as the pictures are but for what H.264 loses."""
    options = {"dpi": 60, "frame_seconds": 0.25}
    film = tmp_path / "a.mp4"
    film.write_bytes(field_animation(TIMES, {"moves": MOVING}, format="MP4", **options))
    still = frames_of(field_animation(TIMES, {"moves": MOVING}, **options))
    decoded = ["-i", str(film), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    played = subprocess.run([get_ffmpeg_exe(), *decoded], capture_output=True, check=True)
    assert b" 4 fps" in played.stderr
    height, width = (side // 2 * 2 for side in still[0].shape[:2])
    frames = np.frombuffer(played.stdout, np.uint8).reshape(-1, height, width, 3)
    assert len(frames) == 5 + 9
    for i in (0, 2, 4, 13):
        error = frames[i].astype(int) - still[min(i, 4)][:height, :width]
        assert np.abs(error).mean() < 6
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImportError, match=r'pip install "smdp_jax\[video\]", or take format="GIF"'):
        field_animation(TIMES, {"moves": MOVING}, format="MP4")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"truth": MOVING[:, 0]}, "paths must have shape|truth must have"),
        ({"ts": TIMES[:3]}, r"truth must have shape \(3, 8, 6\)"),
        ({"paths": MOVING[0]}, "paths must have 3 or 4 axes"),
        ({"paths": {"u": MOVING[None]}}, r"one array, such as past.samples\['u'\], got a dict of"),
        ({"format": "AVI"}, "format must be one of .*'MP4'.*, got 'AVI'"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_paths_that_do_not_fit(changes, message):
    given = {"ts": TIMES[::-1], "paths": MOVING[None], "truth": MOVING} | changes
    with pytest.raises(ValueError, match=message):
        posterior_animation(**given)


@pytest.mark.parametrize(
    ("times", "fields", "message"),
    [
        ([], {"x": MOVING}, "times must hold at least 1 number, got 0"),
        (TIMES, {}, "at least 1 field"),
        (TIMES[:3], {"x": MOVING}, r"x must have shape \(3, 8, 6\), got \(5, 8, 6\)"),
        (TIMES, {"x": MOVING, "y": MOVING[:, :4]}, r"y must have shape \(5, 8, 6\)"),
    ],
)
def test_errors(times, fields, message):
    with pytest.raises(ValueError, match=message):
        field_animation(times, fields)
