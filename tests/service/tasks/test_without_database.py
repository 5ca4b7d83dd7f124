"""Names that were resolved before are resolved without the database, up to the limit."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prompt_serve.errors import NotReady
from prompt_serve.prompts.prompt_file import to_bytes
from prompt_serve.service.request_context import RequestContext, request_scope
from prompt_serve.service.tasks.resolver import TaskResolver
from prompt_serve.training.clip.backbone import Backbone
from tests.service.prompts import learned_prompt
from tests.service.tasks.connected import Tasks

NAMES = ("pets", "birds", "cars")


@pytest.fixture
def stored(tasks: Tasks, tiny_backbone: Backbone) -> dict[str, str]:
    """Versions of three tasks with a tag, by name."""
    files = {
        name: to_bytes(learned_prompt(tiny_backbone, ["a", name], seed=seed))
        for seed, name in enumerate(NAMES)
    }
    return {
        name: tasks.store.upload(name, data, tags=["eu"])[0].version for name, data in files.items()
    }


def resolver_of(tasks: Tasks, limit_s: float) -> TaskResolver:
    return TaskResolver(tasks.editor._registry, tasks.features, tasks.cache, limit_s)


@contextmanager
def outage(folder: Path) -> Iterator[None]:
    """Move the registry away for the time of the block."""
    path, away = folder / "registry.db", folder / "away.db"
    path.rename(away)
    yield
    away.rename(path)


def test_names_tags_and_all_outlive_an_outage(
    tasks: Tasks, stored: dict[str, str], tmp_path: Path
) -> None:
    resolver = resolver_of(tasks, 300)
    resolver.resolve(NAMES)
    resolver.versions_of_backbone("eu")
    resolver.versions_of_backbone()
    context = RequestContext()
    with outage(tmp_path), request_scope(context):
        assert [task.version for task in resolver.resolve(NAMES)] == list(stored.values())
        assert resolver.versions_of_backbone("eu") == stored
        assert resolver.versions_of_backbone() == stored
        assert resolver.tolerates_outage
        assert 0 < context.stale_s < 300
        for unknown in ("boats", "pets@" + "0" * 8, ""):
            with pytest.raises(NotReady):
                resolver.resolve([unknown])
        with pytest.raises(NotReady):
            resolver.versions_of_backbone("us")


@pytest.mark.parametrize("changes", [1, 2, 5, 20])
@pytest.mark.parametrize("keeps_known", [False, True])
def test_what_was_asked_for_before_changes_outlives_an_outage(
    tasks: Tasks, stored: dict[str, str], tmp_path: Path, changes: int, keeps_known: bool
) -> None:
    resolver = resolver_of(tasks, 300)
    resolver.resolve(NAMES)
    resolver.versions_of_backbone("eu")
    for number in range(changes):
        tasks.editor.set_tags("cars", [f"t{number}"])
        resolver.resolve(["pets"])
    if keeps_known:
        resolver.keep_known()
    with outage(tmp_path):
        assert [task.version for task in resolver.resolve(NAMES)] == list(stored.values())
        expected = {name for name in NAMES if name != "cars" or not keeps_known}
        assert set(resolver.versions_of_backbone("eu")) == expected


def test_a_change_is_seen_as_soon_as_the_database_is_back(
    tasks: Tasks, stored: dict[str, str], tmp_path: Path, tiny_backbone: Backbone
) -> None:
    resolver = resolver_of(tasks, 300)
    resolver.resolve(NAMES)
    with outage(tmp_path), pytest.raises(NotReady):
        tasks.editor.delete("cars")
    data = to_bytes(learned_prompt(tiny_backbone, ["new", "names"]))
    version = tasks.store.upload("pets", data)[0].version

    assert resolver.resolve(["pets"])[0].version == version
    assert not resolver.tolerates_outage


def test_without_a_limit_an_outage_is_an_error(
    tasks: Tasks, stored: dict[str, str], tmp_path: Path
) -> None:
    resolver = resolver_of(tasks, 0)
    resolver.resolve(NAMES)
    with outage(tmp_path):
        for name in NAMES:
            with pytest.raises(NotReady):
                resolver.resolve([name])
    assert [task.version for task in resolver.resolve(NAMES)] == list(stored.values())


@pytest.mark.parametrize("change", ["upload", "delete", "tags"])
@pytest.mark.parametrize("asked_between", [(), ("birds",), ("pets",), NAMES])
def test_a_change_of_this_process_is_never_missed_in_an_outage_that_follows(
    tasks: Tasks,
    stored: dict[str, str],
    tmp_path: Path,
    tiny_backbone: Backbone,
    change: str,
    asked_between: tuple[str, ...],
) -> None:
    resolver = resolver_of(tasks, 300)
    tasks.editor._registry._db.after_change = resolver.end_outage
    resolver.resolve(NAMES)
    resolver.versions_of_backbone("eu")
    expected = dict(stored)
    if change == "upload":
        data = to_bytes(learned_prompt(tiny_backbone, ["new", "names"]))
        expected["pets"] = tasks.store.upload("pets", data)[0].version
    elif change == "delete":
        tasks.editor.delete("pets")
        del expected["pets"]
    else:
        tasks.editor.set_tags("pets", ["us"])
    asked = [name for name in asked_between if name in expected]
    if asked:
        resolver.resolve(asked)

    with outage(tmp_path):
        for name in NAMES:
            try:
                (task,) = resolver.resolve([name])
            except NotReady:
                assert name == "pets"
                assert name not in asked
            else:
                assert task.version == expected[name]
        with pytest.raises(NotReady):
            resolver.versions_of_backbone("eu")
