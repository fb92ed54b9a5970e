"""Pages as people open them: in headless Chromium, without network."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Page, Request, sync_playwright

PHONE, DESKTOP = 390, 1280  # pixels wide


@contextmanager
def opened(url: str, width: int = DESKTOP, offline: bool = True) -> Iterator[Page]:
    """A page whose `errors` holds what its console reported, exceptions and failed requests.

    `offline` refuses every request but those for files and data.
    """

    def failed(request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # by the page itself, as it went elsewhere
            page.errors.append(f"asked for {request.url}: {request.failure}")

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        assert not os.environ.get("CI"), "CI installs Chromium, and it is not here"
        pytest.skip("no Chromium here: pages are not opened")
    quiet = ["--no-sandbox", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=quiet)
        page = browser.new_page(viewport={"width": width, "height": 844})
        page.errors = []
        page.on("console", lambda said: said.type == "error" and page.errors.append(said.text))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("requestfailed", failed)
        if offline:
            page.context.set_offline(True)
        page.goto(url)
        yield page
        browser.close()


def fits(page: Page) -> bool:
    """Whether nothing is wider than the window: a phone's reader never scrolls sideways."""
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def pictures(page: Page) -> list[int]:
    """The widths of the pictures as they were decoded; 0 for one that is broken."""
    return page.evaluate("[...document.images].map(image => image.naturalWidth)")
