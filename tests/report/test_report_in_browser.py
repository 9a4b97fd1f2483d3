"""The report as people see it: a real browser, at desktop and phone width."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright
from toy_run import Run

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SHOTS = Path(__file__).parents[2] / "build" / "screenshots"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser here: apt-get install chromium")


@pytest.fixture(params=[1280, 390], ids=["desktop", "phone"])
def page(request: pytest.FixtureRequest, run: Run, tmp_path: Path) -> Iterator[Page]:
    out = run.report(tmp_path / "out")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        opened = browser.new_page(viewport={"width": request.param, "height": 900})
        opened.on("dialog", lambda dialog: pytest.fail(f"a script of the model's ran: {dialog.message}"))
        opened.on("request", lambda sent: None if sent.url.startswith(("file:", "data:")) else pytest.fail(sent.url))
        opened.goto((out / "report.html").as_uri())
        SHOTS.mkdir(parents=True, exist_ok=True)
        opened.screenshot(path=SHOTS / f"report-{request.param}.png", full_page=True)
        yield opened
        browser.close()


@pytest.mark.slow
def test_the_page_does_not_scroll_sideways_and_shows_every_plot(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator("svg").count() >= 3
    assert all(box["width"] > 200 for box in page.evaluate("[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().toJSON())"))  # fmt: skip  # noqa: E501


@pytest.mark.slow
def test_model_output_with_a_script_is_text(page: Page) -> None:
    assert "<script>alert(1)</script>" in (page.locator("body").text_content() or "")
    assert page.locator("body script").count() == 0
    assert page.locator("img[src=x]").count() == 0
