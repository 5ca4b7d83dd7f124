"""A browser, and tasks and images for the page."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.required import program_missing
from tests.service.http.browser_tab import CHROMIUM, PATIENCE_MS
from tests.service.prompts import picture


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        program_missing("THE PAGE IS NOT TESTED HERE: apt-get install chromium")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """The module's browser; the tabs of a test are closed after it, or all would poll on."""
    yield chromium
    for context in chromium.contexts:
        context.close()


@pytest.fixture
def tasks(http: httpx.Client) -> Iterator[None]:
    names = ("page-fruit", "page-weather")
    for name in names:
        body = {"name": name, "class_names": [f"{name} {n}" for n in range(3)]}
        http.post("/v1/tasks", json=body).raise_for_status()
    yield
    for name in names:
        http.delete(f"/v1/tasks/{name}")


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    good, bad = tmp_path / "it's good.png", tmp_path / "bad.jpg"
    good.write_bytes(picture())
    bad.write_bytes(b"no image")
    return [good, bad]
