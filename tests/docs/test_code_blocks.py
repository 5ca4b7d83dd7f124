"""The commands and programs of every page run in order, and print what the page shows.

Pages that create API keys have a home of their own and start the service themselves. All others
share one service; its tasks are removed before each page.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from prompt_serve.service.storage.database import Database
from prompt_serve.service.storage.tables import (
    change,
    class_features,
    kept_version,
    prompt_file,
    task,
    task_tag,
)
from tests.docs.pages import (
    NOT_RUN,
    PAGES,
    STARTS_SERVICE,
    Block,
    all_blocks,
    blocks_of,
    json_documents,
    missing_lines,
    same_document,
)
from tests.docs.world import make_world
from tests.required import program_missing
from tests.service.process import ROOT, Served, free_port, stop, wait_until_ready

pytestmark = [pytest.mark.serve, pytest.mark.slow]

# Version of the task that pages create from these class names; it changes with every release.
SHOWN_VERSION = "74c8bf69"
PETS = {"name": "pets", "class_names": ["cat", "dog", "hamster"]}
SERVE = "bentoml serve prompt_serve.service.bento:PromptServe"
PROGRAMS = ("curl", "jq", "openssl")
FIRST_START_TIMEOUT_S = 300
TIMEOUT_S = 300

# Tasks that a page presumes, by the file or the class names they are made of.
TASKS = {
    "docs/how-to/keys.md": {"pets": "cat dog hamster"},
    "docs/how-to/many-tasks.md": {"pets": "cat dog hamster", "colors": "red blue"},
    "docs/how-to/score.md": {"pets": "pets.safetensors", "colors": "red blue"},
}
LONG = {
    "docs/how-to/backup.md": "starts services of its own",
    "docs/how-to/keys.md": "starts services of its own",
    "docs/how-to/many-tasks.md": "starts services of its own",
    "docs/how-to/mlflow.md": "makes a database of MLflow",
    "docs/how-to/signing.md": "starts services of its own",
    "docs/how-to/tasks.md": "starts services of its own",
    "docs/api/training.md": "learns a prompt",
    "docs/how-to/data-as-you-have-it.md": "compares methods",
    "docs/how-to/train-many.md": "learns twelve tasks",
    "docs/how-to/train.md": "learns nine tasks",
    "docs/protocols.md": "runs a protocol",
    "docs/datasets.md": "runs a protocol",
    "docs/report.md": "runs a protocol",
    "docs/tutorial.md": "learns two tasks",
}
# A block is not run because it needs one of these.
REASONS = (
    "a model hub",
    "a package index",  # the tests run in an environment that has the package
    "a container engine",
    "a cluster",
    "the papers' datasets",
    "36 MB from npm",
    "hours",
    "another host",
    "a GPU",
    "an environment for each verb",
)
OTHERS = ("a benchmark", "each line is for another shell")  # timings belong in benchmarks/
RUN = [page for page in PAGES if any(block.runs for block in all_blocks(page))]


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@dataclass
class Shell:
    """What a reader has: a folder, an environment, and a service once it was started.

    Variables that a block exports are kept for the blocks that follow; ``ps_...`` stands for the
    first API key that was printed, of the role admin.
    """

    folder: Path
    environment: dict[str, str]
    service: Served | None = None
    version: str = SHOWN_VERSION
    key: str = "ps_..."
    exports: Path = field(init=False)

    def __post_init__(self) -> None:
        self.exports = self.folder / ".exports"
        self.exports.touch()

    def run(self, block: Block) -> str:
        """Run a block; return what it printed."""
        text = block.text.replace("ps_...", self.key).replace(SHOWN_VERSION, self.version)
        environment = self.environment
        if self.service is not None:
            host = self.service.url.removeprefix("http://")
            text = re.sub(r"\b(localhost|server|other):3000\b", host, text)
            environment = environment | {"PROMPT_SERVE_URL": self.service.url}
        # A database server is not needed to import; the schemes differ in nothing else.
        text = text.replace("postgresql://ps@db/tasks", f"sqlite:///{self.folder}/other.db")
        script = f". {self.exports}\n{text}\nexport -p > {self.exports}\n"
        python = block.language == "python"
        done = subprocess.run(
            [sys.executable, "-c", text] if python else ["bash", "-euc", script],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == 0, f"line {block.line}: {text}\n{done.stdout}{done.stderr}"
        created = re.search(r"\bps_[\w-]{8,}", done.stdout)
        if created is not None and self.key == "ps_...":
            self.key = created[0]
            self.environment = self.environment | {"PROMPT_SERVE_API_KEY": self.key}
        return done.stdout


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A fresh home, feature cache and working folder."""
    with tempfile.TemporaryDirectory(prefix="prompt-serve-docs-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def environment(home: Path) -> dict[str, str]:
    """What a user's shell has after the installation, and nothing of this process's settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PROMPT_SERVE_", "BENTOML"))}
    (home / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\n")
    return {
        **kept,
        "HOME": str(home),
        "CURL_HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "default",
        # Training on a busy machine is far slower with a thread per core than with one.
        "OMP_NUM_THREADS": "1",
        "BENTOML_HOME": str(home / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "PROMPT_SERVE_HOME": str(home / "home"),
        "PROMPT_SERVE_CACHE": str(home / "cache"),
    }


@pytest.fixture(scope="module")
def world(home: Path, environment: dict[str, str]) -> Path:
    return make_world(home / "world", environment)


@pytest.fixture(scope="module")
def shared(home: Path, environment: dict[str, str]) -> Iterator[Served]:
    with started(SERVE, home, environment) as running:
        yield running


@contextlib.contextmanager
def started(command: str, home: Path, environment: dict[str, str]) -> Iterator[Served]:
    """Start the service by the command of a page, on another port."""
    port = free_port()
    log = home / "service.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command.split(), "--port", str(port)],
            cwd=home,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = Served(f"http://127.0.0.1:{port}", home, log, process)
    try:
        wait_until_ready(running, FIRST_START_TIMEOUT_S)
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            stop(process)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=_name(page), marks=[pytest.mark.long] if _name(page) in LONG else [])
        for page in RUN
    ],
)
def test_blocks_print_what_the_page_shows(
    page: Path,
    home: Path,
    environment: dict[str, str],
    world: Path,
    request: pytest.FixtureRequest,
) -> None:
    blocks = [block for block in blocks_of(page) if block.runs]
    for program in PROGRAMS:
        if shutil.which(program) is None and any(program in block.text for block in blocks):
            program_missing(f"THE PAGE IS NOT RUN HERE: apt-get install {program}")
    folder = home / _name(page).replace("/", "-")
    shutil.copytree(world, folder)
    (folder / "prompt_serve").symlink_to(ROOT / "prompt_serve")
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    shell = Shell(folder, environment)
    with contextlib.ExitStack() as stack:
        own_home = any(re.search("keys create|registry restore", block.text) for block in blocks)
        if own_home:
            shell.environment = environment | {"PROMPT_SERVE_HOME": str(folder / "home")}
        elif any(_asks_service(block) for block in blocks):
            shell.service = request.getfixturevalue("shared")
            shell.version = _version_of_pets(shell.service)
            _remove_all_tasks(home / "home" / "registry.db")
            _serve_tasks(shell, TASKS.get(_name(page), {}))

        for block in blocks:
            if block.comment != STARTS_SERVICE:
                printed = shell.run(block)
            elif own_home:
                command = block.text.strip()
                shell.service = stack.enter_context(started(command, folder, shell.environment))
                _serve_tasks(shell, TASKS.get(_name(page), {}))
                continue
            else:
                assert block.text.strip() == SERVE, "the shared service has another command"
                continue
            where = f"{_name(page)}:{block.line} shows"
            missing = missing_lines(block.output, printed)
            assert not missing, f"{where} {missing}; printed was:\n{printed}"
            if block.answer is not None:
                answers = json_documents(printed)
                assert any(same_document(block.answer, one) for one in answers), (
                    f"{where} not {answers}"
                )


def _asks_service(block: Block) -> bool:
    verbs = r"prompt-serve (tasks|classify|score|registry import)"
    return re.search(rf"{verbs}|localhost:3000", block.text) is not None


def _version_of_pets(service: Served) -> str:
    created = httpx.post(f"{service.url}/v1/tasks", json=PETS, timeout=60).raise_for_status()
    return str(created.json()["version"])[: len(SHOWN_VERSION)]


def _serve_tasks(shell: Shell, sources: Mapping[str, str]) -> None:
    for name, source in sources.items():
        made = f"upload {source} --name {name}" if "." in source else f"create {name} {source}"
        shell.run(Block(language="sh", text=f"prompt-serve tasks {made}", comment="", line=0))


def _remove_all_tasks(registry: Path) -> None:
    """Empty a registry that a service has open; it looks at the revision before each request."""
    with Database(f"sqlite:///{registry}").write() as connection:
        for table in (kept_version, task_tag, task, change, class_features, prompt_file):
            connection.execute(table.delete())


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_blocks_that_are_not_run_say_why(page: Path) -> None:
    for block in all_blocks(page):
        if block.comment.startswith(NOT_RUN):
            reason = block.comment.removeprefix(NOT_RUN).strip()
            known = reason in OTHERS or reason.removeprefix("needs ") in REASONS
            assert known, f"{_name(page)}:{block.line}: {reason}"


def test_the_pages_of_the_tables_above_exist() -> None:
    assert {*TASKS, *LONG} <= {_name(page) for page in RUN}
