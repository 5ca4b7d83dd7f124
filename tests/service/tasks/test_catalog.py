"""Lists of tasks, their details and histories."""

import time
from dataclasses import replace

import pytest
import sqlalchemy as sa

from prompt_serve.errors import BackboneMismatch, PromptFileInvalid, RequestInvalid, TaskNotFound
from prompt_serve.prompts.prompt_file import to_bytes, version_of
from prompt_serve.service.storage.registry import NewTask, Registry
from prompt_serve.training.clip.backbone import Backbone
from tests.golden import GOLDEN
from tests.service.prompts import learned_prompt
from tests.service.tasks.connected import Tasks


def test_tasks_of_another_backbone_are_listed_and_say_why_they_are_not_served(
    tasks: Tasks, registry: Registry, tiny_backbone: Backbone
) -> None:
    prompt = learned_prompt(tiny_backbone, ["cat", "dog"])
    other = prompt.backbone.model_copy(update={"fingerprint": "0" * 64, "id": "other"})
    foreign = replace(prompt, backbone=other)
    registry.put(NewTask(name="old", data=to_bytes(foreign), prompt=foreign, features=None))
    tasks.store.upload("new", to_bytes(prompt))
    registry.set_pinned("old", True)

    listed = {task.name: task.servable for task in tasks.catalog.page(None, 9).tasks}
    assert listed == {"old": False, "new": True}
    assert not tasks.catalog.info("old").servable
    with pytest.raises(BackboneMismatch, match="learned on 'other'"):
        tasks.resolver.resolve(["new", "old"])
    tasks.resolver.load_pinned()  # a start skips it
    assert tasks.cache.pinned_bytes(without="") == 0


@pytest.mark.parametrize("character", ["p", "pet", "p/", "p@", "p\U0001f600"])
def test_names_of_any_length_are_unknown_at_once(
    tasks: Tasks, versions: list[str], character: str
) -> None:
    """Comparing a name with others for a hint took seconds per ten megabytes."""
    name = character * (5_000_000 // len(character))
    used = time.process_time()
    for ask in (
        tasks.catalog.info,
        tasks.catalog.file,
        lambda name: tasks.resolver.resolve([name]),
    ):
        with pytest.raises((TaskNotFound, RequestInvalid)) as raised:
            ask(name)
        assert len(str(raised.value)) < 1_000
    assert time.process_time() - used < 0.3


def test_cursors_are_opaque_and_others_are_refused(tasks: Tasks, versions: list[str]) -> None:
    for name in ("a", "b", "c"):
        tasks.editor.alias(name, "pets")
    first = tasks.catalog.page(None, 2)
    second = tasks.catalog.page(first.next, 2)
    assert [task.name for task in first.tasks + second.tasks] == ["a", "b", "c", "pets"]
    assert second.next is None

    history = tasks.catalog.history("pets", None, 2)
    rest = tasks.catalog.history("pets", history.next, 2)
    assert [c.version for c in history.changes + rest.changes] == versions[::-1]

    for wrong in ("b", "!!", "WyJhIiwgMV0", history.next, "W10"):
        with pytest.raises(RequestInvalid, match="is not a cursor"):
            tasks.catalog.page(wrong, 2)
    with pytest.raises(RequestInvalid, match="is not a cursor"):
        tasks.catalog.history("pets", first.next, 2)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_the_details_of_a_task_come_from_facts_that_were_stored_with_it(
    tasks: Tasks, registry: Registry, name: str
) -> None:
    prompt = GOLDEN[name]
    data = to_bytes(prompt)
    registry.put(NewTask(name="task", data=data, prompt=prompt, features=None))
    details = tasks.catalog.info("task")

    with registry._db.write() as db:  # nobody needs the file to describe the task
        db.execute(sa.text("UPDATE prompt_file SET data = :empty"), {"empty": b""})
    assert tasks.catalog.info("task") == details
    assert tasks.catalog.info(f"task@{version_of(data)[:10]}") == details
    assert details.class_names == list(prompt.class_names)
    assert details.payload_bytes == prompt.payload_bytes
    assert details.learned_numbers == prompt.learned_numbers
    assert details.size_bytes == len(data)
    assert details.metrics == dict(prompt.metrics)


def test_a_version_of_the_history_is_described_by_its_own_facts(
    tasks: Tasks, registry: Registry
) -> None:
    for name in ("low_rank", "deep", "zero_shot"):
        prompt = GOLDEN[name]
        registry.put(NewTask(name="task", data=to_bytes(prompt), prompt=prompt, features=None))

    for name in ("low_rank", "deep", "zero_shot"):
        version = version_of(to_bytes(GOLDEN[name]))
        found = tasks.catalog.info(f"task@{version[:12]}")
        assert (found.version, found.method) == (version, GOLDEN[name].method)
        assert found.size_bytes == len(to_bytes(GOLDEN[name]))
        assert found.n_classes == len(GOLDEN[name].class_names)


def test_an_unreadable_file_without_facts_says_so(tasks: Tasks, registry: Registry) -> None:
    prompt = GOLDEN["low_rank"]
    registry.put(NewTask(name="task", data=to_bytes(prompt), prompt=prompt, features=None))
    with registry._db.write() as db:
        db.execute(sa.text("UPDATE prompt_file SET facts = ''"))
    assert tasks.catalog.info("task").class_names == list(prompt.class_names)
    registry.put(NewTask(name="task", data=b"unreadable", prompt=prompt, features=None))
    with registry._db.write() as db:
        db.execute(sa.text("UPDATE prompt_file SET facts = ''"))
    with pytest.raises(PromptFileInvalid):
        tasks.catalog.info("task")
