"""The page in headless Chromium: quiet, offline, complete, readable by keyboard and screen reader, in light, dark and print."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from sani_dist.config import VerifySettings
from sani_dist.report import write_report
from sani_dist.run import Run

from .conftest import AFTER, MakeRun

pytestmark = pytest.mark.browser

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium-headless-shell, or CHROMIUM=path")
    with sync_playwright() as playwright:
        # Without the sandbox: containers, where tests often run as root, have none to offer.
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@dataclass
class Opened:
    """A page and what happened while it was opened."""

    page: Page
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Opened]]:
    contexts = []

    def opened(path: Path, **options: Any) -> Opened:
        context = browser.new_context(**options)
        contexts.append(context)
        result = Opened(context.new_page())
        result.page.on("console", lambda message: result.messages.append(message.text))
        result.page.on("pageerror", lambda error: result.messages.append(str(error)))
        result.page.on("request", lambda request: result.requests.append(request.url))
        result.page.goto(path.as_uri(), wait_until="networkidle")
        return result

    yield opened
    for context in contexts:
        context.close()


def report_of(run: Run, **limits: float) -> Path:
    write_report(run, VerifySettings(**limits))
    return run.path("report", "index.html")


@pytest.fixture
def missed(make_run: MakeRun) -> Path:
    """Page of a run with all sections that misses one of two limits."""
    return report_of(make_run(), max_greedy=0.05, max_leak100=0.05)


def faults(page: Page) -> list[tuple[str, str, list[str]]]:
    """What axe-core finds: (rule, impact, elements) of serious and critical violations."""
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert len(found["passes"]) > 15  # it did look
    return [
        (v["id"], v["impact"], [node["html"][:120] for node in v["nodes"]])
        for v in found["violations"]
        if v["impact"] in ("serious", "critical")
    ]


def test_opens_without_a_message_or_a_request(open_page: Callable[..., Opened], missed: Path) -> None:
    opened = open_page(missed)
    opened.page.locator("summary").last.click()
    opened.page.locator("nav a").last.click()
    assert opened.messages == []
    assert [url.split("#")[0] for url in opened.requests] == [missed.as_uri()]


def test_works_with_scripts_switched_off_as_with_them(open_page: Callable[..., Opened], missed: Path) -> None:
    texts = {open_page(missed, java_script_enabled=on).page.locator("main").inner_text() for on in (True, False)}
    assert len(texts) == 1


def test_shows_tables_and_plots(open_page: Callable[..., Opened], missed: Path) -> None:
    page = open_page(missed).page
    for name in ("Extraction of all spans", "By kind of identifier", "Usefulness", "Attacks tested and not tested"):
        assert page.get_by_role("region", name=name).locator("tbody tr").first.is_visible()
    plots = page.get_by_role("img")
    assert plots.count() == 5
    for plot in plots.all():
        box = plot.bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) > 150
    row = page.get_by_role("row", name="PERSON").first
    assert row.get_by_role("cell").nth(2).inner_text().split("\n")[0].replace("\N{NO-BREAK SPACE}", " ") == "5.3 %"
    assert row.locator("svg .mark").count() == 3
    colours = {
        page.locator(f"svg .mark.{role}").first.evaluate("e => getComputedStyle(e).stroke")
        for role in ("before", "after", "control")
    }
    assert len(colours) == 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("alone", [False, True], ids=["run", "audit alone"])
def test_axe_finds_no_serious_fault(
    open_page: Callable[..., Opened], make_run: MakeRun, scheme: str, alone: bool
) -> None:
    run = make_run(before=AFTER, after=None) if alone else make_run()
    page = open_page(report_of(run, max_greedy=0.05, max_leak100=0.05), color_scheme=scheme).page
    page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    assert faults(page) == []


def test_axe_would_find_one(open_page: Callable[..., Opened], missed: Path) -> None:
    page = open_page(missed).page
    page.evaluate("document.querySelector('.note').style.color = '#eeeeee'")
    assert [rule for rule, _, _ in faults(page)] == ["color-contrast"]


def test_dark_is_dark_and_light_is_light(open_page: Callable[..., Opened], missed: Path) -> None:
    def brightness(scheme: str) -> list[float]:
        page = open_page(missed, color_scheme=scheme).page
        rgb = "s => s.match(/[0-9]+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0) / 765"
        return [
            float(page.evaluate(f"({rgb})(getComputedStyle(document.body).{name})"))
            for name in ("backgroundColor", "color")
        ]

    light, dark = brightness("light"), brightness("dark")
    assert light[0] > 0.9 > 0.2 > light[1]
    assert dark[0] < 0.15 < 0.8 < dark[1]


def test_the_keyboard_reaches_skip_link_contents_tables_and_details(
    open_page: Callable[..., Opened], missed: Path
) -> None:
    page = open_page(missed).page
    names = []
    for _ in range(60):
        page.keyboard.press("Tab")
        names.append(page.evaluate("(document.activeElement.ariaLabel || document.activeElement.textContent).trim()"))
    assert names[0] == "Skip to the verdict"
    for expected in ("What comes out", "Extraction of all spans", "By kind of identifier", "Settings"):
        assert expected in names


@pytest.mark.parametrize("width", [320, 390, 900, 1400])
def test_the_page_itself_never_scrolls_sideways(open_page: Callable[..., Opened], missed: Path, width: int) -> None:
    page = open_page(missed, viewport={"width": width, "height": 800}).page
    page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_prints_light_without_contents_and_with_all_measurements(
    open_page: Callable[..., Opened], missed: Path
) -> None:
    page = open_page(missed, color_scheme="dark").page
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    assert page.get_by_role("region", name="All measurements").locator("tbody tr").last.is_visible()
    assert len(page.pdf(format="A4")) > 20_000


def test_a_real_report_opens(open_page: Callable[..., Opened], finished_run: Run) -> None:
    opened = open_page(finished_run.path("report", "index.html"))
    assert opened.messages == []
    assert len(opened.requests) == 1
    audit = json.loads(finished_run.path("audit", "after.json").read_text())
    assert f"{len(audit['measurements'])} measurements" in opened.page.locator("#everything summary").inner_text()
    assert faults(opened.page) == []
