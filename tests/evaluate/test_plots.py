"""Figures: the drawn data are those given, nothing overlaps, and no global state is touched."""

import itertools
from types import SimpleNamespace

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Text

import smdp_jax as smdp
from smdp_jax import Conditioned
from smdp_jax.evaluate import plots
from smdp_jax.evaluate._html_parts import figure_png

RNG = np.random.default_rng(0)
TS = np.linspace(0.02, 10, 60)
XS = np.linspace(-1.25, 1.25, 50)
DENSITY = np.exp(-((XS[None] / (0.1 + 0.05 * TS[:, None])) ** 2))
EXACT = -XS[None] / (0.1 + 0.05 * TS[:, None]) ** 2
PATHS = np.cumsum(RNG.normal(size=(40, 60)), axis=1)
LOSS = (1 + 20 * np.exp(-np.arange(600) / 60)) * np.exp(0.3 * RNG.normal(size=600))
HISTORY = {
    "loss": LOSS,
    "step": np.arange(1, 601) * 5,
    "validation_loss": np.where(np.arange(600) % 100 == 99, LOSS, np.nan),
    "window": np.repeat(np.arange(2, 24, 2)[:10], 60),
}
FIELDS = RNG.normal(size=(4, 16, 16))
KS = np.arange(9)
STATES = {"marker": RNG.normal(size=(400, 2)), "wind": 3 + RNG.normal(size=400)}
ONE = {"marker": np.zeros(2), "wind": np.array(3.0)}
PAST = smdp.Posterior(STATES, None)
SPECTRUM = 1.0 / (1 + KS) ** 3
LEVELS = np.linspace(0, 1, 21)
PADDED = np.where(np.arange(9) < 5, np.geomspace(0.01, 1, 9), np.nan) * np.ones((3, 1))

FIGURES = {
    "score_field": lambda: plots.score_field(TS, XS, 1.1 * EXACT, EXACT, density=DENSITY),
    "score_field in units": lambda: plots.score_field(
        TS, XS, 1.1 * EXACT, EXACT, time_unit="s", state_unit="m/s"
    ),
    "trajectories": lambda: plots.trajectories(TS, PATHS, PATHS - 1, flow=PATHS[:5]),
    "posterior_histogram": lambda: plots.posterior_histogram(PATHS[:, :1], XS, DENSITY[0]),
    "posterior_probability": lambda: plots.posterior_probability(
        XS, 1 / (1 + np.exp(-XS)), 1 / (1 + np.exp(-XS)), num_samples=100
    ),
    "training_curve": lambda: plots.training_curve(HISTORY, target=1.0),
    "training_curve with log steps": lambda: plots.training_curve(HISTORY, log_steps=True),
    "training_curve of negative losses": lambda: plots.training_curve({"loss": LOSS - 5}),
    "step_miss": lambda: plots.step_miss(TS, 1 + np.exp(-TS)),
    "step_miss of bands": lambda: plots.step_miss(TS, {"low": 1 + 20 / TS, "high": 1 + 1 / TS}),
    "field_panel": lambda: plots.field_panel(
        *FIELDS[:2], FIELDS, FIELDS.mean(0), FIELDS.std(0), FIELDS[2], np.ones((16, 16))
    ),
    "field_panel without exact": lambda: plots.field_panel(
        *FIELDS[:2, :8], FIELDS[:1, :8], FIELDS.mean(0)[:8], FIELDS.std(0)[:8], field_unit="K"
    ),
    "particles": lambda: plots.particles(
        TS,
        100 - 9 * TS,
        np.arange(59) % 20 == 7,
        *PADDED,
        num_particles=100,
        log_evidence=-12.3,
        log_evidence_error=0.12,
    ),
    "sensor_profiles": lambda: plots.sensor_profiles(
        TS,
        PATHS[0],
        PATHS[1],
        TS[::20],
        PATHS[1, ::20],
        {"one time": PATHS, "three": PATHS[:5]},
        reading_error=0.3,
    ),
    "power_spectra": lambda: plots.power_spectra(
        KS,
        {"truth": SPECTRUM, "samples": SPECTRUM * RNG.uniform(0.5, 2, (20, 9)), "mean": SPECTRUM},
        kmax=6,
    ),
    "coverage_curve": lambda: plots.coverage_curve(
        LEVELS, {"SDE": LEVELS, "narrow": LEVELS**1.5}, num_cases=200
    ),
    "histograms": lambda: plots.histograms(PAST, ONE, STATES),
    "histograms of a field": lambda: plots.histograms(FIELDS.reshape(4, -1)),
    "pair_plot": lambda: plots.pair_plot(PAST, ONE),
    "rank_histogram": lambda: plots.rank_histogram(RNG.integers(0, 40, (300, 2)), 39, bins=7),
}


@pytest.fixture(scope="module")
def figures() -> dict[str, Figure]:
    return {name: make() for name, make in FIGURES.items()}


@pytest.mark.parametrize("name", FIGURES)
def test_texts_lie_inside_and_apart(
    figures: dict[str, Figure], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Text] = []
    draw = Text.draw

    def record(self: Text, renderer: object) -> None:
        if self.get_visible() and self.get_text().strip():
            drawn.append(self)
        draw(self, renderer)

    monkeypatch.setattr(Text, "draw", record)
    figure = figures[name]
    figure.draw_without_rendering()
    boxes = [(text.get_text(), text.get_window_extent()) for text in dict.fromkeys(drawn)]
    assert boxes
    width, height = figure.bbox.size
    for text, box in boxes:
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
        assert inside, f"{text!r} leaves the figure"
    for (first, a), (second, b) in itertools.combinations(boxes, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        along = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(across, along) < 1.5, f"{first!r} lies over {second!r}"


@pytest.mark.parametrize("name", FIGURES)
def test_axes_say_what_they_show(figures: dict[str, Figure], name: str) -> None:
    shown = [axes for axes in figures[name].axes if axes.axison]
    assert any(axes.get_xlabel() or axes.get_ylabel() for axes in shown)


@pytest.mark.parametrize("name", ["score_field", "training_curve", "field_panel"])
def test_png_is_reproducible(name: str) -> None:
    first, second = (figure_png(FIGURES[name](), dpi=40) for _ in range(2))
    assert first.startswith(b"\x89PNG")
    assert first == second


def test_settings_are_left_alone() -> None:
    before = dict(mpl.rcParams)
    FIGURES["step_miss"]()
    assert dict(mpl.rcParams) == before


def test_style_does_not_depend_on_the_callers() -> None:
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        changed = figure_png(FIGURES["step_miss"](), dpi=40)
    assert changed == figure_png(FIGURES["step_miss"](), dpi=40)


def test_score_field_shows_the_scores_on_one_scale(figures: dict[str, Figure]) -> None:
    learned, exact, difference = (
        axes.collections[0] for axes in figures["score_field in units"].axes[:3]
    )
    np.testing.assert_allclose(learned.get_array().reshape(50, 60), 1.1 * EXACT.T)
    np.testing.assert_allclose(difference.get_array().reshape(50, 60), 0.1 * EXACT.T, rtol=1e-6)
    assert learned.get_clim() == exact.get_clim()
    low, high = exact.get_clim()
    assert low == -high
    assert high < np.abs(EXACT).max()
    labels = [axes.get_ylabel() for axes in figures["score_field in units"].axes]
    assert labels[0] == "state $x$ [m/s]"
    assert "difference [1/(m/s)]" in labels


def test_score_field_pales_where_there_is_no_density(figures: dict[str, Figure]) -> None:
    alpha = figures["score_field"].axes[0].collections[0].get_alpha().reshape(50, 60).T
    weight = DENSITY / DENSITY.sum(axis=1, keepdims=True)
    held = np.sum(weight * (alpha == 1), axis=1)
    # At least 99 %, and less than one more grid point's worth on either side.
    assert np.all(held >= 0.99)
    assert np.all(held - 2 * weight.max(axis=1) < 0.99)


def test_trajectories_draw_every_path(figures: dict[str, Figure]) -> None:
    forward, backward = figures["trajectories"].axes[:2]
    (lines,) = [item for item in forward.collections if isinstance(item, LineCollection)]
    np.testing.assert_allclose([path[:, 1] for path in lines.get_segments()], PATHS)
    counts = [len(item.get_segments()) for item in backward.collections]
    assert counts == [40, 5]
    few = plots.trajectories(TS, PATHS, PATHS, max_paths=7)
    assert [len(axes.collections[0].get_segments()) for axes in few.axes] == [7, 7]


def test_entries_have_their_names_and_their_draws(figures: dict[str, Figure]) -> None:
    names = ["marker[0]", "marker[1]", "wind"]
    shown = figures["histograms"].axes
    assert [axes.get_xlabel() for axes in shown] == names
    heights, edges, _ = shown[2].patches[1].get_data()
    np.testing.assert_allclose(np.sum(heights * np.diff(edges)), 1, atol=0.01)
    assert edges[0] < STATES["wind"].min() + 1
    (line,) = shown[2].lines
    np.testing.assert_allclose(line.get_xdata(), 3)
    pairs = figures["pair_plot"].axes
    across, down = pairs[7].lines[0].get_data()  # last row, middle column
    np.testing.assert_array_equal(across, STATES["marker"][:, 1])
    np.testing.assert_array_equal(down, STATES["wind"])
    assert [axes.get_xlabel() for axes in pairs[6:9]] == names
    few = plots.pair_plot(STATES, entries=[2, 0])
    assert [axes.get_xlabel() for axes in few.axes[2:]] == ["wind", "marker[0]"]
    assert len(plots.histograms(np.zeros((9, 40))).axes) == 6


def test_lost_draws_are_counted_and_not_drawn() -> None:
    lost = {"a": np.append(STATES["wind"], [np.nan] * 3)}
    assert "3 of 403 not finite" in plots.histograms(lost).axes[0].get_title(loc="left")
    assert "3 not finite" in plots.pair_plot(lost)._suptitle.get_text()


def test_training_curve_axes_and_windows(figures: dict[str, Figure]) -> None:
    axes = figures["training_curve"].axes[0]
    assert axes.get_yscale() == "log"
    assert [text.get_text() for text in axes.texts] == [f"S = {s}" for s in range(2, 22, 2)]
    np.testing.assert_allclose(axes.lines[2].get_xdata(), [500, 1000, 1500, 2000, 2500, 3000])
    nothing = {"loss": LOSS, "window": np.full(600, np.nan), "validation_loss": LOSS * np.nan}
    plain = plots.training_curve(nothing).axes[0]
    assert (len(plain.lines), len(plain.texts)) == (2, 0)
    assert figures["training_curve of negative losses"].axes[0].get_yscale() == "linear"
    np.testing.assert_allclose(axes.lines[0].get_ydata(), LOSS)
    # The running mean of a constant is that constant, also at the ends and around a gap.
    constant = np.full(200, 2.0)
    constant[50] = np.nan
    smooth = plots.training_curve({"loss": constant}).axes[0].lines[1].get_ydata()
    np.testing.assert_allclose(smooth, 2.0)


def test_step_miss_has_its_line_at_one(figures: dict[str, Figure]) -> None:
    lines = figures["step_miss of bands"].axes[0].lines
    assert [line.get_label() for line in lines] == ["low", "high", "optimum"]
    np.testing.assert_allclose(lines[2].get_ydata(), 1)


def test_field_panel_shares_scales(figures: dict[str, Figure]) -> None:
    images = [axes.images[0] for axes in figures["field_panel"].axes if axes.images]
    assert len(images) == 10
    assert len({image.get_clim() for image in images}) == 2
    np.testing.assert_allclose(images[0].get_array(), FIELDS[0])
    np.testing.assert_allclose(images[7].get_array(), FIELDS.mean(0) - FIELDS[0])


def test_power_spectra_leave_out_the_mean(figures: dict[str, Figure]) -> None:
    lines = figures["power_spectra"].axes[0].lines
    np.testing.assert_allclose(lines[0].get_xdata(), KS[1:])
    np.testing.assert_allclose(lines[0].get_ydata(), SPECTRUM[1:])


def test_jax_arrays_are_welcome() -> None:
    assert isinstance(plots.step_miss(jnp.asarray(TS), jnp.ones(60)), Figure)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.score_field(TS, XS, EXACT.T, EXACT), r"learned must have shape \(60, 50\)"),
        (lambda: plots.score_field(TS, XS, EXACT, EXACT, density=EXACT[:3]), "density must have"),
        (lambda: plots.trajectories(TS, PATHS[:, 1:], PATHS), "forward must have shape"),
        (lambda: plots.trajectories(TS, PATHS, PATHS, max_paths=0), "max_paths"),
        (lambda: plots.trajectories(TS, PATHS[0], PATHS), "forward must have 2 axes"),
        (lambda: plots.posterior_histogram(XS * np.nan, XS, XS), "at least 1 finite one"),
        (lambda: plots.posterior_probability(XS, XS, TS), "exact_probability must have shape"),
        (lambda: plots.training_curve({"validation_loss": LOSS}), 'history needs "loss"'),
        (lambda: plots.training_curve({"loss": LOSS, "step": TS}), "step must have shape"),
        (lambda: plots.histograms({}), "at least one draw"),
        (
            lambda: plots.histograms(np.full((5, 2), np.nan)),
            "at least 1 finite draw",
        ),
        (lambda: plots.histograms(STATES, {"wind": np.array(1.0)}), "truth must be one state like"),
        (lambda: plots.pair_plot(STATES, entries=[3]), "entries must be indices below 3"),
        (lambda: plots.step_miss(TS, {}), "at least 1 array"),
        (lambda: plots.step_miss(TS, {"low": XS}), "low must have shape"),
        (
            lambda: plots.field_panel(*FIELDS[:2], FIELDS, FIELDS[0, :3], FIELDS[0]),
            "mean of samples must have shape",
        ),
        (lambda: plots.power_spectra(KS, {}), "at least 1 spectrum"),
        (lambda: plots.particles(TS, XS, TS[1:], *PADDED, num_particles=9), "ess must have shape"),
        (lambda: plots.particles(TS, TS, TS, *PADDED, num_particles=9), "resampled must have"),
        (lambda: plots.particles(TS, TS, TS[1:], *PADDED, num_particles=0), "at least 1, got 0"),
        (
            lambda: plots.sensor_profiles(TS, TS, TS, TS[:3], TS[:2], {"once": PATHS}),
            "readings must have shape",
        ),
        (lambda: plots.coverage_curve(LEVELS, {"SDE": TS}), "SDE must have shape"),
        (lambda: plots.rank_histogram(np.array([41]), 39), r"ranks must be in \[0, 39\], got 41"),
        (lambda: plots.rank_histogram(np.array([1]), 39, bins=50), "bins must be in"),
    ],
)
def test_bad_inputs(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_evidence_of_a_conditioned_posterior(figures: dict[str, Figure]) -> None:
    ess, resampled = 100 - 9 * TS, np.arange(59) % 20 == 7
    info = SimpleNamespace(
        ts=TS, ess=ess, resampled=resampled,
        temperatures=PADDED[0], acceptance=PADDED[1], step_sizes=PADDED[2],
    )  # fmt: skip
    past = Conditioned(np.zeros((100, 1)), np.full(100, -np.log(100)), -12.3, 0.12, info)
    with pytest.raises(TypeError, match="must be what condition returns, got Posterior"):
        plots.evidence_panel(PAST)
    shown = plots.evidence_panel(past)
    for a, b in zip(shown.axes, figures["particles"].axes, strict=True):
        assert a.get_title(loc="left") == b.get_title(loc="left")
        for p, q in zip(a.lines, b.lines, strict=True):
            np.testing.assert_allclose(p.get_xydata(), q.get_xydata())


def test_particles_and_sensors(figures: dict[str, Figure]) -> None:
    left, right = figures["particles"].axes
    np.testing.assert_allclose(left.lines[0].get_ydata(), 1 - 0.09 * TS)
    np.testing.assert_allclose(left.lines[1].get_xdata(), TS[7:59:20])
    assert left.get_title(loc="left") == "log evidence -12.3 ± 0.12 nats"
    assert right.get_title(loc="left") == "End state: 5 stages"
    np.testing.assert_allclose(right.lines[0].get_xdata(), PADDED[0, :5])
    end, once, three = figures["sensor_profiles"].axes
    np.testing.assert_allclose(end.lines[1].get_ydata(), PATHS[1, ::20])
    assert [len(axes.lines) for axes in (once, three)] == [41, 6]
    np.testing.assert_allclose(three.lines[-1].get_ydata(), PATHS[0])
