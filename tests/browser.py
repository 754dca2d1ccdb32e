"""A headless Chromium for tests of pages, and what it must never do: complain, or ask another host."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, sync_playwright

#: Names of the browser; the variable CHROMIUM names another.
_NAMES = ("chromium", "chromium-headless-shell", "chrome-headless-shell", "google-chrome", "chromium-browser")
PATH = next(filter(None, map(shutil.which, (os.environ.get("CHROMIUM", ""), *_NAMES))), None)
_ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
#: What the console says when a page is refused on purpose.
_OF_STATUS = "Failed to load resource: the server responded with a status of"


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser, for the length of the block."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PATH, args=list(_ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A page, and what should not be: `complaints` of its console, `strangers` that it asked."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.strangers: list[str] = []
        host = urlsplit(url).netloc
        page.on("console", lambda message: self._logged(message.type, message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self._requested(request.url, host))

    def _logged(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not text.startswith(_OF_STATUS):
            self.complaints.append(text)

    def _requested(self, url: str, host: str) -> None:
        if not url.startswith("data:") and urlsplit(url).netloc != host:
            self.strangers.append(url)

    def check(self) -> None:
        """Fail if anything was not as it should be."""
        assert self.complaints == []
        assert self.strangers == []
