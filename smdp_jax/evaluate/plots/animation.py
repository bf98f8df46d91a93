"""Fields that move: one animated PNG, which browsers play and everything else shows as a still."""

import io
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from smdp_jax.evaluate.plots import _style as style
from smdp_jax.evaluate.plots._style import ArrayND


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
) -> bytes:
    """Show fields side by side as they move, on one colour scale.

    Parameters
    ----------
    times : array (times,) or sequence of float
        Time of each frame, in the order of showing: decreasing for a path back in time.
    fields : mapping of str to array
        Fields by title, shape (times, rows, columns), or (rows, columns) for one that stays.
    solid : array, optional
        Shape (rows, columns), true inside obstacles, whose outlines are drawn.
    signed : bool
        True: white is zero. False: the fields are positive.
    max_frames : int
        At most this many of the times are shown, equally spaced, the last one always.
    frame_seconds : float
        How long each is shown; the last one ten times as long.
    time_unit : str
        Unit of the times; empty if dimensionless.
    dpi : int
        Dots per inch.

    Returns
    -------
    bytes
        An animated PNG.

    Raises
    ------
    ValueError
        If the shapes do not belong together, or there is nothing to show.
    """
    times = style.array("times", np.asarray(times), 1)
    shown = _as_frames(times, fields)
    chosen = np.unique(np.linspace(0, len(times) - 1, min(max_frames, len(times))).astype(int))
    limit = style.robust_limit(*shown.values(), percent=99.8)
    colours = style.DIVERGING if signed else style.SEQUENTIAL
    outline = style.INK if signed else "white"  # either end of the colours is far from it
    scale = {"cmap": colours, "vmin": -limit if signed else 0.0, "vmax": limit}
    rows, columns = next(iter(shown.values())).shape[1:]
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(style.RC)
        figure = style.new_figure(1.9 * len(shown), 1.9 * rows / columns + 0.6)
        canvas = FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(shown), squeeze=False)[0]
        images = []
        for axes, (title, frames) in zip(panels, shown.items(), strict=True):
            axes.set_axis_off()
            axes.set_title(title, fontsize=9, pad=4)
            images.append(axes.imshow(frames[0], origin="lower", **scale))
            if solid is not None:
                axes.contour(np.asarray(solid, float), [0.5], colors=outline, linewidths=0.9)
        clock = figure.suptitle("t", fontsize=9, color=style.SOFT)
        pictures = []
        for i in chosen:
            for image, frames in zip(images, shown.values(), strict=True):
                image.set_data(frames[i])
            clock.set_text(style.label(f"$t$ = {float(times[i]):.3g}", time_unit))
            figure.set_dpi(dpi)
            canvas.draw()
            pictures.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    return _animated(pictures, round(1000 * frame_seconds))


def _as_frames(times: np.ndarray, fields: Mapping[str, ArrayND]) -> dict[str, np.ndarray]:
    if not fields:
        raise ValueError("field_animation needs at least one field")
    shown = {name: style.array(name, values, (2, 3)) for name, values in fields.items()}
    shape = (len(times), *next(iter(shown.values())).shape[-2:])
    for name, values in shown.items():
        frames = values if values.ndim == 3 else np.broadcast_to(values, shape)
        style.same_shape(name, frames, shape)
        shown[name] = frames
    return shown


def _animated(pictures: list[Image.Image], milliseconds: int) -> bytes:
    buffer = io.BytesIO()
    waits = [milliseconds] * (len(pictures) - 1) + [10 * milliseconds]
    pictures[0].save(
        buffer,
        format="PNG",
        save_all=True,
        append_images=pictures[1:],
        duration=waits,
        loop=0,
    )
    return buffer.getvalue()
