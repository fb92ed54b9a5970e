"""Curves in a page: explored by mouse, touch and keyboard, and nothing but our scripts runs."""

import hashlib
import json
import math
import re

import numpy as np
import pytest
from jinja2 import ChoiceLoader, DictLoader
from markupsafe import Markup

from dpo.reports import html
from dpo.reports.html import FOLDERS, render
from dpo.reports.parts.curves import MOST, SCRIPTS, Panel, Series, data_of, thinned
from support.browser import DESKTOP, PHONE, fits, opened

# As `npm pack uplot@1.6.32` has them; docs/security.md names the version.
VENDORED = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}
EVIL = "</script><script>window.evil=1</script><!-- <b>run</b>"
PAGE = """{% extends "base.html" %}{% from "macros.html" import curves %}{% block body %}
{% call curves(data) %}<p>the picture</p>{% endcall %}{% endblock %}"""


def test_uplot_is_as_its_package_has_it():
    for name, digest in VENDORED.items():
        assert hashlib.sha256((FOLDERS[1] / name).read_bytes()).hexdigest() == digest, name
    assert {path.name for path in FOLDERS[1].iterdir()} == VENDORED.keys()
    assert "(v1.6.32)" in (FOLDERS[1] / "uPlot.iife.min.js").read_text()[:80]


def panels() -> list[Panel]:
    """Two runs of different lengths, a gap, a band, one point, values below zero."""

    def x(steps, apart=3.0):
        return {"step": [*steps], "seconds": [step * apart for step in steps]}

    loss = [0.69 * math.exp(-step / 40) + 0.05 * math.sin(step) for step in range(1, 41)]
    held_out = Series(EVIL, x([20, 40]), [0.5, 0.4], "held-out pairs", "#0072B2", held_out=True)
    held_out.low, held_out.high = [0.45, 0.3], [0.55, 0.5]
    return [
        Panel(
            "Loss",
            [
                Series(EVIL, x(range(1, 41)), loss, "training batches", "#0072B2"),
                held_out,
                Series("b", x(range(1, 21), 5), [0.6] * 9 + [None] + [0.5] * 10, line="dashed"),
            ],
            "nats",
        ),
        Panel("Margin", [Series("b", x([5, 10]), [-0.1, 0.3]), Series("c", x([3]), [0.2])]),
        Panel("Nothing was measured", [Series("b", x([]), [])]),
    ]


def page_of(panels: list[Panel], monkeypatch) -> str:
    loader = ChoiceLoader([DictLoader({"curves.html": PAGE}), html.PAGES.loader])
    monkeypatch.setattr(html.PAGES, "loader", loader)
    return render("curves", SCRIPTS, title="curves", data=data_of(panels))


@pytest.fixture
def url(tmp_path, monkeypatch) -> str:
    (tmp_path / "curves.html").write_text(page_of(panels(), monkeypatch))
    return (tmp_path / "curves.html").as_uri()


def readouts(page) -> list[str]:
    page.wait_for_timeout(100)
    return page.locator(".readout").all_inner_texts()


def ink(page, at: int = 0) -> int:
    """How many pixels of a plot are not blank."""
    data = "canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data"
    count = f"canvas => {data}.filter((v, i) => i % 4 == 3 && v).length"
    return page.locator("canvas").nth(at).evaluate(count)


def test_curves_are_explored_by_the_mouse(url):
    with opened(url, DESKTOP) as page:
        assert page.locator("figure").count() == 2 and not page.get_by_text("the picture").count()
        assert page.evaluate("window.evil") is None
        assert page.get_by_role("button", name=EVIL).is_visible()  # shown as the text that it is
        assert "0.4 (0.3 to 0.5)" in readouts(page)[0]

        box = page.locator(".u-over").first.bounding_box()
        page.mouse.move(box["x"] + box["width"] * 19 / 39, box["y"] + 50)
        loss, margin = readouts(page)
        assert loss.startswith("step 20") and "held-out pairs 0.5 (0.45 to 0.55)" in loss
        assert "b 0.3 at 10" in margin and "c 0.2 at 3" in margin  # of the nearest that it has

        drawn = ink(page)
        page.get_by_role("button", name="b", exact=True).click()
        assert "\nb " not in "".join(readouts(page)) and ink(page) < drawn
        page.get_by_role("button", name="b", exact=True).press("Enter")  # a real button
        assert "\nb " in readouts(page)[0]

        page.get_by_label("log scale").check()
        assert page.get_by_text("linear: there are values below 0").count() == 1
        page.get_by_label("log scale").uncheck()
        page.get_by_label("smoothing").fill("0.9")
        assert "smoothed" in readouts(page)[0] and page.get_by_text("0.90").is_visible()
        page.get_by_label("smoothing").fill("0")

        page.mouse.move(box["x"] + 50, box["y"] + 50)
        page.mouse.down()
        page.mouse.move(box["x"] + 200, box["y"] + 60, steps=4)
        page.mouse.up()
        page.wait_for_timeout(100)
        whole = page.get_by_role("button", name="whole run")
        assert whole.is_enabled()
        box = page.locator(".u-over").first.bounding_box()
        page.mouse.move(box["x"] + box["width"] - 3, box["y"] + 50)
        assert 10 < int(re.match(r"step (\d+)", readouts(page)[0])[1]) < 35
        page.mouse.dblclick(box["x"] + 50, box["y"] + 50)
        page.wait_for_timeout(100)
        assert whole.is_disabled()

        page.get_by_label("along").select_option("seconds")
        page.locator(".plot").first.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert readouts(page)[0].startswith("seconds 5")  # of run b, after 3 of the other
        assert page.errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_curves_are_read_on_a_phone(url, scheme):
    with opened(url, PHONE) as page:
        page.emulate_media(color_scheme=scheme)
        assert fits(page)
        box = page.locator(".u-over").first.bounding_box()
        touch = {
            "pointerType": "touch",
            "clientX": box["x"] + box["width"],
            "clientY": box["y"] + 9,
        }
        page.locator(".plot").first.dispatch_event("pointerenter")
        page.locator(".plot").first.dispatch_event("pointermove", touch)
        assert readouts(page)[0].startswith("step 40")
        assert fits(page) and page.errors == []


def test_a_script_that_is_not_ours_does_not_run(tmp_path, monkeypatch):
    """Escaping failed, as it were: the policy stands behind it."""
    text = page_of(panels(), monkeypatch)
    (tmp_path / "page.html").write_text(text.replace("<h1>", "<script>window.evil=1</script><h1>"))
    with opened((tmp_path / "page.html").as_uri()) as page:
        assert page.evaluate("window.evil") is None
        assert any("Content Security Policy" in error for error in page.errors)
        assert page.locator("canvas").count() == 2


def test_a_page_without_curves_has_no_script():
    text = render("frontier", title="t", about="", drawn=b"", table=[])
    assert "<script" not in text and "script-src 'none'" in text


def test_pictures_stay_where_scripts_do_not_run(url, tmp_path):
    broken = (tmp_path / "curves.html").read_text().replace("var uPlot=", "var noPlot=")
    (tmp_path / "broken.html").write_text(broken)
    with opened((tmp_path / "broken.html").as_uri()) as page:
        assert page.get_by_text("the picture").is_visible()


def test_the_data_of_a_page_hold_no_secret_and_no_markup(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "s3cr3t&<value>")
    said = data_of([Panel("a s3cr3t&<value>", [Series("k\u202e", {"step": [1]}, [0.5])])])
    assert isinstance(said, Markup) and not {*"<>&"} & {*said}
    (panel,) = json.loads(said)["panels"]
    assert panel["title"] == "a ***" and panel["series"][0]["key"] == r"k\u202e"


def test_a_long_line_keeps_its_peaks_its_gaps_and_its_ends():
    values = np.sin(np.arange(20_000) / 900)
    values[7_777], values[12_345], values[500:900] = 9.0, -9.0, np.nan
    kept = thinned(values.tolist())
    assert len(kept) <= MOST and kept == sorted({*kept}) and {0, 7_777, 12_345, 19_999} <= {*kept}
    assert np.isnan(values[kept]).any()
    steps = [*range(20_000)]
    runs = [Series(f"run {n}", {"step": steps}, values.tolist()) for n in range(8)]
    assert len(data_of([Panel(str(n), runs) for n in range(10)])) < 1_000_000
    assert thinned([1.0] * MOST) == [*range(MOST)]
