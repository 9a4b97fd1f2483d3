"""The Prefect UI as a person uses it: Debian's Chromium, driven by Playwright. Pages looked at are kept as pictures."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright
from services import Server
from stage import PARENT

SHOTS = Path(__file__).parents[2] / "build" / "screenshots"
_PATIENCE_MS = 90_000  # the server shares two cores with everything else


@dataclass(frozen=True)
class Browser:
    """One page of the UI."""

    page: Page
    base: str

    def open_form(self) -> None:
        """The form of a custom run of the parent."""
        self._goto("/deployments")
        self.page.get_by_role("link", name=PARENT.partition("/")[2], exact=True).click()
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Custom run").click()
        expect(self.page.get_by_label("Epochs (Optional)")).to_be_visible()
        self.keep("form")

    def fill(self, title: str, value: str) -> None:
        self.page.get_by_label(f"{title} (Optional)").fill(value)

    def submit(self) -> None:
        self.page.get_by_role("button", name="Submit").click()

    def open_run(self, run: str, picture: str) -> None:
        self._goto(f"/runs/flow-run/{run}")
        expect(self.page.get_by_role("tab", name="Artifacts")).to_be_visible()
        self.keep(picture)

    def rest(self) -> None:
        """Leave the page: its graph of a run is drawn again and again, which costs a core without a GPU."""
        self.page.goto("about:blank")

    def retry(self, run: str, picture: str) -> None:
        """Retry from the menu of a run."""
        self.open_run(run, picture)
        self.page.get_by_role("button", name="Open menu").click()
        self.page.get_by_role("menuitem", name="Retry").click()
        dialog = self.page.get_by_role("alertdialog")
        dialog.get_by_role("button", name="Retry").click()
        expect(dialog).to_be_hidden()
        self.rest()

    def open_artifact(self, run: str, key: str, *, says: str) -> str:
        """The text of the page of an artifact of a run, once it says what it should."""
        self._goto(f"/runs/flow-run/{run}")
        self.page.get_by_role("tab", name="Artifacts").click()
        self.page.get_by_role("link", name=key).first.click()
        self.page.locator("a[href*='/artifacts/artifact/']").first.click()
        self.page.wait_for_url("**/artifacts/artifact/**")
        expect(self.page.get_by_text(says).first).to_be_visible()
        return self.page.locator("body").inner_text()

    def keep(self, picture: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"prefect-{picture}.png", full_page=True)

    def _goto(self, path: str) -> None:
        self.page.goto(f"{self.base}{path}", wait_until="domcontentloaded")


@contextmanager
def browser(server: Server) -> Iterator[Browser]:
    """A browser at the UI of a server."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise FileNotFoundError("chromium is not installed. On Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        page = started.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(_PATIENCE_MS)
        expect.set_options(timeout=_PATIENCE_MS)
        yield Browser(page, f"{server.ui_url}/v2")
        started.close()
