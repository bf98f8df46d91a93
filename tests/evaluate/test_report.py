"""The report is well-formed, self-contained, escaped, and written whole or not at all."""

import base64
import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from smdp_jax import evaluate
from smdp_jax.evaluate import _html_parts

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Checks nesting while it collects elements and text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"closed but never opened: {tag}"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def small_figure() -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1])
    return figure


@dataclasses.dataclass(frozen=True)
class Solver:
    name: str = "heun"
    steps: int = 64


def write(path: Path) -> str:
    evil = "<script>alert(\"x\")</script> & 'quoted'"
    evaluate.write_report(
        path,
        f"Heat {evil}",
        [
            evaluate.Section(
                f"Posterior {evil}",
                text=f"First.\n\nSecond: {evil}",
                figures=[evaluate.ReportFigure(small_figure(), f"Caption {evil}", alt='a "line"')],
            ),
            evaluate.Section("Scores", metrics=[evaluate.Metric("error", 0.123456)]),
            evaluate.Section("Spectra"),
        ],
        summary=f"Learned. {evil}",
        metrics=[
            evaluate.Metric("Q", jnp.float32(0.98), 1, note="exact"),
            evaluate.Metric("MSE", np.float64(0.02751), 0.0275, unit="K²", note=evil),
            evaluate.Metric("gain", 4.07, 3.0, bound="at least"),
            evaluate.Metric("samples", 1000),
        ],
        config={"name": evil, "solver": Solver(), "grid": {"points": (32, 32), "empty": {}}},
        environment=evaluate.describe_environment(),
        command="python -m smdp_jax run configs/heat.py && echo <done>",
    )
    return path.read_text(encoding="utf-8")


def test_report_is_well_formed_and_offline(tmp_path: Path) -> None:
    html = write(tmp_path / "run" / "report.html")
    assert html.startswith("<!DOCTYPE html>")
    page = Page(html)
    for _, attributes in page.elements:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith(
                ("data:image/png;base64,", "#", "data:")
            )
    assert not re.search(r"https?://|url\(|@import", html)
    assert page.all("script") == []
    targets = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {link["href"] for link in page.all("a")} == {"#s0", "#s1", "#s2"}
    assert {"s0", "s1", "s2", "reproduce"} <= targets
    assert page.all("html")[0]["lang"] == "en"
    assert "width=device-width" in str(page.all("meta"))
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_report_says_what_it_was_given(tmp_path: Path) -> None:
    page = Page(write(tmp_path / "report.html"))
    text = "".join(page.text)
    # Escaped once, not twice: the reader sees what was written.
    assert text.count("<script>alert(\"x\")</script> & 'quoted'") >= 6
    for piece in (
        "0.98",
        "0.0275",
        "K²",
        "≥ 3",
        "1000",
        "–",
        "0.1235",
        "solver.steps",
        "64",
        "grid.points",
    ):
        assert piece in text
    assert "python -m smdp_jax run configs/heat.py && echo <done>" in text
    assert jax.__version__ in text
    assert len(page.all("details")) == 2


def test_report_holds_its_figures(tmp_path: Path) -> None:
    (image,) = Page(write(tmp_path / "report.html")).all("img")
    png = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
    assert png == _html_parts.figure_png(small_figure())
    # Two by one inch, at the 96 pixels per inch of a browser.
    assert (image["width"], image["height"], image["alt"]) == ("192", "96", 'a "line"')


def test_caption_stands_in_for_a_missing_alt(tmp_path: Path) -> None:
    figure = evaluate.ReportFigure(_html_parts.figure_png(small_figure()), "A line.")
    path = evaluate.write_report(
        tmp_path / "r.html", "t", [evaluate.Section("s", figures=[figure])]
    )
    page = Page(path.read_text(encoding="utf-8"))
    assert page.all("img")[0]["alt"] == "A line."
    assert page.all("nav") == []
    assert page.all("table") == []


def test_report_bad_inputs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a title"):
        evaluate.write_report(tmp_path / "r.html", " ", [])
    figure = evaluate.ReportFigure(b"JFIF", "not a PNG")
    with pytest.raises(ValueError, match="must be a PNG"):
        evaluate.write_report(tmp_path / "r.html", "t", [evaluate.Section("s", figures=[figure])])
    assert list(tmp_path.iterdir()) == []


def test_save_figures(tmp_path: Path) -> None:
    paths = evaluate.save_figures(tmp_path, {"loss": small_figure(), "score": small_figure()})
    assert paths == {name: tmp_path / "figures" / f"{name}.png" for name in ("loss", "score")}
    assert paths["loss"].read_bytes() == _html_parts.figure_png(small_figure())
    assert len(list((tmp_path / "figures").iterdir())) == 2


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a\\b"])
def test_save_figures_rejects_paths(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="plain file name"):
        evaluate.save_figures(tmp_path, {name: small_figure()})
    assert list(tmp_path.iterdir()) == []


def test_environment_names_versions_and_no_paths() -> None:
    environment = evaluate.describe_environment()
    assert environment["jax"] == jax.__version__
    assert "cpu" in environment["devices"] or jax.default_backend() != "cpu"
    assert environment["precision"] in {"float32", "float64"}
    assert not any("/" in value or "\\" in value for value in environment.values())


def judged() -> list[evaluate.Metric]:
    return [
        evaluate.Metric("low enough", 0.1, 0.2, bound="at most"),
        evaluate.Metric("too low", 0.1, 0.2, bound="at least"),
        evaluate.Metric("near enough", 0.45, 0.5, tolerance=0.06),
        evaluate.Metric("too far", 0.4, 0.5, tolerance=0.06),
        evaluate.Metric("ran off", float("nan")),
        evaluate.Metric("ran off too", "not finite", 1.0),
        evaluate.Metric("only beside its ideal", 0.4, 0.5),
        evaluate.Metric("text", "0.97 ± 0.01", 1.0, bound="at most"),
    ]


def test_rows_are_judged() -> None:
    met = [row.met for row in judged()]
    assert met == [True, False, True, False, False, False, None, None]
    assert judged()[2].wanted == "0.5 ± 0.06"


def test_status_opens_the_page_and_misses_are_marked(tmp_path: Path) -> None:
    path, section = tmp_path / "report.html", evaluate.Section("More", metrics=judged()[3:])
    evaluate.write_report(path, "Heat", [section], metrics=judged()[:3], lost_paths=(3, 40))
    html = path.read_text(encoding="utf-8")
    line = "2 of 6 targets met; missed: too low, too far, ran off, ran off too; 3 of 40 paths lost"
    assert line in "".join(Page(html).text)
    assert html.index(line) < html.index("<table")
    assert html.count('<tr class="missed">') == 4
    assert [a["aria-label"] for a in Page(html).all("span") if "aria-label" in a] == [
        "met",
        "missed",
        "met",
        "missed",
        "missed",
        "missed",
    ]
    evaluate.write_report(path, "Heat", [], metrics=judged()[:1], lost_paths=(0, 40))
    assert 'class="status good"' in path.read_text(encoding="utf-8")
    evaluate.write_report(path, "Heat", [], metrics=[evaluate.Metric("plain", 1.0)])
    assert 'class="status' not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"bound": "foo", "target": 1.0}, "bound must be one of .*'at most', None.*, got"),
        ({"bound": "at most"}, "must have a target to be judged by"),
        ({"tolerance": 0.1}, "must have a target to be judged by"),
        ({"target": 1.0, "bound": "at most", "tolerance": 0.1}, "either a bound or a tolerance"),
        ({"target": 1.0, "tolerance": -0.1}, "tolerance must be at least 0, got -0.1"),
        ({"target": 1.0, "tolerance": float("nan")}, "tolerance must be at least 0, got nan"),
    ],
)
def test_rows_that_cannot_be_judged(row: dict, message: str, untyped: None) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate.Metric("error", 0.5, **row)


def test_docstrings_are_reflowed() -> None:
    """Lines end where the page does; equations, lists and paragraphs keep theirs."""
    content = (
        "Heat that\nspreads:\n\n    u_t = u_xx\n\nIts parts:\n- one\n  more\n- two\nand so\non."
    )
    found = _html_parts.paragraphs(content)
    assert re.findall(r"<p>(.*?)</p>", found, re.S) == [
        "Heat that spreads:",
        "u_t = u_xx",
        "Its parts:\n- one\n  more\n- two and so on.",
    ]


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2) of #rrggbb."""
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    """From 1, alike, to 21, black on white."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_has_contrast_by_day_and_by_night() -> None:
    """AA: 4.5 for all text on all grounds, in both themes; 3 for marks of figures."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # WCAG's own example
    style = (Path(evaluate.__file__).parent / "report.css").read_text()
    themes = re.findall(r":root \{([^}]*)\}", style)
    assert len(themes) == 3  # day, night, paper
    for theme in themes[:2]:
        colours = dict(re.findall(r"--(\w+): (#\w{6})", theme))
        assert {"ink", "soft", "link", "good", "bad", "page", "card"} <= set(colours)
        for text in ("ink", "soft", "link", "good", "bad"):
            for ground in ("page", "card"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground, colours)


def test_figures_have_contrast() -> None:
    from smdp_jax.evaluate.plots import _style

    for text in (_style.INK, _style.SOFT):
        assert contrast(text, "#ffffff") >= 4.5
    for line in (_style.LEARNED, _style.EXACT, _style.FLOW, *_style.SERIES):
        assert contrast(line, "#ffffff") >= 3
