"""Fixtures of tasks: a registry in SQLite, and the classes that use it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prompt_serve.bundle import Bundle
from prompt_serve.prompts.class_features import EncodeText
from prompt_serve.prompts.prompt_file import to_bytes
from prompt_serve.service.inference.engine import Engine
from prompt_serve.service.storage.database import Database
from prompt_serve.service.storage.registry import Registry
from prompt_serve.training.clip.backbone import Backbone
from tests.service.prompts import learned_prompt
from tests.service.tasks.connected import Tasks


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'registry.db'}"  # test_registry tests SQL on both databases


@pytest.fixture
def sqlite(sqlite_url: str) -> Iterator[Database]:
    opened = Database(sqlite_url)
    yield opened
    opened.close()


@pytest.fixture
def registry(sqlite: Database) -> Registry:
    return Registry(sqlite)


@pytest.fixture
def open_tasks(
    registry: Registry, bundle: Bundle, engine: Engine
) -> Iterator[Callable[..., Tasks]]:
    """Open the tasks of one registry again, as after a restart or in another process."""
    opened: list[Tasks] = []

    def make(encode: EncodeText = engine.encode_text) -> Tasks:
        opened.append(Tasks(registry, bundle, encode))
        return opened[-1]

    yield make
    for tasks in opened:
        tasks.features.close()


@pytest.fixture
def tasks(open_tasks: Callable[..., Tasks]) -> Tasks:
    return open_tasks()


@pytest.fixture
def versions(tasks: Tasks, tiny_backbone: Backbone) -> list[str]:
    """Versions of a task "pets" that was uploaded three times, the oldest first."""
    files = [to_bytes(learned_prompt(tiny_backbone, ["cat", "dog"], seed=s)) for s in range(3)]
    return [tasks.store.upload("pets", data)[0].version for data in files]
