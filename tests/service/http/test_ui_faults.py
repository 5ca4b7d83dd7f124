"""The page when things change: other tasks, many images, no service, no task, keyboard only."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from prompt_serve.prompts.prompt_file import to_bytes
from prompt_serve.training.clip.backbone import Backbone
from tests.required import program_missing
from tests.service.http.browser_tab import Watched
from tests.service.process import Served, service, stop
from tests.service.prompts import learned_prompt, picture
from tests.service.secured_service import SecuredService, make_keys
from tests.service.test_faults import status, wait_for

pytestmark = [pytest.mark.serve, pytest.mark.slow]

SAMPLES = ("Cat", "Pizza", "Basketball", "Bicycle", "Guitar", "Rainbow")
MANY = 230  # tasks; the page lists 200
CHANGED = "Out of date: the tasks or options have changed."
LOST = "Out of date: the service is not available."


def pictures(folder: Path, number: int) -> list[Path]:
    files = [folder / f"{n:03}.png" for n in range(number)]
    for file in files:
        file.write_bytes(picture())
    return files


def run_shell(command: str, folder: Path, **variables: str) -> str:
    if shutil.which("curl") is None:
        program_missing("curl is missing")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-ec", command],
        cwd=folder,
        env={**os.environ, "PATH": path, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_other(page: Page) -> None:
    page.fill("#search", "page-weather")
    page.locator("#tasks li", has_text="page-weather").get_by_role("checkbox").check()


def uncheck(page: Page) -> None:
    page.locator("#tasks li", has_text="page-fruit").get_by_role("checkbox").uncheck()


def set_top(page: Page) -> None:
    page.fill("#top", "2")
    page.press("#top", "Enter")


def wait(page: Page) -> None:
    """Change nothing: the page finds out by itself."""


@pytest.mark.parametrize(
    ("change", "expected"),
    [(uncheck, CHANGED), (uncheck, LOST), (set_top, LOST), (check_other, LOST), (wait, LOST)],
)
def test_results_that_no_longer_apply_say_so(
    browser: Browser,
    served: Served,
    tasks: None,
    images: list[Path],
    change: Callable[[Page], None],
    expected: str,
) -> None:
    tab = Watched(browser, served.url)
    page = tab.open("page-fruit")
    page.set_input_files("#files", images)
    expect(tab.cards.locator("progress")).to_have_count(3)
    assert page.locator(".outdated").count() == 0
    if change is check_other:  # the list is there before the service goes
        page.fill("#search", "page-")
        expect(page.locator("#tasks li", has_text="page-weather")).to_be_visible()
    if expected == LOST:
        page.context.set_offline(True)
    change(page)
    if change in (wait, uncheck):  # nothing is asked that would fail
        tab.poll()

    expect(tab.cards.locator(".old")).to_have_text([expected, expected])
    expect(page.locator(".outdated")).to_have_count(2)
    if expected == CHANGED:
        expect(page.locator("#status")).to_have_text("Select a task to classify the images.")
        return
    expect(page.locator("#about")).to_have_text("The service does not answer. Is it still running?")
    page.context.set_offline(False)
    tab.poll()
    expect(page.locator("#about")).to_contain_text("version")
    if change is uncheck:  # nothing to ask
        return
    expect(page.locator("#status")).to_have_text("2 of 2 images not classified, or out of date.")
    page.click("#retry")
    expect(page.locator(".outdated")).to_have_count(0)
    rows = {"set_top": 2, "check_other": 6, "wait": 3}
    expect(tab.cards.locator("progress")).to_have_count(rows[change.__name__])
    expect(page.locator("#retry")).to_be_hidden()


@pytest.mark.parametrize("tops", [[1], [2], [3], [1, 2], [2, 3, 1]])
def test_results_follow_the_options(
    browser: Browser,
    served: Served,
    tasks: None,
    tmp_path: Path,
    tops: list[int],
) -> None:
    tab = Watched(browser, served.url)
    page = tab.open("page-fruit")
    page.set_input_files("#files", pictures(tmp_path, 1))
    for number in tops:
        page.fill("#top", str(number))
        page.press("#top", "Enter")
        expect(tab.cards.locator("progress")).to_have_count(number)
        expect(page.locator("#curl")).to_contain_text(f"top_k={number}")
    expect(page.locator(".outdated")).to_have_count(0)
    assert tab.complaints == []


DROP = """([images, others]) => {
  const transfer = new DataTransfer();
  for (const name of images) transfer.items.add(new File(["x"], name, { type: "image/png" }));
  for (const [name, type] of others) transfer.items.add(new File(["x"], name, { type }));
  return transfer;
}"""


@pytest.mark.parametrize(
    ("chosen", "dropped", "others", "left_out"),
    [
        (4, ["5.png"], [], ""),
        (1, [], [], ""),
        (2, ["a.png", "b.png", "c.png"], [["notes.txt", "text/plain"]], "notes.txt"),
        (1, [], [["a.pdf", "application/pdf"], ["b.mp4", "video/mp4"]], "a.pdf, b.mp4"),
        (1, ["x.png"], [[f"{n}.txt", "text/plain"] for n in range(6)],
         "0.txt, 1.txt, 2.txt, 3 more"),
        (1, [], [["<b>.txt", "text/html"], ["unknown", ""]], "<b>.txt"),
    ],
)  # fmt: skip
def test_all_images_are_counted_and_the_others_named(
    browser: Browser,
    served: Served,
    tmp_path: Path,
    chosen: int,
    dropped: list[str],
    others: list[list[str]],
    left_out: str,
) -> None:
    tab = Watched(browser, served.url)
    page = tab.open()
    page.set_input_files("#files", pictures(tmp_path, chosen))
    if dropped or others:
        transfer = page.evaluate_handle(DROP, [dropped, others])
        page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    total = chosen + len(dropped) + sum(kind == "" for _, kind in others)

    expect(tab.cards).to_have_count(total)
    expect(page.locator("#count")).to_have_text("1 image" if total == 1 else f"{total} images")
    expected = f"Left out, not images: {left_out}" if left_out else ""
    expect(page.locator("#left-out")).to_have_text(expected)
    assert page.locator("#left-out b").count() == 0
    assert page.input_value("#files") == ""  # the browser's own count would be another one
    page.click("#clear")
    expect(page.locator("#count")).to_have_text("none")
    expect(tab.cards).to_have_count(0)
    expect(page.locator("#left-out")).to_be_empty()


def move_away(file: Path) -> None:
    file.rename(file.with_suffix(".away"))


def replace(file: Path) -> None:
    shutil.copy2(file, file.with_suffix(".away"))
    file.write_bytes(b"other bytes")


@pytest.mark.parametrize("spoil", [move_away, replace])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_error_can_be_retried(
    browser: Browser,
    served: Served,
    tasks: None,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    number: int,
) -> None:
    tab = Watched(browser, served.url)
    page = tab.open()
    files = pictures(tmp_path, number)
    page.set_input_files("#files", files)
    expect(tab.cards.locator("img")).to_have_count(number)
    spoil(files[0])
    check_other(page)
    error = tab.cards.first.locator(".error")
    expect(error).to_contain_text("The browser cannot read this file.")
    status = page.locator("#status")
    noun = "image" if number == 1 else "images"
    expect(status).to_have_text(f"1 of {number} {noun} could not be read.")
    expect(page.locator("progress")).to_have_count(3 * (number - 1))

    files[0].with_suffix(".away").replace(files[0])
    page.get_by_role("button", name="Retry 000.png").click()
    expect(error).to_have_count(0)
    expect(page.locator("progress")).to_have_count(3 * number)
    expect(status).to_have_text("")


@pytest.fixture(scope="module")
def many_tasks(served: Served) -> Iterator[None]:
    names = [f"kb-{n:03}" for n in range(MANY)]
    body = {"class_names": ["a", "b"]}
    with httpx.Client(base_url=served.url, timeout=60) as http, ThreadPoolExecutor(8) as pool:
        for done in pool.map(lambda n: http.post("/v1/tasks", json={"name": n, **body}), names):
            done.raise_for_status()
        yield
        list(pool.map(lambda name: http.delete(f"/v1/tasks/{name}"), names))


def tab_stops(page: Page) -> list[str]:
    """Press Tab from the search field to the end of the page."""
    page.focus("#search")
    reached: list[str] = []
    while not reached or reached[-1] != "copy":
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("(({id, className, localName}) => id || className || localName)"
                          "(document.activeElement)")
        )  # fmt: skip
        assert len(reached) < 100
    return reached


def test_tab_passes_any_number_of_tasks_in_two_steps(
    browser: Browser, served: Served, many_tasks: None
) -> None:
    page = Watched(browser, served.url).open()
    page.fill("#search", "kb-none")
    expect(page.locator("#tasks li")).to_have_count(0)
    without = tab_stops(page)
    stops = []
    for search, rows in (("kb-", 200), ("kb-1", 100), ("kb-01", 10), ("kb-017", 1), ("kb-2", 30)):
        page.fill("#search", search)
        expect(page.locator("#tasks li")).to_have_count(rows)
        stops.append(tab_stops(page))

    assert {"files", "top", "clear", "curl"} <= set(without)
    assert all(reached == ["input", "summary", *without] for reached in stops)


def test_arrow_keys_move_through_the_tasks(
    browser: Browser, served: Served, many_tasks: None
) -> None:
    page = Watched(browser, served.url).open()
    page.fill("#search", "kb-10")
    expect(page.locator("#tasks li")).to_have_count(10)
    page.focus("#search")
    page.keyboard.press("Tab")
    steps = {"ArrowDown": 1, "ArrowUp": 0, "End": 9, "Home": 0}
    at = 0
    for key in ("ArrowDown", "ArrowDown", "ArrowUp", "End", "ArrowDown", "ArrowUp", "Home",
                "ArrowUp", "ArrowDown"):  # fmt: skip
        page.keyboard.press(key)
        moved = {"ArrowDown": at + 1, "ArrowUp": at - 1}.get(key, steps[key])
        at = min(max(moved, 0), 9)
        expect(page.locator(f"#tasks input[value=kb-10{at}]")).to_be_focused()
    expect(page.locator("#tasks-help")).to_be_visible()
    page.keyboard.press("Space")
    expect(page.locator("#selected")).to_have_text("1 selected")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")

    expect(page.locator("#tasks li").nth(at + 1).locator(".facts")).to_contain_text("zero-shot, ")
    expect(page.locator("#tasks li").nth(at + 1).get_by_role("checkbox")).not_to_be_checked()
    page.keyboard.press("Shift+Tab")
    expect(page.locator(f"#tasks input[value=kb-10{at + 1}]")).to_be_focused()


@pytest.mark.parametrize("control", ["input", "summary"])
def test_a_list_shown_anew_keeps_the_focus_and_open_details(
    browser: Browser, served: Served, many_tasks: None, control: str
) -> None:
    page = Watched(browser, served.url).open()
    page.fill("#search", "kb-10")
    expect(page.locator("#tasks li")).to_have_count(10)
    row = page.locator("#tasks li", has_text="kb-104")
    row.locator("summary").click()
    expect(row.locator(".facts")).to_contain_text("zero-shot, ")
    row.locator(control).focus()
    page.evaluate("document.getElementById('search').value = 'kb-1'; showTasks()")

    expect(page.locator("#tasks li")).to_have_count(100)
    expect(row.locator(control)).to_be_focused()
    expect(row.locator(".facts")).to_contain_text("zero-shot, ")
    with httpx.Client(base_url=served.url) as http:
        body = {"name": "kb-104", "class_names": ["a", "b", "c"]}
        http.post("/v1/tasks", json=body).raise_for_status()
        page.evaluate("showTasks()")

        expect(row.locator("small")).to_have_text("3 classes")
        expect(row.locator(control)).to_be_focused()
        http.post("/v1/tasks", json={**body, "class_names": ["a", "b"]}).raise_for_status()


@pytest.mark.parametrize(
    ("images", "tasks", "shown"),
    [(1, 1, (1, 1)), (3, 2, (3, 2)), (4, 1, (3, 1)), (150, 1, (3, 1)), (2, 10, (2, 8)),
     (150, 30, (3, 8))],
)  # fmt: skip
def test_the_curl_command_is_bounded_and_works(
    browser: Browser,
    served: Served,
    many_tasks: None,
    tmp_path: Path,
    images: int,
    tasks: int,
    shown: tuple[int, int],
) -> None:
    page = Watched(browser, served.url).open()
    page.fill("#search", "kb-2")
    expect(page.locator("#tasks li")).to_have_count(30)
    for n in range(tasks):
        page.locator("#tasks input").nth(n).check()
    page.set_input_files("#files", pictures(tmp_path, images))
    expect(page.locator("#count")).to_have_text(re.compile(f"^{images} image"))

    curl, note = page.inner_text("#curl"), page.inner_text("#curl-note")
    assert (curl.count("image=@"), curl.count("task=")) == shown
    assert len(curl.splitlines()) <= 2 + sum(shown)
    assert (f"{shown[0]} of {images} images" in note) == (shown[0] < images)
    assert (f"{shown[1]} of {tasks} tasks" in note) == (shown[1] < tasks)
    answer = run_shell(curl, tmp_path)
    assert answer.count('"task":') == shown[0] * shown[1]


NAMES = ("it's.png", "a,b.png", "a;type=b.png", 'q"uote.png', "back\\slash.png", "s p.png",
         "-d.png", "$HOME.png", "`id`.png", "ü.png", "<b>.png", "all'\",;\\ .png")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_curl_command_sends_files_of_any_name(
    browser: Browser, served: Served, tasks: None, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(picture())
    tab = Watched(browser, served.url)
    page = tab.open("page-fruit")
    page.set_input_files("#files", tmp_path / name)
    expect(tab.cards.locator("h3")).to_have_text(name)

    assert '"task":"page-fruit"' in run_shell(page.inner_text("#curl"), tmp_path)


def test_samples_need_no_image_of_ones_own(
    browser: Browser, served: Served, tasks: None, tmp_path: Path
) -> None:
    tab = Watched(browser, served.url)
    page = tab.open("page-fruit")
    for n, name in enumerate(SAMPLES, 1):
        page.get_by_role("button", name=name, exact=True).click()
        expect(tab.cards).to_have_count(n)
        expect(tab.cards.nth(n - 1).locator("h3")).to_have_text(f"{name.lower()}.png")
        expect(tab.cards.nth(n - 1).locator("progress")).to_have_count(3)
        shown = tab.cards.nth(n - 1).locator("img").evaluate("image => image.naturalWidth")
        assert shown == 64
    assert tab.complaints == []

    answer = run_shell(page.inner_text("#curl"), tmp_path)
    assert answer.count('"task":"page-fruit"') == 3
    page.get_by_role("link", name="licenses").click()
    expect(page.locator("body")).to_contain_text("`emojione`")


def test_the_curl_command_has_the_key_in_a_variable(
    browser: Browser, secured: SecuredService, tmp_path: Path
) -> None:
    with secured.client(secured.admin) as http:
        body = {"name": "page-key", "class_names": ["a", "b"]}
        http.post("/v1/tasks", json=body).raise_for_status()
    tab = Watched(browser, secured.served.url)
    tab.page.goto("/v1/ui")
    tab.page.fill("#key", secured.infer)
    tab.page.keyboard.press("Enter")
    expect(tab.page.locator("#about")).to_contain_text("version")
    tab.page.check("text=page-key")
    tab.page.get_by_role("button", name="Cat", exact=True).click()
    expect(tab.cards.locator("progress")).to_have_count(2)

    command = tab.page.inner_text("#curl")
    assert secured.infer not in command
    answer = run_shell(command, tmp_path, PROMPT_SERVE_API_KEY=secured.infer)
    assert '"task":"page-key"' in answer
    assert '"code":"not-authenticated"' in run_shell(command, tmp_path, PROMPT_SERVE_API_KEY="")


def test_an_empty_service_leads_to_its_first_task(
    browser: Browser, tiny_bundle: Path, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    prompt = learned_prompt(tiny_backbone, ["ripe", "raw"])
    (tmp_path / "things.safetensors").write_bytes(to_bytes(prompt))
    with service(tmp_path, tiny_bundle, decode_threads="1") as fresh:
        _make_first_tasks(browser, fresh, tmp_path, key="")
        httpx.delete(f"{fresh.url}/v1/tasks/things").raise_for_status()
        key = make_keys(tmp_path, first="admin")["first"]
        wait_for("the key to be asked for", lambda: status(fresh, "v1/tasks") == 401)
        tab = _make_first_tasks(browser, fresh, tmp_path, key=key)
        stop(fresh.process)

    tab.poll()
    expect(tab.page.locator("#about")).to_have_text(
        "The service does not answer. Is it still running?"
    )
    expect(tab.cards.locator(".old")).to_have_text(LOST)


def _make_first_tasks(browser: Browser, fresh: Served, folder: Path, key: str) -> Watched:
    """Make a task by each of the commands that the page of an empty service shows, and ask it."""
    tab = Watched(browser, fresh.url, viewport={"width": 400, "height": 800})
    page = tab.page
    page.goto("/v1/ui")
    if key:
        page.fill("#key", key)
        page.keyboard.press("Enter")
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("#empty-key")).to_be_visible(visible=bool(key))
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    create = page.inner_text("#create")
    assert ("$PROMPT_SERVE_API_KEY" in create) == bool(key)
    run_shell(create, folder, PROMPT_SERVE_API_KEY=key)
    tab.poll()
    expect(page.locator("#tasks li")).to_have_text(re.compile("things"))
    expect(page.locator("#empty")).to_be_hidden()

    headers = {"x-api-key": key} if key else {}
    httpx.delete(f"{fresh.url}/v1/tasks/things", headers=headers).raise_for_status()
    tab.poll()
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("#tasks li")).to_have_count(0)
    *_, upload = page.inner_text("#learn").splitlines()
    upload = upload.replace("prompt-serve", f"{sys.executable} -m prompt_serve", 1)
    environment = {"PROMPT_SERVE_API_KEY": key, "PYTHONPATH": os.pathsep.join(sys.path)}
    run_shell(upload, folder, **environment)
    tab.poll()
    expect(page.locator("#tasks li")).to_have_text(re.compile("things"))
    page.check("#tasks input")
    page.get_by_role("button", name="Guitar", exact=True).click()
    expect(tab.cards.locator("progress")).to_have_count(2)
    return tab
