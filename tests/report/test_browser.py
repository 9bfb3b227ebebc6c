"""The page in a real Chromium: it loads alone, draws, filters, links, prints, fits a phone, and can be read by all."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.made import HOSTILE

Open = Callable[..., Any]
MARKS = """[...document.querySelectorAll('figure[data-chart]')].map(f => [f.dataset.chart,
    f.querySelectorAll('.plot [class*="mark-"] :is(path, line)').length])"""
CHARTS = {
    "speedup", "peaks", "parts", "timeline", "scores", "differences", "choice", "loss", "step-times", "break-even",
    "ladder-speed", "ladder-memory", "limits", "kernels-speed", "releases", "memory-predicted",
    "memory-by-rank", "rank-trade-off",
}  # fmt: skip


@pytest.fixture
def opened(browser: Any, made_page: Path) -> Iterator[Open]:
    """Opens the page; at the end no error was logged and nothing but the page itself was asked for."""
    told: list[str] = []
    asked: list[str] = []
    contexts = []

    def open_it(fragment: str = "", path: Path = made_page, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("dialog", lambda dialog: told.append(f"dialog {dialog.message}"))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri() + fragment)
        if options.get("java_script_enabled", True):
            page.wait_for_selector("html[data-ready]", timeout=30_000)
        asked[:] = [url for url in asked if not url.startswith((path.as_uri(), "data:", "blob:"))]
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert told == []
    assert asked == []


def test_every_chart_has_marks_and_words(opened: Open) -> None:
    page = opened()
    marks = dict(page.evaluate(MARKS))
    assert marks.keys() == CHARTS
    assert all(count > 0 for count in marks.values()), marks
    for figure in page.query_selector_all("figure"):
        assert figure.query_selector("h3").inner_text() and figure.query_selector(".see").inner_text()
        assert len(figure.query_selector("figcaption").inner_text()) > 20
        figure.query_selector("details.behind summary").click()
        page.wait_for_selector(f"#{figure.get_attribute('id')} details.behind tbody tr")


def test_the_band_of_no_difference_and_the_whiskers_are_drawn(opened: Open) -> None:
    page = opened()
    speedup = "#chart-speedup .plot "
    (band,) = page.evaluate(
        f"[...document.querySelectorAll('{speedup}.mark-rect.role-mark path')].map(p => p.getBBox().width)"
    )
    assert band > 1
    rules = page.evaluate(
        f"[...document.querySelectorAll('{speedup}.mark-rule.role-mark line')].map(l => l.getBBox().width)"
    )
    assert sum(width > 1 for width in rules) == 3  # the three ranks with three processes a side


@pytest.mark.parametrize(("width", "columns"), [(1200, 3), (390, 1)])
def test_panels_stand_in_a_row_or_in_a_column(opened: Open, width: int, columns: int) -> None:
    page = opened(viewport={"width": width, "height": 900})
    panels = "#chart-rank-trade-off .plot .mark-group.role-scope > g > path.background"
    lefts = page.evaluate(f"[...document.querySelectorAll('{panels}')].map(p => p.getBoundingClientRect().left | 0)")
    assert len(lefts) >= 3 and len(set(lefts)) == columns


def test_filters_change_charts_and_tables(opened: Open) -> None:
    page = opened()
    before = dict(page.evaluate(MARKS))
    page.select_option("select[name=rank]", "64")
    page.wait_for_function("document.querySelector('form output').textContent !== ''")
    page.wait_for_function(f"{MARKS}.find(m => m[0] === 'speedup')[1] < {before['speedup']}")
    after = dict(page.evaluate(MARKS))
    assert after["peaks"] < before["peaks"]
    ranks = page.evaluate("[...document.querySelectorAll('tr[data-rank]:not([hidden])')].map(r => r.dataset.rank)")
    assert set(ranks) == {"64"}
    assert page.eval_on_selector("#chart-timeline select", "s => [...s.options].every(o => o.text.includes('r64'))")
    page.click("button[type=reset]")
    page.wait_for_function(f"{MARKS}.find(m => m[0] === 'speedup')[1] === {before['speedup']}")


def test_a_filter_without_a_match_says_so(opened: Open) -> None:
    page = opened()
    page.select_option("select[name=model]", "qwen3-8b")
    page.wait_for_selector("#chart-speedup >> text=Nothing that the filters let through")
    assert not page.is_visible("#chart-speedup .plot")


def test_the_meter_is_switched(opened: Open) -> None:
    page = opened()
    numbers = "[...document.querySelectorAll('#chart-peaks .mark-text text')].map(t => t.textContent).join()"
    before = page.evaluate(numbers)
    page.select_option("#chart-peaks select", label="torch allocated")
    page.wait_for_function(f"{numbers} !== {before!r}")


def test_numbers_lead_to_findings_to_records_to_samples(opened: Open) -> None:
    page = opened()
    page.click("blockquote a.figure >> nth=0")
    drawer = page.wait_for_selector("tr[id^=finding-] + tr.drawer")
    assert page.evaluate("location.hash").startswith("#finding-")
    for words in ("Parity checks", "median step", "interval"):
        assert words in drawer.inner_text()
    drawer.query_selector("a[href^='#record-']").click()
    record = page.wait_for_selector("tr[id^=record-] + tr.drawer")
    for words in ("Phases", "Settings", "Every step", "record.json", "samples.jsonl"):
        assert words in record.inner_text(), words
    record.query_selector("details summary").click()
    record.wait_for_selector("details tbody tr >> nth=5")  # two of warm-up and four
    assert len(record.query_selector_all("details tbody tr")) == 6
    record.query_selector("button >> text=Show its memory over time").click()
    page.wait_for_selector("#chart-timeline svg")
    page.click("tr[id^=record-]:has(+ tr.drawer) a[href^='#environment']")
    page.wait_for_selector("#environment details[open] >> text=driver")
    links = page.evaluate("[...document.querySelectorAll('a[href^=\"#\"]')].map(a => a.getAttribute('href').slice(1))")
    assert page.evaluate("ids => ids.filter(id => !document.getElementById(id))", links) == []


def test_a_link_into_the_page_opens_its_record(opened: Open, made_page: Path) -> None:
    anchor = re.findall(r'<tr id="(record-[^"]+)"', made_page.read_text())[3]
    page = opened(f"#{anchor}")
    assert page.is_visible(f"tr[id='{anchor}'] + tr.drawer")


def test_hostile_names_are_text(opened: Open) -> None:
    page = opened()
    assert HOSTILE in page.inner_text("h1")
    page.click("#failures a:has-text('alert')")
    drawer = page.wait_for_selector("tr[id^=record-] + tr.drawer")
    assert "<img src=x onerror=alert(2)>" in drawer.inner_text()
    assert page.query_selector("img") is None
    page.hover("#chart-choice .mark-symbol path >> nth=0")
    assert page.is_visible("#tip")
    assert len(page.query_selector_all("script")) == 2  # the data are taken out once they are read


def test_without_scripts_the_findings_still_read(opened: Open) -> None:
    page = opened(java_script_enabled=False)
    assert "x the speed" in page.inner_text("#headline")
    assert page.is_visible("#speed table") and page.is_visible("#finding-1")
    assert not page.is_visible(".filters") and not page.is_visible(".plot >> nth=0")


@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_wider_than_the_screen(opened: Open, width: int) -> None:
    page = opened(viewport={"width": width, "height": 800})
    page.click("blockquote a.figure >> nth=0")
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.emulate_media(media="print")
    assert page.evaluate("document.querySelector('.plot svg').getBoundingClientRect().right") <= width
    assert not page.is_visible(".filters")


def test_it_prints(opened: Open) -> None:
    page = opened()
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.set_viewport_size({"width": 720, "height": 1000})  # about what A4 leaves
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(17, 17, 17)"


def test_axe_finds_no_serious_violation(opened: Open) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = opened()
    page.click("blockquote a.figure >> nth=0")
    page.click("tr.drawer a[href^='#record-'] >> nth=0")
    page.wait_for_selector("tr[id^=record-] + tr.drawer")
    assert _serious(Axe().run(page)) == []
    page.emulate_media(color_scheme="dark")
    assert _serious(Axe().run(page, options={"runOnly": ["color-contrast"]})) == []


def _serious(found: Any) -> list[tuple[str, list[str]]]:
    return [
        (one["id"], [node["html"][:120] for node in one["nodes"][:3]])
        for one in found.response["violations"]
        if one["impact"] in ("serious", "critical")
    ]
