"""The report in a browser, as wide as a phone, a tablet and a screen; Chromium has to be there."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from matplotlib.figure import Figure

from smdp_jax import evaluate

WIDTHS = (390, 768, 1280)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell", "msedge")
MEASURE = """<script>onload = () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument.documentElement
    const images = [...frame.contentDocument.querySelectorAll("img")]
    return [page.scrollWidth - page.clientWidth, images.length, images.every(i => i.alt.trim())]
  })
  document.body.innerHTML = `<p id="found">${JSON.stringify(found)}</p>`
}</script>"""


def looked_at(report, folder):
    """For each width: overflow in pixels, number of figures, and whether all have a text."""
    page = html.escape(report.read_text(encoding="utf-8"))
    frames = "".join(f'<iframe width="{w}" height="900" srcdoc="{page}"></iframe>' for w in WIDTHS)
    wrapper = folder / "widths.html"
    wrapper.write_text(f'<!doctype html><meta charset="utf-8"><body>{frames}{MEASURE}', "utf-8")
    browser = next((there for name in BROWSERS if (there := shutil.which(name))), None)
    assert browser is not None, f"this test needs one of {BROWSERS}: apt-get install chromium"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    done = subprocess.run(
        [*command, "--virtual-time-budget=20000", str(wrapper)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<p id="found">(.*?)</p>', done.stdout)
    assert found is not None, done.stdout[:500]
    return json.loads(found[1])


@pytest.mark.slow
def test_nothing_overflows(tmp_path):
    """Long words, wide figures, many columns: they wrap, shrink or scroll in a box of their own."""
    figure = Figure(figsize=(16, 3))
    figure.subplots().plot(np.arange(10))
    long = "configuration_of_the_" * 12
    rows = [
        evaluate.Metric(f"{long}{i}", 1.23456e-7, 1.0, unit="m²/s", note=long, bound="at most")
        for i in range(3)
    ]
    report = evaluate.write_report(
        tmp_path / "report.html",
        long,
        [evaluate.Section(long, text=long, metrics=rows, figures=[
            evaluate.ReportFigure(figure, long, alt="a line that rises")
        ])],
        metrics=rows,
        config={long: long, "windows": tuple(range(200))},
        lost_paths=(3, 40),
    )  # fmt: skip
    for width, (overflow, figures, told) in zip(WIDTHS, looked_at(report, tmp_path), strict=True):
        assert overflow == 0, width
        assert figures == 1
        assert told
