"""Figures of training: the loss over steps, and how well one step back is learned."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smdp_jax.checks import check_holds
from smdp_jax.evaluate.plots import _style as style
from smdp_jax.evaluate.plots._style import ArrayND


def _smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Running mean over the finite values of a centred window that shrinks at the ends."""
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(values.size)
    low = np.maximum(index - width // 2, 0)
    high = np.minimum(index + width // 2 + 1, values.size)
    number = counts[high] - counts[low]
    return np.where(number > 0, (sums[high] - sums[low]) / np.maximum(number, 1), np.nan)


def _mark_windows(axes: Axes, steps: np.ndarray, windows: np.ndarray) -> None:
    """A line wherever the window changes, and its length where one of two rows has room for it."""
    to_fraction = axes.transData + axes.transAxes.inverted()
    taken = [-1.0, -1.0]
    windows, steps = windows[np.isfinite(windows)], steps[np.isfinite(windows)]
    if not windows.size:
        return
    for index in np.concatenate([[0], np.flatnonzero(np.diff(windows) != 0) + 1]):
        step = float(steps[index])
        if index:
            axes.axvline(step, color=style.PALE, linewidth=0.9, linestyle="--", zorder=0)
        place = float(to_fraction.transform((step, 1.0))[0])
        row = next((row for row in (0, 1) if place - taken[row] > 0.09), None)
        if row is None:
            continue
        taken[row] = place
        style.note(axes, f"S = {windows[index]:g}", step, 1.0, 12 - 14 * row, va="top")


def _draw_losses(
    axes: Axes, history: Mapping[str, ArrayND], loss: np.ndarray, steps: np.ndarray
) -> np.ndarray:
    """Draw both losses; returns all their finite values."""
    width = max(1, loss.size // 50)
    curves = [loss]
    if width > 1:
        axes.plot(steps, loss, color=style.PALE, linewidth=0.6, label="training loss")
    name = "training loss, running mean" if width > 1 else "training loss"
    axes.plot(steps, _smoothed(loss, width), color=style.LEARNED, label=name)
    if "validation_loss" in history:
        held_out = style.array("validation_loss", history["validation_loss"], 1)
        given = history.get("validation_step", steps)
        at = style.array("validation_step", given, 1, held_out.shape)
        measured = np.isfinite(held_out)
        if measured.any():
            look = {"color": style.FLOW, "linestyle": style.DASHES[1], "markersize": 3.5}
            look["marker"] = "o" if measured.sum() <= 60 else ""
            look["label"] = "validation loss (averaged parameters)"
            axes.plot(at[measured], held_out[measured], **look)
            curves.append(held_out)
    return np.concatenate([curve[np.isfinite(curve)] for curve in curves])


@style.styled
def training_curve(
    history: Mapping[str, ArrayND], *, log_steps: bool = False, target: float | None = None
) -> Figure:
    """Training loss, validation loss of the averaged parameters, and changes of the window.

    Axes are logarithmic where all losses are positive (those of implicit score matching are not).

    Parameters
    ----------
    history : mapping of str to array
        Arrays by name, as in ``Fit.history``. "loss", shape (records,), is required. Optional:
        "step" of each record (default 1, 2, ...); "validation_loss" with its "validation_step"
        (default: those of the records), where NaN stands for not measured; "window", the length S
        at each record, NaN for none.
    log_steps, target : bool, float or None
        Whether the step axis is logarithmic too; loss at the optimum, drawn as a line: 1 for losses
        divided by g^2 dt.

    Returns
    -------
    Figure
        One panel: raw loss pale, its running mean over 2 % of the records solid.

    Raises
    ------
    ValueError
        If "loss" is missing or the shapes do not belong together.
    """
    if "loss" not in history:
        raise ValueError(f'history needs "loss", got {sorted(history)}')
    loss = style.array("loss", history["loss"], 1)
    steps = style.array("step", history.get("step", np.arange(1, loss.size + 1)), 1, loss.shape)
    figure = style.new_figure(6.4, 3.6)
    axes = figure.subplots()
    finite = _draw_losses(axes, history, loss, steps)
    if target is not None:
        style.guide(axes, target, "optimum")
    if finite.size and finite.min() > 0:
        style.log_y(axes, finite)
    if log_steps:
        axes.set_xscale("log")
    axes.margins(x=0.01)
    if "window" in history:
        _mark_windows(axes, steps, style.array("window", history["window"], 1, loss.shape))
    axes.set(xlabel="optimiser step", ylabel="loss (dimensionless)")
    axes.grid(True)
    style.legend_below(figure, axes, columns=2)
    return figure


@style.styled
def step_miss(ts: ArrayND, miss: ArrayND | Mapping[str, ArrayND], *, time_unit: str = "") -> Figure:
    """Squared miss of one backward step over its noise variance, by time; 1 is the optimum.

    E |x_i - D(x_{i+1})|^2 / (g^2 dt) per entry: above 1 the step is not learned there. Below 1 it
    fits the very paths it is measured on.

    Parameters
    ----------
    ts, miss : array, array or mapping of str to array
        Increasing times, and the ratio or several by name, such as bands of modes: shape (times,).
    time_unit : str
        Unit for the axis; empty if dimensionless.

    Returns
    -------
    Figure
        One panel with a line at 1.

    Raises
    ------
    ValueError
        If the shapes do not belong together, or there is nothing to draw.
    """
    ts = style.array("ts", ts, 1)
    series = miss if isinstance(miss, Mapping) else {"": miss}
    check_holds("miss", len(series), 1, "array")
    figure = style.new_figure(6.0, 3.4)
    axes = figure.subplots()
    for index, (name, given) in enumerate(series.items()):
        values = style.array(name or "miss", given, 1, ts.shape)
        axes.plot(ts, values, label=name, **style.series(index))
    style.guide(axes, 1, "optimum")
    drawn = np.concatenate([np.ravel(line.get_ydata()) for line in axes.get_lines()])
    style.log_y(axes, drawn[np.isfinite(drawn) & (drawn > 0)])
    axes.set(xlabel=style.label("time $t$", time_unit), ylabel="squared miss / noise variance")
    axes.margins(x=0.01)
    axes.grid(True, axis="y")
    style.legend_below(figure, axes)
    return figure
