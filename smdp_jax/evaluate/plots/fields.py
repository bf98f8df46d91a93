"""Figures of fields: images on shared colour scales, and spectra."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from smdp_jax.checks import check_holds, check_positive
from smdp_jax.evaluate.plots import _style as style
from smdp_jax.evaluate.plots._style import ArrayND


def _image(axes: Axes, field: np.ndarray, title: str, **scale: Any) -> AxesImage:
    """One field without ticks, first row at the bottom."""
    axes.set_title(title, fontsize=9.5, pad=4)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return axes.imshow(field, origin="lower", **scale)


@style.styled
def field_panel(
    truth: ArrayND,
    end_state: ArrayND,
    samples: ArrayND,
    mean: ArrayND,
    std: ArrayND,
    exact_mean: ArrayND | None = None,
    exact_std: ArrayND | None = None,
    *,
    max_samples: int = 3,
    field_unit: str = "",
) -> Figure:
    """Truth, observation, posterior samples; below their mean and spread beside the exact ones.

    Parameters
    ----------
    truth, end_state : array
        True initial field and observed end state, shape (rows, columns), in units of the field.
    samples : array
        Posterior samples, shape (samples, rows, columns).
    mean, std, exact_mean, exact_std : array
        Mean and standard deviation of the samples, shape (rows, columns), and the same in closed
        form, where it is known.
    max_samples, field_unit
        At most this many samples are shown; unit for the colour bars, empty if dimensionless.

    Returns
    -------
    Figure
        Two rows of images. All fields share one colour scale and all spreads another.

    Raises
    ------
    ValueError
        If the shapes do not belong together or ``max_samples`` is not positive.
    """
    check_positive(max_samples=max_samples)
    truth = style.array("truth", truth, 2)
    samples = style.array("samples", samples, 3, (None, *truth.shape))[:max_samples]
    fit = lambda values, title: (style.array(title.lower(), values, 2, truth.shape), title)
    top = [(truth, "True initial state"), fit(end_state, "Observed end state")]
    top += [(sample, f"Sample {index + 1}") for index, sample in enumerate(samples)]
    means, spreads = [fit(mean, "Mean of samples")], [fit(std, "Std of samples")]
    means += [] if exact_mean is None else [fit(exact_mean, "Exact mean")]
    spreads += [] if exact_std is None else [fit(exact_std, "Exact std")]
    means.append((np.asarray(mean) - truth, "Mean − true"))
    limit = style.robust_limit(*(values for values, _ in top + means), percent=99.8)
    largest = style.robust_limit(*(values for values, _ in spreads), percent=99.8)
    return _two_rows(top, means, spreads, limit, largest, field_unit)


Titled = list[tuple[np.ndarray, str]]


def _two_rows(
    top: Titled, means: Titled, spreads: Titled, limit: float, largest: float, unit: str
) -> Figure:
    """Signed fields above; below, signed ones from the left and positive ones up to the right."""
    columns = max(len(top), len(means) + len(spreads))
    rows, places = top[0][0].shape
    figure = style.new_figure(1.85 * columns + 1.3, 2 * (1.75 * rows / places + 0.35))
    panels = figure.subplots(2, columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    signed = {"cmap": style.DIVERGING, "vmin": -limit, "vmax": limit}
    positive = {"cmap": style.SEQUENTIAL, "vmin": 0.0, "vmax": largest}
    images = [_image(axes, *item, **signed) for axes, item in zip(panels[0], top, strict=False)]
    for axes, item in zip(panels[1], means, strict=False):
        _image(axes, *item, **signed)
    for axes, item in zip(panels[1][-len(spreads) :], spreads, strict=True):
        images.append(_image(axes, *item, **positive))
    bars = (panels[0], images[0], "field", "both"), (panels[1], images[-1], "std", "max")
    for row, image, name, extend in bars:
        look = {"aspect": 18, "pad": 0.015, "extend": extend}
        style.colour_bar(figure, image, row, style.label(name, unit), **look)
    return figure


@style.styled
def power_spectra(
    wavenumbers: ArrayND,
    spectra: Mapping[str, ArrayND],
    *,
    truth: str = "truth",
    kmax: int | None = None,
    power_unit: str = "",
) -> Figure:
    """Power over wavenumber on logarithmic axes.

    Parameters
    ----------
    wavenumbers : array
        Shells, shape (shells,), in periods per box; shell 0 has no place on the axis.
    spectra, truth : mapping of str to array, str
        Power by name, shape (shells,), or (samples, shells): then the median and the band that
        holds 90 % of the samples; name of the one that is drawn as the exact one.
    kmax, power_unit
        Last shell that a spectral error counts, to be marked; unit of the power, empty if
        dimensionless.

    Returns
    -------
    Figure
        One panel.

    Raises
    ------
    ValueError
        If the shapes do not belong together, or there is nothing to draw.
    """
    ks = style.array("wavenumbers", wavenumbers, 1)
    check_holds("spectra", len(spectra), 1, "spectrum")
    shown = ks > 0
    check_holds("wavenumbers", int(shown.sum()), 1, "positive one")
    figure = style.new_figure(5.6, 3.8)
    axes = figure.subplots()
    others = [name for name in spectra if name != truth]
    for name, given in spectra.items():
        values = style.array(name, given, (1, 2), ks.shape)
        cycle = others.index(name) % len(style.SERIES) if name in others else 0
        color = style.SERIES[cycle] if name in others else style.EXACT
        dash = style.DASHES[(cycle + 1) % len(style.DASHES)] if name in others else "-"
        middle = values = values[..., shown]
        if values.ndim == 2:
            low, middle, high = np.percentile(values, [5, 50, 95], axis=0)
            axes.fill_between(ks[shown], low, high, color=color, alpha=0.15, linewidth=0)
        axes.plot(ks[shown], middle, color=color, linestyle=dash, label=name)
    if kmax is not None:
        axes.axvline(kmax, color=style.SOFT, linewidth=0.9, linestyle=":")
        style.note(axes, f"k = {kmax}", kmax, 0.0, 4)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(yscale="log", xlabel="wavenumber $k$ [periods per box]")
    axes.set(ylabel=style.label("power $E(k)$", power_unit))
    axes.margins(x=0.02)
    axes.grid(True)
    style.legend(axes, loc="lower left")
    return figure
