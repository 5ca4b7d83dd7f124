"""Rollbacks, aliases and deletions of tasks."""

from collections.abc import Callable

import pytest

from prompt_serve.errors import TaskNotFound, VersionInUse, VersionNotFound
from prompt_serve.prompts.prompt_file import to_bytes
from prompt_serve.training.clip.backbone import Backbone
from tests.service.prompts import learned_prompt
from tests.service.tasks.connected import Tasks, never


def test_a_deleted_task_is_gone_at_once(tasks: Tasks, tiny_backbone: Backbone) -> None:
    tasks.store.upload("pets", to_bytes(learned_prompt(tiny_backbone, ["cat"])))
    tasks.resolver.resolve(["pets"])

    tasks.editor.delete("pets")

    with pytest.raises(TaskNotFound, match="No task named 'pets'"):
        tasks.resolver.resolve(["pets"])
    with pytest.raises(TaskNotFound, match="No task named 'pets'"):
        tasks.editor.delete("pets")


def test_a_rollback_goes_to_the_version_before_and_encodes_nothing(
    tasks: Tasks, open_tasks: Callable[..., Tasks], versions: list[str]
) -> None:
    restarted = open_tasks(never)

    assert restarted.editor.rollback("pets", None).version == versions[1]
    assert tasks.resolver.resolve(["pets"])[0].version == versions[1]
    assert tasks.editor.rollback("pets", None).version == versions[2]  # undoes the rollback
    assert tasks.editor.rollback("pets", versions[0][:10]).version == versions[0]
    whats = [change.what for change in tasks.catalog.history("pets", None, 9).changes]
    assert whats == ["rollback"] * 3 + ["put"] * 3


def test_a_deleted_task_comes_back_by_a_rollback(tasks: Tasks, versions: list[str]) -> None:
    tasks.editor.delete("pets")

    assert tasks.editor.rollback("pets", None).version == versions[2]
    assert tasks.resolver.resolve(["pets"])[0].version == versions[2]
    with pytest.raises(TaskNotFound, match="No task named 'never'"):
        tasks.editor.rollback("never", None)
    with pytest.raises(VersionNotFound, match="begins with 00000000"):
        tasks.editor.rollback("pets", "00000000")


def test_nothing_is_before_the_first_version(tasks: Tasks, tiny_backbone: Backbone) -> None:
    tasks.store.upload("new", to_bytes(learned_prompt(tiny_backbone, ["cat"])))

    with pytest.raises(VersionNotFound, match="no version of 'new' before this one"):
        tasks.editor.rollback("new", None)


def test_an_alias_is_another_name_of_the_same_version(
    tasks: Tasks, versions: list[str], tiny_backbone: Backbone
) -> None:
    task, is_new = tasks.editor.alias("prod", f"pets@{versions[1][:8]}")
    assert is_new
    assert task.version == versions[1]
    assert not tasks.editor.alias("prod", "pets")[1]

    tasks.store.upload("pets", to_bytes(learned_prompt(tiny_backbone, ["cow"], seed=5)))

    assert tasks.resolver.resolve(["prod"])[0].version == versions[2]
    with pytest.raises(VersionInUse, match="'prod' points at"):
        tasks.editor.delete_version(versions[2][:8])
