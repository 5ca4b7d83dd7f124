"""Lists of tasks, their details and histories."""

from dataclasses import replace

import pytest

from prompt_serve.errors import BackboneMismatch, RequestInvalid
from prompt_serve.prompts.prompt_file import to_bytes
from prompt_serve.service.storage.registry import NewTask, Registry
from prompt_serve.training.clip.backbone import Backbone
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
