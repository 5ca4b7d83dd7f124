"""A tab of a real browser that notes what it complains about."""

import shutil
from typing import Any

from playwright.sync_api import Browser, Locator, Page, Response

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PATIENCE_MS = 60_000
POLL_MS = 10_000  # of the page


class Watched:
    """Browser tab that collects console messages, errors and requests to other hosts."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.page: Page = browser.new_context(base_url=url, **options).new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.clock.install()  # runs on as ever
        self.complaints: list[str] = []
        self.challenges: list[str] = []  # WWW-Authenticate of refused requests
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self._note(request.url, url))
        self.page.on("response", self._note_challenge)

    def _note(self, requested: str, own: str) -> None:
        if not requested.startswith((own, "blob:", "data:")):
            self.complaints.append(f"requested another host: {requested}")

    def _note_challenge(self, response: Response) -> None:
        if response.status == 401:
            self.challenges.append(response.headers.get("www-authenticate", ""))

    def open(self, *tasks: str) -> Page:
        """Open the page and select tasks."""
        self.page.goto("/v1/ui")
        for task in tasks:
            self.page.fill("#search", task)
            self.page.locator("#tasks li", has_text=task).get_by_role("checkbox").check()
        return self.page

    def poll(self) -> None:
        """Let the time pass after which the page asks the service how it is."""
        self.page.clock.fast_forward(POLL_MS)

    @property
    def cards(self) -> Locator:
        return self.page.locator("article")
