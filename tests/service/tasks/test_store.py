"""An upload is what the next request gets, and no request gets half of one."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from prompt_serve.bundle import Bundle
from prompt_serve.errors import BackboneMismatch, PromptFileInvalid, TaskNameInvalid, VersionChanged
from prompt_serve.prompts.prompt_file import Prompt, from_bytes, to_bytes, version_of
from prompt_serve.prompts.sequences import Sequences
from prompt_serve.schemas import ZeroShotTask
from prompt_serve.service.inference.engine import Engine
from prompt_serve.service.storage.database import Database
from prompt_serve.service.storage.preconditions import Condition
from prompt_serve.service.storage.registry import Registry
from prompt_serve.service.tasks.feature_queue import NICENESS
from prompt_serve.tasks import admission
from prompt_serve.tasks.admission import check_backbone
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.evaluate import class_features_of
from prompt_serve.types import FloatArray
from tests.service.prompts import learned_prompt
from tests.service.tasks.connected import Tasks, never


def test_an_uploaded_prompt_is_served_with_the_features_it_was_learned_with(
    tasks: Tasks, tiny_backbone: Backbone
) -> None:
    prompt = learned_prompt(tiny_backbone, ["cat", "dog"])
    info, is_new = tasks.store.upload("pets", to_bytes(prompt))

    (task,) = tasks.resolver.resolve(["pets"])

    assert is_new
    assert info.version == task.version == version_of(to_bytes(prompt))
    assert task.class_names == ("cat", "dog")
    assert np.abs(task.class_features - class_features_of(prompt, tiny_backbone)).max() <= 2e-6
    assert info.learned_numbers == prompt.learned_numbers


def test_a_swap_does_not_change_the_task_a_request_holds(
    tasks: Tasks, tiny_backbone: Backbone
) -> None:
    tasks.store.upload("pets", to_bytes(learned_prompt(tiny_backbone, ["cat", "dog"])))
    (held,) = tasks.resolver.resolve(["pets"])
    before = held.class_features.copy()

    _, is_new = tasks.store.upload(
        "pets", to_bytes(learned_prompt(tiny_backbone, ["cat", "horse"]))
    )

    assert not is_new
    assert held.class_names == ("cat", "dog")
    assert (held.class_features == before).all()
    assert tasks.resolver.resolve(["pets"])[0].class_names == ("cat", "horse")
    with pytest.raises(ValueError, match="read-only"):
        held.class_features[0, 0] = 1.0


@pytest.mark.parametrize(
    ("spoil", "error", "text"),
    [
        (lambda data: data[:-3], PromptFileInvalid, "cannot be read"),
        (lambda data: b"\x89PNG" + data, PromptFileInvalid, "Not a prompt file"),
        (lambda data: b"", PromptFileInvalid, "Not a prompt file"),
    ],
    ids=["cut short", "no safetensors", "empty"],
)
def test_a_bad_file_leaves_the_old_version(
    tasks: Tasks, tiny_backbone: Backbone, spoil: object, error: type[Exception], text: str
) -> None:
    good = to_bytes(learned_prompt(tiny_backbone, ["cat", "dog"]))
    tasks.store.upload("pets", good)
    assert callable(spoil)

    with pytest.raises(error, match=text):
        tasks.store.upload("pets", spoil(to_bytes(learned_prompt(tiny_backbone, ["new"]))))

    assert tasks.resolver.resolve(["pets"])[0].version == version_of(good)


def test_a_prompt_of_another_backbone_leaves_the_old_version(
    tasks: Tasks, registry: Registry, tiny_backbone: Backbone
) -> None:
    good = to_bytes(learned_prompt(tiny_backbone, ["cat", "dog"]))
    tasks.store.upload("pets", good)
    prompt = learned_prompt(tiny_backbone, ["cat", "dog"], seed=1)
    other = replace(
        prompt, backbone=prompt.backbone.model_copy(update={"fingerprint": "0" * 64, "id": "other"})
    )

    with pytest.raises(BackboneMismatch, match="learned on 'other'"):
        tasks.store.upload("pets", to_bytes(other))

    assert tasks.resolver.resolve(["pets"])[0].version == version_of(good)
    assert registry.revision() == 1


@pytest.mark.parametrize(
    "name", ["", "a/b/c", "a/file", ".hidden", "x" * 129, "a\n", "ünder", "../../etc"]
)
def test_odd_names_are_refused(tasks: Tasks, name: str, tiny_backbone: Backbone) -> None:
    with pytest.raises(TaskNameInvalid, match="Use 1 to 128 letters"):
        tasks.store.upload(name, to_bytes(learned_prompt(tiny_backbone, ["cat"])))


def test_a_zero_shot_task_is_stored_as_a_prompt_file_like_any_other(
    tasks: Tasks, tiny_backbone: Backbone
) -> None:
    definition = ZeroShotTask(
        name="fruit", class_names=["apple", "pear"], templates=["a photo of a {}.", "a drawn {}."]
    )
    info, _ = tasks.store.add_zero_shot(definition)
    again, is_new = tasks.store.add_zero_shot(definition)
    version, data = tasks.catalog.file("fruit")

    assert again.version == info.version == version == version_of(data)
    assert not is_new
    prompt = from_bytes(data)
    assert prompt.method == "zero-shot"
    copied, _ = tasks.store.upload("copy", data)
    assert copied.version == version
    features = tasks.resolver.resolve(["fruit"])[0].class_features
    assert np.abs(features - class_features_of(prompt, tiny_backbone)).max() <= 2e-6


@pytest.mark.parametrize(
    ("class_names", "told"),
    [
        (["Cat", "dog", "cat"], "'Cat' = 'cat'"),
        (["polar_bear", "polar bear"], "'polar_bear' = 'polar bear'"),
        (["a  b", "a b", "A_b", "c"], "'a  b' = 'a b' = 'A_b'"),
        (["x", "X", "y", "Y"], "'x' = 'X', 'y' = 'Y'"),
        (["caf\u00e9", "cafe\u0301"], "'caf\u00e9' = 'cafe\u0301'"),
        (["cat", "cats", "c at"], None),
    ],
)
def test_names_with_the_same_tokens_are_in_the_answer(
    tasks: Tasks, class_names: list[str], told: str | None
) -> None:
    definition = ZeroShotTask(name="names", class_names=class_names)
    info, _ = tasks.store.add_zero_shot(definition)
    if told is None:
        assert info.notes == []
    else:
        assert len(info.notes) == 1
        assert f"cannot tell apart: {told}. Rename or merge" in info.notes[0]


def test_a_change_that_comes_too_late_encodes_nothing(
    open_tasks: Callable[..., Tasks], versions: list[str], tiny_backbone: Backbone
) -> None:
    late = to_bytes(learned_prompt(tiny_backbone, ["new"], seed=7))

    with pytest.raises(VersionChanged, match=f"is at version {versions[2][:12]}"):
        open_tasks(never).store.upload("pets", late, Condition(versions=frozenset({versions[0]})))


def test_one_file_uploaded_under_many_names_at_once_is_encoded_once(
    engine: Engine, open_tasks: Callable[..., Tasks], tiny_backbone: Backbone
) -> None:
    entered, go_on = threading.Event(), threading.Event()
    calls = 0

    def slow(sequences: Sequences) -> FloatArray:
        nonlocal calls
        calls += 1
        entered.set()
        assert go_on.wait(60)
        return engine.encode_text(sequences)

    tasks = open_tasks(slow)
    data = to_bytes(learned_prompt(tiny_backbone, ["cat", "dog"]))
    with ThreadPoolExecutor(4) as pool:
        uploads = [pool.submit(tasks.store.upload, f"copy-{i}", data) for i in range(4)]
        assert entered.wait(60)
        go_on.set()
        results = [upload.result(timeout=60) for upload in uploads]

    assert {info.version for info, _ in results} == {version_of(data)}
    assert calls == 1


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities on Linux")
def test_class_names_are_encoded_at_low_priority(
    engine: Engine, open_tasks: Callable[..., Tasks], tiny_backbone: Backbone
) -> None:
    seen = []

    def encode(sequences: Sequences) -> FloatArray:
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return engine.encode_text(sequences)

    here = os.getpriority(os.PRIO_PROCESS, os.getpid())
    open_tasks(encode).store.upload("pets", to_bytes(learned_prompt(tiny_backbone, ["cat"])))

    assert seen == [min(19, here + NICENESS)]


def test_the_backbone_of_an_upload_is_checked_once_and_before_its_turn(
    tasks: Tasks, tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def check(prompt: Prompt, bundle: Bundle) -> None:
        threads.append(threading.current_thread().name)
        check_backbone(prompt, bundle)

    monkeypatch.setattr(admission, "check_backbone", check)

    tasks.store.upload("pets", to_bytes(learned_prompt(tiny_backbone, ["cat", "dog"])))
    tasks.resolver.resolve(["pets"])

    assert threads == [threading.current_thread().name]  # not in the thread of the queue


def test_the_backbone_is_checked_once_when_features_are_missing(
    tasks: Tasks,
    open_tasks: Callable[..., Tasks],
    sqlite: Database,
    tiny_backbone: Backbone,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked: list[str] = []
    tasks.store.upload("pets", to_bytes(learned_prompt(tiny_backbone, ["cat", "dog"])))
    with sqlite.write() as db:
        db.exec_driver_sql("DELETE FROM class_features")
    monkeypatch.setattr(admission, "check_backbone", lambda prompt, _: checked.append(prompt.name))

    open_tasks().resolver.resolve(["pets"])

    assert len(checked) == 1
