"""Figures of fields on an interval: what was, what is observed, what may have been."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from smdp_jax.evaluate.plots import _style as style
from smdp_jax.evaluate.plots._style import ArrayND


@style.styled
def profiles(
    points: ArrayND,
    truth: ArrayND,
    end_state: ArrayND,
    samples: ArrayND,
    sample_ends: ArrayND,
    flow: ArrayND | None = None,
    *,
    field_unit: str = "",
) -> Figure:
    """Left: initial states; right: end states, observed and simulated from the samples.

    Parameters
    ----------
    points, truth, end_state : array (points,)
        Positions; true initial state and observed end state, in units of the field.
    samples, sample_ends : array (samples, points)
        Posterior samples of the initial state, and where the noise-free simulator takes them.
    flow, field_unit : array (points,), optional, str
        Initial state that the probability flow leads to; unit of the field, empty if dimensionless.

    Returns
    -------
    Figure
        Two panels.
    """
    points = style.array("points", points, 1)
    samples = style.array("samples", samples, 2, points.shape)
    sample_ends = style.array("sample_ends", sample_ends, 2, samples.shape)
    truth = style.array("truth", truth, 1, points.shape)
    end_state = style.array("end_state", end_state, 1, points.shape)
    figure = style.new_figure(9.0, 3.3)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, many, exact, title in (
        (left, samples, truth, "Initial state"),
        (right, sample_ends, end_state, "End state"),
    ):
        style.sample_lines(axes, points, many)
        axes.plot(points, exact, color=style.EXACT, label="true / observed")
        axes.set(title=title, xlabel="position")
        axes.grid(True)
        axes.margins(x=0)
    # A flow that has left the data must not hide the rest.
    bounds = np.concatenate([truth, end_state, samples.ravel()])
    bounds = bounds[np.isfinite(bounds)]
    margin = 0.15 * max(float(np.ptp(bounds)), 1e-12)
    low, high = bounds.min() - margin, bounds.max() + margin
    left.set_ylim(low, high)
    if flow is not None:
        flow = style.array("flow", flow, 1, points.shape)
        seen = np.any((low <= flow) & (flow <= high))
        name = "flow (ODE)" if seen else "flow (ODE), beyond this range"
        left.plot(points, flow, color=style.FLOW, linestyle="--", label=name)
    left.set_ylabel(style.label("field", field_unit))
    style.legend_below(figure, left)
    return figure


@style.styled
def sensor_profiles(
    points: ArrayND,
    truth: ArrayND,
    end_state: ArrayND,
    sensors: ArrayND,
    readings: ArrayND,
    samples: Mapping[str, ArrayND],
    *,
    reading_error: float = 0.0,
    field_unit: str = "",
) -> Figure:
    """Left: an end state and what sensors showed of it; then initial states, as told by each.

    Parameters
    ----------
    points, truth, end_state
        As for `profiles`.
    sensors, readings : array (sensors,)
        Positions of the sensors, and what they showed of the end state.
    samples : dict of arrays (samples, points)
        Posterior samples of the initial state, by what was seen.
    reading_error, field_unit
        Standard deviation of the readings' noise; unit of the field, empty if dimensionless.

    Returns
    -------
    Figure
        One panel more than there are sets of samples.
    """
    points, sensors = style.array("points", points, 1), style.array("sensors", sensors, 1)
    truth = style.array("truth", truth, 1, points.shape)
    end_state = style.array("end_state", end_state, 1, points.shape)
    readings = style.array("readings", readings, 1, sensors.shape)
    figure = style.new_figure(3.2 * (1 + len(samples)) + 0.6, 3.3)
    first, *others = figure.subplots(1, 1 + len(samples), sharey=True)
    first.plot(points, end_state, color=style.EXACT, label="true")
    first.errorbar(
        sensors, readings, 2 * reading_error, fmt="o", color=style.FLOW, markersize=4,
        label="sensors, ± 2 std",
    )  # fmt: skip
    first.set(title="End state", ylabel=style.label("field", field_unit))
    for axes, (name, many) in zip(others, samples.items(), strict=True):
        drawn = style.array(name, many, 2, (None, points.size))
        style.sample_lines(axes, points, drawn)
        axes.plot(points, truth, color=style.EXACT, label="true")
        axes.set_title(f"Initial state, {name}")
    for axes in (first, *others):
        axes.set_xlabel("position")
        axes.grid(True)
        style.legend(axes)
        axes.margins(x=0)
    return figure


@style.styled
def space_time(
    ts: ArrayND,
    points: ArrayND,
    truth: ArrayND,
    samples: ArrayND,
    *,
    max_samples: int = 2,
    time_unit: str = "",
) -> Figure:
    """Fields over position and time: the true path and backward paths from its end state.

    Parameters
    ----------
    ts, points : array (times,), (points,)
        Increasing times, and positions.
    truth, samples : array (times, points), (samples, times, points)
        The simulated path, and backward paths, ordered like ``ts``.
    max_samples, time_unit
        At most this many are shown; unit of the times, empty if dimensionless.

    Returns
    -------
    Figure
        One image per path, on one colour scale.
    """
    ts, points = style.array("ts", ts, 1), style.array("points", points, 1)
    truth = style.array("truth", truth, 2, (ts.size, points.size))
    samples = style.array("samples", samples, 3, (None, *truth.shape))[:max_samples]
    shown = [("True path", truth)]
    shown += [(f"Backward path {i + 1}", sample) for i, sample in enumerate(samples)]
    limit = style.robust_limit(truth, percent=99.8)
    figure = style.new_figure(2.9 * len(shown) + 0.6, 3.1)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    scale = {"cmap": style.DIVERGING, "vmin": -limit, "vmax": limit, "shading": "nearest"}
    images = []
    for axes, (title, values) in zip(panels, shown, strict=True):
        images.append(axes.pcolormesh(points, ts, values, **scale))
        axes.set(title=title, xlabel="position")
    panels[0].set_ylabel(style.label("time $t$", time_unit))
    style.colour_bar(figure, images[0], panels, "field", aspect=25, pad=0.015, extend="both")
    return figure
