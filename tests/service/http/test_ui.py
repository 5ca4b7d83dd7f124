"""The pages at /v1/ui and /v1/docs in a real browser, against a started service."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from prompt_serve.prompts.prompt_file import to_bytes
from prompt_serve.training.clip.backbone import Backbone
from tests.service.http.browser_tab import PATIENCE_MS, Watched
from tests.service.process import Served
from tests.service.prompts import learned_prompt
from tests.service.secured_service import SecuredService, open_keys
from tests.service.tasks.test_multi_label import label_vectors, multi_label_prompt
from tests.service.tasks.test_prompt_kinds import put

ABOUT = re.compile("tasks?, version")
PAGES = ("/v1/ui", "/v1/docs")

pytestmark = [pytest.mark.serve, pytest.mark.slow]


@pytest.mark.parametrize("width", [1280, 400], ids=["desktop", "phone"])
def test_tasks_are_selected_images_added_and_predictions_shown(
    browser: Browser, served: Served, tasks: None, images: list[Path], width: int
) -> None:
    tab = Watched(browser, served.url, viewport={"width": width, "height": 800})
    page = tab.page
    page.goto("/v1/ui")
    page.fill("#search", "page-w")
    expect(page.locator("#tasks li")).to_have_count(1, timeout=PATIENCE_MS)
    page.check("text=page-weather")
    page.fill("#search", "page-")
    page.check("text=page-fruit")
    page.set_input_files("#files", images)

    cards = page.locator("article")
    expect(cards).to_have_count(2, timeout=PATIENCE_MS)
    expect(cards.nth(0).locator("h4")).to_have_text(["page-weather", "page-fruit"])
    expect(cards.nth(0).locator("progress")).to_have_count(6)
    percent = [float(t.rstrip("%")) for t in cards.nth(0).locator("text=/%$/").all_inner_texts()]
    assert 99 < sum(percent[:3]) < 101
    expect(cards.nth(1).locator(".error")).to_contain_text("not an image in a format we read")
    expect(page.locator("#status")).to_have_text("1 of 2 images could not be read.")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.complaints == []

    curl = page.inner_text("#curl")
    assert curl.startswith(f"curl {served.url}/v1/classify")
    assert "-F 'image=@it'\\''s good.png'" in curl
    assert "-F task=page-weather" in curl


MEASURED = {
    "val": {"accuracy": 0.9, "images": 20, "per_class": [1.0, 0.9, 0.8], "interval": [0.7, 0.97]},
    "test": {
        "accuracy": 0.612, "images": 85, "zero_shot_accuracy": 0.4, "interval": [0.506, 0.708],
        "per_class": [0.9, None, 0.25], "confusions": [[2, 0, 17], [0, 2, 3]],
    },
    "images": {"train": 40},
    "warnings": ["Never predicted (test): <b>soft</b>."],
}  # fmt: skip


@pytest.mark.parametrize("width", [1280, 400], ids=["desktop", "phone"])
@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (
            MEASURED,
            ["val: 90.0% of 20 images, 95 % interval 70.0% to 97.0%",
             "test: 61.2% of 85 images, 95 % interval 50.6% to 70.8%; class names alone 40.0%",
             "Most confused: soft as ripe (17), ripe as soft (3)", "soft25.0%", "ripe90.0%",
             "Never predicted (test): <b>soft</b>."],
        ),
        ({}, ["The prompt file holds no measured accuracy."]),
        ({"accuracy": 0.5, "note": "by hand"}, ["holds no measured accuracy"]),
        ({"test": {"accuracy": 0.5, "images": 8}}, ["test: 50.0% of 8 images"]),
        ({"test": {"accuracy": 0.5, "images": 8, "per_class": [0.5], "confusions": [[7, 0, 1]]}},
         ["test: 50.0% of 8 images", "ripe50.0%"]),
    ],
)  # fmt: skip
def test_the_page_shows_what_was_measured_of_a_task(
    browser: Browser,
    served: Served,
    http: httpx.Client,
    tiny_backbone: Backbone,
    metrics: dict[str, Any],
    expected: list[str],
    width: int,
) -> None:
    prompt = replace(learned_prompt(tiny_backbone, ["ripe", "raw", "soft"]), metrics=metrics)
    http.put("/v1/tasks/page-facts", content=to_bytes(prompt)).raise_for_status()
    assert http.get("/v1/tasks/page-facts").json()["metrics"] == metrics
    tab = Watched(browser, served.url, viewport={"width": width, "height": 800})
    tab.page.goto("/v1/ui")
    row = tab.page.locator("#tasks li", has_text="page-facts")
    row.locator("summary").focus()
    tab.page.keyboard.press("Enter")

    facts = row.locator(".facts")
    expect(facts).to_contain_text("dip, ", timeout=PATIENCE_MS)
    for text in expected:
        expect(facts).to_contain_text(text)
    assert facts.locator("b").count() == 0
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.complaints == []


def test_labels_of_a_multi_label_task_are_marked(
    browser: Browser,
    served: Served,
    http: httpx.Client,
    tiny_backbone: Backbone,
    images: list[Path],
) -> None:
    for name, offsets in (("page-labels", [9, -9, 9]), ("page-none", [-9, -9, -9])):
        found = replace(label_vectors(4), offsets=np.array(offsets, np.float16))
        put(http, name, multi_label_prompt(tiny_backbone, found))
    tab = Watched(browser, served.url)
    page = tab.page
    page.goto("/v1/ui")
    for name in ("page-labels", "page-none"):
        page.fill("#search", name)
        page.check(f"text={name}")
    page.set_input_files("#files", images[:1])

    card = page.locator("article").first
    expect(card.locator("h4")).to_have_text(["page-labels", "page-none no label"])
    expect(card.locator(".given")).to_have_count(2, timeout=PATIENCE_MS)
    expect(card.locator(".not-given")).to_have_count(4)
    assert {text.split("\n")[0] for text in card.locator(".given").all_inner_texts()} == {
        "cat", "hamster",
    }  # fmt: skip
    assert tab.complaints == []


@pytest.mark.parametrize("role", ["infer", "admin"])
def test_the_page_asks_for_a_key_itself(
    browser: Browser, secured: SecuredService, role: str
) -> None:
    right: str = getattr(secured, role)
    tab = Watched(browser, secured.served.url)
    page = tab.page
    answer = page.goto("/v1/ui")
    assert answer is not None
    assert answer.status == 200
    expect(page.locator("#key-form")).to_be_visible()
    expect(page.locator("#about")).to_have_text("Enter a key to use the service.")
    expect(page.locator("#key-note")).to_be_empty()
    assert page.locator("#empty").is_hidden()
    unknown = "ps_" + "0" * 12 + right[15:]
    wrong = {
        "hunter2": "The key is malformed.",
        right + "x": "The key is malformed.",
        right.upper(): "The key is malformed.",
        unknown: "The key is unknown.",
        right[:-2] + ("AA" if right[-2:] != "AA" else "BB"): "The key is unknown.",
    }
    for key, reason in wrong.items():
        with page.expect_response(lambda answer: answer.url.endswith("/info")):
            page.fill("#key", key)
            page.keyboard.press("Enter")
        expect(page.locator("#key-note")).to_have_text(reason)
        assert key not in page.content()

    page.fill("#key", right)
    page.keyboard.press("Enter")
    expect(page.locator("#about")).to_contain_text(ABOUT)
    expect(page.locator("#key-form")).to_be_hidden()
    assert '-H "Authorization: Bearer $PROMPT_SERVE_API_KEY"' in page.inner_text("#curl")
    assert right not in page.content()
    assert len(tab.challenges) == 1 + len(wrong)
    assert all(challenge.startswith("Bearer ") for challenge in tab.challenges)


def test_the_key_of_the_documentation_opens_the_page_as_well(
    browser: Browser, secured: SecuredService
) -> None:
    """The browser asks for it at /v1/docs and then sends it by itself; curl does not."""
    credentials = {"username": "any", "password": secured.infer}
    page = Watched(browser, secured.served.url, http_credentials=credentials).page
    page.goto("/v1/docs")
    page.wait_for_selector(".opblock")
    page.goto("/v1/ui")

    expect(page.locator("#about")).to_contain_text(ABOUT)
    expect(page.locator("#curl")).to_contain_text("Bearer $PROMPT_SERVE_API_KEY")
    assert page.locator("#key-form").is_hidden()


def test_a_key_that_is_revoked_while_the_page_is_open_is_asked_for_again(
    browser: Browser, secured: SecuredService
) -> None:
    with open_keys(secured.served.home) as keys:
        token, _ = keys.create("of-the-page", "infer")
        tab = Watched(browser, secured.served.url)
        page = tab.page
        page.goto("/v1/ui")
        page.fill("#key", token)
        page.keyboard.press("Enter")
        expect(page.locator("#about")).to_contain_text(ABOUT)
        keys.revoke("of-the-page")

    tab.poll()
    expect(page.locator("#key-form")).to_be_visible()
    expect(page.locator("#key-note")).to_have_text("Key 'of-the-page' is revoked.")


def test_the_api_documentation_works_without_any_other_host(
    browser: Browser, served: Served
) -> None:
    tab = Watched(browser, served.url)
    tab.page.goto("/v1/docs")
    tab.page.wait_for_selector(".opblock")
    shown = tab.page.locator(".opblock-summary-path").all_inner_texts()

    assert any("classify" in path for path in shown)
    assert any("tasks" in path for path in shown)
    assert tab.complaints == []


@pytest.mark.parametrize("path", PAGES)
def test_pages_allow_nothing_but_their_own_files(http: httpx.Client, path: str) -> None:
    page = http.get(path)
    policy = page.headers["content-security-policy"]

    assert page.status_code == 200
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r"https?://|<script>|style=| on\w+=", page.text)
    for file in re.findall(r'(?:src|href)="((?:ui|docs)/[^"]+)"', page.text):
        got = http.get(f"/v1/{file}")
        assert got.status_code == 200
        assert got.headers["x-content-type-options"] == "nosniff"
        again = http.get(f"/v1/{file}", headers={"if-none-match": got.headers["etag"]})
        assert again.status_code == 304
