"""Types that openapi-typescript generates from the served document, used by openapi-fetch in node.

Needs node, npm and npm's registry (or its cache); where the registry cannot be reached, the tests
are skipped, in CI as well.
"""

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.npm import check_programs, install
from tests.service.process import Served
from tests.service.prompts import picture
from tests.service.secured_service import SecuredService

pytestmark = [pytest.mark.serve, pytest.mark.slow]
SOURCES = Path(__file__).parent / "node"
CLASSES = ["cat", "dog", "rabbit"]
WHAT = "THE TYPESCRIPT CLIENT"


@pytest.fixture(scope="module")
def program(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program in ``client.ts``, compiled with the types of the served document."""
    check_programs(WHAT)
    folder = tmp_path_factory.mktemp("node") / "client"
    shutil.copytree(SOURCES, folder, ignore=shutil.ignore_patterns("node_modules"))
    install(folder, WHAT)
    document = httpx.get(f"{served.url}/v1/openapi.json").raise_for_status()
    (folder / "openapi.json").write_text(document.text)
    _run(
        "npx", "--no-install", "openapi-typescript", "openapi.json", "-o", "schema.d.ts", cwd=folder
    )
    _run("npx", "--no-install", "tsc", cwd=folder)
    return folder / "build" / "client.js"


@pytest.fixture(params=["no-keys", "key"])
def caller(
    request: pytest.FixtureRequest, served: Served, secured: SecuredService
) -> tuple[str, list[str]]:
    """URL of a service, and its key if it has any."""
    if request.param == "no-keys":
        return served.url, []
    return secured.served.url, [secured.admin]


def test_it_classifies_scores_and_lists(program: Path, caller: tuple[str, list[str]]) -> None:
    url, keys = caller
    headers = {"x-api-key": keys[0]} if keys else {}
    body = {"name": "typescript", "class_names": CLASSES}
    httpx.post(f"{url}/v1/tasks", json=body, headers=headers).raise_for_status()
    data = picture()
    image = base64.b64encode(data).decode()
    params = {"task": "typescript"}
    png = {"content-type": "image/png", **headers}
    answer = httpx.post(f"{url}/v1/classify", params=params, content=data, headers=png).json()
    best = [one["class_name"] for one in answer["results"][0]["predictions"][0]["classes"]]

    printed = _run("node", program, f"{url}/v1", "typescript", image, *keys, cwd=program.parent)

    assert json.loads(printed) == {
        "classified": best[:2],
        "byQuery": best[:1],
        "uploaded": best,
        "scored": best,
        "listed": ["typescript"],
        "missing": "task-not-found",
    }


def test_a_missing_key_is_a_problem_with_its_code(program: Path, secured: SecuredService) -> None:
    url = f"{secured.served.url}/v1"

    done = subprocess.run(
        ["node", program, url, "typescript", "AA=="], capture_output=True, text=True, timeout=60
    )

    assert done.returncode != 0
    assert "401 not-authenticated: This needs a key." in done.stderr


def _run(*command: Any, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout
