"""Fields that move: an animated PNG, which all else shows as a still, a GIF, or a film."""

import io
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from smdp_jax.checks import check_choice, check_holds, check_shape
from smdp_jax.evaluate.plots import _style as style
from smdp_jax.evaluate.plots._style import ArrayND
from smdp_jax.evaluate.plots.pairs import samples_of


def field_animation(
    times: ArrayND | Sequence[float],
    fields: Mapping[str, ArrayND],
    *,
    solid: ArrayND | None = None,
    signed: bool = True,
    max_frames: int = 40,
    frame_seconds: float = 0.12,
    time_unit: str = "",
    dpi: int = 100,
    format: Literal["PNG", "GIF", "MP4"] = "PNG",
) -> bytes:
    """Show fields side by side as they move, on one colour scale.

    Parameters
    ----------
    times : array (times,) or sequence of float
        Time of each frame, in the order of showing: decreasing for a path back in time.
    fields : mapping of str to array
        Fields by title, shape (times, rows, columns), or (rows, columns) for one that stays.
    solid, signed : array, optional, bool
        Shape (rows, columns), true inside obstacles, whose outlines are drawn; whether white is
        zero, or the fields are positive.
    max_frames, frame_seconds : int, float
        At most this many of the times are shown, equally spaced, the last one always; how long
        each is shown, the last one ten times as long.
    time_unit, dpi
        Unit of the times, empty if dimensionless, and dots per inch.
    format : "PNG", "GIF" or "MP4"
        Of the file; a GIF has 256 colours, an MP4 needs ``pip install "smdp_jax[video]"``.

    Returns
    -------
    bytes
        The content of an animated picture file.

    Raises
    ------
    ImportError
        For an MP4, if ffmpeg is not installed.
    """
    times = style.array("times", np.asarray(times), 1)
    shown = _as_frames(times, fields)
    limit = style.robust_limit(*shown.values(), percent=99.8)
    colours = style.DIVERGING if signed else style.SEQUENTIAL
    outline = style.INK if signed else "white"  # either end of the colours is far from it
    scale = {"cmap": colours, "vmin": -limit if signed else 0.0, "vmax": limit}
    rows, columns = next(iter(shown.values())).shape[1:]
    with style.settings():
        figure = style.new_figure(1.9 * len(shown), 1.9 * rows / columns + 0.6)
        panels = figure.subplots(1, len(shown), squeeze=False)[0]
        images = []
        for axes, (title, frames) in zip(panels, shown.items(), strict=True):
            axes.set_axis_off()
            axes.set_title(title, fontsize=9, pad=4)
            images.append(axes.imshow(frames[0], origin="lower", **scale))
            if solid is not None:
                axes.contour(np.asarray(solid, float), [0.5], colors=outline, linewidths=0.9)
        clock = figure.suptitle("t", fontsize=9, color=style.SOFT)

        def draw(i: int) -> None:
            for image, frames in zip(images, shown.values(), strict=True):
                image.set_data(frames[i])
            clock.set_text(style.label(f"$t$ = {float(times[i]):.3g}", time_unit))

        return _film(figure, draw, len(times), max_frames, frame_seconds, dpi, format)


def posterior_animation(
    ts: ArrayND | Sequence[float],
    paths: Any,
    truth: ArrayND,
    *,
    points: ArrayND | None = None,
    max_paths: int = 30,
    signed: bool = True,
    field_unit: str = "",
    time_unit: str = "",
    **film: Any,
) -> bytes:
    """Show posterior paths of a field walk back in time, beside the truth and the end state.

    Parameters
    ----------
    ts : array (times,)
        Increasing times.
    paths : Posterior or array
        Of ``sample_posterior(save="all")``: shape (paths, times, points), drawn as lines over the
        truth, or (paths, times, rows, columns), three of them beside it.
    truth, points : array (times, *grid), array (points,), optional
        The path that was simulated, whose last state is what was observed; positions of a field on
        an interval, default their number.
    max_paths, signed : int, bool
        At most this many lines; of fields on two axes: white is zero.
    field_unit, time_unit : str
        Units; empty if dimensionless.
    **film
        ``max_frames``, ``frame_seconds``, ``dpi``, ``format``, as for `field_animation`.

    Returns
    -------
    bytes
        The content of an animated picture file, from the last time to the first.

    Raises
    ------
    ImportError, ValueError
        As `field_animation`, and for a state of several arrays.
    """
    ts = style.array("ts", np.asarray(ts), 1)
    states = samples_of(paths)
    if isinstance(states, Mapping):
        said = f"paths must be one array, such as past.samples[{next(iter(states))!r}]"
        raise ValueError(f"{said}, got a dict of {list(states)}")
    many = style.array("paths", states, (3, 4))
    truth = style.array("truth", truth, many.ndim - 1, (len(ts), *many.shape[2:]))
    many = style.array("paths", many, many.ndim, truth.shape)
    if many.ndim == 4:
        shown = {f"sample {i + 1}": path[::-1] for i, path in enumerate(many[:3])}
        fields = {"end state": truth[-1], **shown, "truth": truth[::-1]}
        return field_animation(ts[::-1], fields, signed=signed, time_unit=time_unit, **film)
    points = np.arange(many.shape[2]) if points is None else np.asarray(points)
    points = style.array("points", points, 1, many.shape[2:])
    finite = np.concatenate([truth.ravel(), many[np.isfinite(many)]])
    low, high = np.quantile(finite, [0.001, 0.999])
    margin = 0.08 * max(high - low, 1e-12)
    with style.settings():
        figure = style.new_figure(6.4, 3.6)
        axes = figure.subplots()
        axes.plot(points, truth[-1], color=style.SOFT, linestyle=":", label="end state")
        lines = style.sample_lines(axes, points, many[:max_paths, -1])
        (exact,) = axes.plot(points, truth[-1], color=style.EXACT, label="truth")
        axes.set_ylim(low - margin, high + margin)
        axes.margins(x=0)
        axes.set(xlabel="position", ylabel=style.label("field", field_unit))
        style.legend_below(figure, axes)

        def draw(i: int) -> None:
            for line, path in zip(lines, many, strict=False):
                line.set_ydata(path[::-1][i])
            exact.set_ydata(truth[::-1][i])
            axes.set_title(style.label(f"$t$ = {ts[::-1][i]:.3g}", time_unit))

        return _film(figure, draw, len(ts), **film)


def _film(
    figure: Figure,
    draw: Callable[[int], None],
    times: int,
    max_frames: int = 40,
    frame_seconds: float = 0.12,
    dpi: int = 100,
    format: str = "PNG",
) -> bytes:
    """Draw some of the times, and put them one after the other, the last one for longer."""
    check_choice("format", format, "PNG", "GIF", "MP4")
    ffmpeg = _encoder() if format == "MP4" else None
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    pictures = []
    for i in np.unique(np.linspace(0, times - 1, min(max_frames, times)).astype(int)).tolist():
        draw(i)
        canvas.draw()
        pictures.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    if ffmpeg is not None:
        return _mp4(ffmpeg, pictures, frame_seconds)
    milliseconds = round(1000 * frame_seconds)
    waits = [milliseconds] * (len(pictures) - 1) + [10 * milliseconds]
    how = {"save_all": True, "append_images": pictures[1:], "duration": waits, "loop": 0}
    buffer = io.BytesIO()
    pictures[0].save(buffer, format, **how)
    return buffer.getvalue()


def _encoder() -> str:
    """Where ffmpeg is: that of the package, or the machine's own."""
    try:
        from imageio_ffmpeg import get_ffmpeg_exe
    except ImportError as error:
        if found := shutil.which("ffmpeg"):
            return found
        remedy = 'pip install "smdp_jax[video]", or take format="GIF"'
        raise ImportError(f"MP4 needs ffmpeg, which is not installed: {remedy}") from error
    return get_ffmpeg_exe()


def _mp4(ffmpeg: str, pictures: list[Image.Image], frame_seconds: float) -> bytes:
    """A film that all browsers play: H.264, whose sides are even; the last picture stays."""
    width, height = (side // 2 * 2 for side in pictures[0].size)
    given = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    asked = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    frames = [p.crop((0, 0, width, height)).tobytes() for p in pictures]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "film.mp4"
        command = [ffmpeg, *given, "-r", f"{1 / frame_seconds:g}", "-i", "-", *asked, str(file)]
        raw = b"".join([*frames, *frames[-1:] * 9])
        subprocess.run(command, input=raw, check=True, capture_output=True)
        return file.read_bytes()


def _as_frames(times: np.ndarray, fields: Mapping[str, ArrayND]) -> dict[str, np.ndarray]:
    check_holds("fields", len(fields), 1, "field")
    shown = {name: style.array(name, values, (2, 3)) for name, values in fields.items()}
    shape = (len(times), *next(iter(shown.values())).shape[-2:])
    for name, values in shown.items():
        frames = values if values.ndim == 3 else np.broadcast_to(values, shape)
        check_shape(name, frames, shape)
        shown[name] = frames
    return shown
