"""Tasks by name: an upload is what the next request gets, and no request gets half of one."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prompt_serve.bundle import Bundle
from prompt_serve.errors import (
    BackboneMismatch,
    PromptFileInvalid,
    RequestInvalid,
    TaskNameInvalid,
    TaskNotFound,
    VersionAmbiguous,
    VersionChanged,
    VersionInUse,
    VersionNotFound,
)
from prompt_serve.prompts.class_features import EncodeText
from prompt_serve.prompts.prompt_file import from_bytes, to_bytes, version_of
from prompt_serve.prompts.sequences import Sequences
from prompt_serve.schemas import ZeroShotTask
from prompt_serve.service.inference.engine import Engine
from prompt_serve.service.storage.database import Database
from prompt_serve.service.storage.preconditions import Condition
from prompt_serve.service.storage.registry import NewTask, Registry
from prompt_serve.service.tasks.feature_queue import NICENESS
from prompt_serve.service.tasks.store import TaskStore
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.evaluate import class_features_of
from prompt_serve.types import FloatArray
from tests.service.prompts import learned_prompt

CACHE_BYTES = 10**7


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'registry.db'}"  # SQL is tested in test_registry, on both


@pytest.fixture
def registry(database: Database) -> Registry:
    return Registry(database)


@pytest.fixture
def open_store(
    registry: Registry, bundle: Bundle, engine: Engine
) -> Iterator[Callable[..., TaskStore]]:
    """Stores of one registry, as after a restart or in another process."""
    opened: list[TaskStore] = []

    def make(encode: EncodeText = engine.encode_text, cache_bytes: int = CACHE_BYTES) -> TaskStore:
        opened.append(TaskStore(registry, bundle, encode, cache_bytes))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[..., TaskStore]) -> TaskStore:
    return open_store()


def never(sequences: Sequences) -> FloatArray:
    raise AssertionError("nothing should be encoded")


def test_an_uploaded_prompt_is_served_with_the_features_it_was_learned_with(
    store: TaskStore, tiny_backbone: Backbone
) -> None:
    prompt = learned_prompt(tiny_backbone, ["cat", "dog"])
    info, is_new = store.upload("pets", to_bytes(prompt))

    (task,) = store.resolve(["pets"])

    assert is_new
    assert info.version == task.version == version_of(to_bytes(prompt))
    assert task.class_names == ("cat", "dog")
    assert np.abs(task.class_features - class_features_of(prompt, tiny_backbone)).max() <= 2e-6
    assert info.learned_numbers == prompt.learned_numbers


def test_a_swap_does_not_change_the_task_a_request_holds(
    store: TaskStore, tiny_backbone: Backbone
) -> None:
    store.upload("pets", to_bytes(learned_prompt(tiny_backbone, ["cat", "dog"])))
    (held,) = store.resolve(["pets"])
    before = held.class_features.copy()

    _, is_new = store.upload("pets", to_bytes(learned_prompt(tiny_backbone, ["cat", "horse"])))

    assert not is_new
    assert held.class_names == ("cat", "dog")
    assert (held.class_features == before).all()
    assert store.resolve(["pets"])[0].class_names == ("cat", "horse")
    with pytest.raises(ValueError, match="read-only"):
        held.class_features[0, 0] = 1.0


def test_an_unknown_task_is_named_with_those_that_look_like_it(
    store: TaskStore, tiny_backbone: Backbone
) -> None:
    store.upload("pets", to_bytes(learned_prompt(tiny_backbone, ["cat"])))

    with pytest.raises(
        TaskNotFound, match=r"No task named 'pet' is loaded\. Did you mean 'pets'\?"
    ) as caught:
        store.resolve(["pets", "pet"])

    assert caught.value.name == "pet"
    assert caught.value.loaded == ("pets",)


def test_a_deleted_task_is_gone_at_once(store: TaskStore, tiny_backbone: Backbone) -> None:
    store.upload("pets", to_bytes(learned_prompt(tiny_backbone, ["cat"])))
    store.resolve(["pets"])

    store.delete("pets")

    with pytest.raises(TaskNotFound, match="No task named 'pets'"):
        store.resolve(["pets"])
    with pytest.raises(TaskNotFound, match="No task named 'pets'"):
        store.delete("pets")


def test_a_restart_encodes_nothing(
    store: TaskStore, open_store: Callable[..., TaskStore], tiny_backbone: Backbone
) -> None:
    store.upload("pets", to_bytes(learned_prompt(tiny_backbone, ["cat", "dog"])))
    (before,) = store.resolve(["pets"])

    (after,) = open_store(never).resolve(["pets"])

    assert (after.class_features == before.class_features).all()


def test_features_that_are_missing_are_computed_once_and_kept(
    store: TaskStore,
    open_store: Callable[..., TaskStore],
    database: Database,
    tiny_backbone: Backbone,
) -> None:
    prompt = learned_prompt(tiny_backbone, ["cat", "dog"])
    store.upload("pets", to_bytes(prompt))
    with database.write() as db:
        db.exec_driver_sql("DELETE FROM class_features")

    open_store().resolve(["pets"])
    open_store(never).resolve(["pets"])


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
    store: TaskStore, tiny_backbone: Backbone, spoil: object, error: type[Exception], text: str
) -> None:
    good = to_bytes(learned_prompt(tiny_backbone, ["cat", "dog"]))
    store.upload("pets", good)
    assert callable(spoil)

    with pytest.raises(error, match=text):
        store.upload("pets", spoil(to_bytes(learned_prompt(tiny_backbone, ["new"]))))

    assert store.resolve(["pets"])[0].version == version_of(good)


def test_a_prompt_of_another_backbone_leaves_the_old_version(
    store: TaskStore, registry: Registry, tiny_backbone: Backbone
) -> None:
    good = to_bytes(learned_prompt(tiny_backbone, ["cat", "dog"]))
    store.upload("pets", good)
    prompt = learned_prompt(tiny_backbone, ["cat", "dog"], seed=1)
    stranger = replace(
        prompt, backbone=prompt.backbone.model_copy(update={"fingerprint": "0" * 64, "id": "other"})
    )

    with pytest.raises(BackboneMismatch, match="learned on 'other'"):
        store.upload("pets", to_bytes(stranger))

    assert store.resolve(["pets"])[0].version == version_of(good)
    assert registry.revision() == 1


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", "x" * 129, "a\n", "ünder", "../../etc"])
def test_odd_names_are_refused(store: TaskStore, name: str, tiny_backbone: Backbone) -> None:
    with pytest.raises(TaskNameInvalid, match="Use 1 to 128 letters"):
        store.upload(name, to_bytes(learned_prompt(tiny_backbone, ["cat"])))


def test_a_zero_shot_task_is_stored_as_a_prompt_file_like_any_other(
    store: TaskStore, tiny_backbone: Backbone
) -> None:
    wanted = ZeroShotTask(
        name="fruit", class_names=["apple", "pear"], templates=["a photo of a {}.", "a drawn {}."]
    )
    info, _ = store.add_zero_shot(wanted)
    again, is_new = store.add_zero_shot(wanted)
    version, data = store.file("fruit")

    assert again.version == info.version == version == version_of(data)
    assert not is_new
    prompt = from_bytes(data)
    assert prompt.method == "zero-shot"
    copied, _ = store.upload("copy", data)
    assert copied.version == version
    features = store.resolve(["fruit"])[0].class_features
    assert np.abs(features - class_features_of(prompt, tiny_backbone)).max() <= 2e-6


@pytest.fixture
def versions(store: TaskStore, tiny_backbone: Backbone) -> list[str]:
    """Of a task "pets" that was uploaded three times, the oldest first."""
    files = [to_bytes(learned_prompt(tiny_backbone, ["cat", "dog"], seed=s)) for s in range(3)]
    return [store.upload("pets", data)[0].version for data in files]


def test_a_pin_is_that_version_whatever_the_name_points_at(
    store: TaskStore, versions: list[str]
) -> None:
    named = [f"pets@{versions[0][:8]}", f"pets@{versions[1].upper()}", "pets"]

    assert [task.version for task in store.resolve(named)] == versions
    assert store.info(named[0]).version == versions[0]
    assert store.file(named[1])[0] == versions[1]


def test_pins_reach_only_the_history_of_their_name(
    store: TaskStore, registry: Registry, versions: list[str], tiny_backbone: Backbone
) -> None:
    other, _ = store.upload("other", to_bytes(learned_prompt(tiny_backbone, ["cat"], seed=9)))

    with pytest.raises(VersionNotFound, match="in the history of 'pets'"):
        store.resolve([f"pets@{other.version[:8]}"])
    with pytest.raises(TaskNotFound, match="No task named 'none'"):
        store.resolve([f"none@{versions[0][:8]}"])
    for short in ("pets@", "pets@1234567", "pets@nothexad", f"pets@{versions[0]}0"):
        with pytest.raises(RequestInvalid, match="give 8 to 64 hexadecimal digits"):
            store.resolve([short])


def test_a_pin_that_several_versions_begin_with_is_ambiguous(
    store: TaskStore, database: Database, versions: list[str]
) -> None:
    twin = versions[0][:60] + ("0000" if versions[0][60:] != "0000" else "1111")
    with database.write() as db:  # two real files whose sha256 agree so far cannot be found
        db.exec_driver_sql(
            "INSERT INTO prompt_file (version, data, method, backbone, n_classes, size_bytes) "
            f"SELECT '{twin}', data, method, backbone, n_classes, size_bytes FROM prompt_file "
            f"WHERE version = '{versions[0]}'"
        )
        db.exec_driver_sql(
            f"INSERT INTO kept_version (name, version, change_id) VALUES ('pets', '{twin}', 99)"
        )

    with pytest.raises(VersionAmbiguous, match="Give more digits"):
        store.resolve([f"pets@{versions[0][:12]}"])
    assert store.resolve([f"pets@{versions[0]}"])[0].version == versions[0]


def test_a_rollback_goes_to_the_version_before_and_encodes_nothing(
    store: TaskStore, open_store: Callable[..., TaskStore], versions: list[str]
) -> None:
    restarted = open_store(never)

    assert restarted.rollback("pets", None).version == versions[1]
    assert store.resolve(["pets"])[0].version == versions[1]
    assert store.rollback("pets", None).version == versions[2]  # undoes the rollback
    assert store.rollback("pets", versions[0][:10]).version == versions[0]
    whats = [change.what for change in store.history("pets", None, 9).changes]
    assert whats == ["rollback"] * 3 + ["put"] * 3


def test_a_deleted_task_comes_back_by_a_rollback(store: TaskStore, versions: list[str]) -> None:
    store.delete("pets")

    assert store.rollback("pets", None).version == versions[2]
    assert store.resolve(["pets"])[0].version == versions[2]
    with pytest.raises(TaskNotFound, match="No task named 'never'"):
        store.rollback("never", None)
    with pytest.raises(VersionNotFound, match="begins with 00000000"):
        store.rollback("pets", "00000000")


def test_nothing_is_before_the_first_version(store: TaskStore, tiny_backbone: Backbone) -> None:
    store.upload("new", to_bytes(learned_prompt(tiny_backbone, ["cat"])))

    with pytest.raises(VersionNotFound, match="no version of 'new' before this one"):
        store.rollback("new", None)


def test_an_alias_is_another_name_of_the_same_version(
    store: TaskStore, versions: list[str], tiny_backbone: Backbone
) -> None:
    task, is_new = store.alias("prod", f"pets@{versions[1][:8]}")
    assert is_new
    assert task.version == versions[1]
    assert not store.alias("prod", "pets")[1]

    store.upload("pets", to_bytes(learned_prompt(tiny_backbone, ["cow"], seed=5)))

    assert store.resolve(["prod"])[0].version == versions[2]
    with pytest.raises(VersionInUse, match="'prod' points at"):
        store.delete_version(versions[2][:8])


def test_a_change_that_comes_too_late_encodes_nothing(
    open_store: Callable[..., TaskStore], versions: list[str], tiny_backbone: Backbone
) -> None:
    late = to_bytes(learned_prompt(tiny_backbone, ["new"], seed=7))

    with pytest.raises(VersionChanged, match=f"is at version {versions[2][:12]}"):
        open_store(never).upload("pets", late, Condition(versions=frozenset({versions[0]})))


def test_one_file_uploaded_under_many_names_at_once_is_encoded_once(
    engine: Engine, open_store: Callable[..., TaskStore], tiny_backbone: Backbone
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def slow(sequences: Sequences) -> FloatArray:
        entered.set()
        assert go_on.wait(60)
        return engine.encode_text(sequences)

    store = open_store(slow)
    data = to_bytes(learned_prompt(tiny_backbone, ["cat", "dog"]))
    with ThreadPoolExecutor(4) as pool:
        uploads = [pool.submit(store.upload, f"copy-{i}", data) for i in range(4)]
        assert entered.wait(60)
        go_on.set()
        results = [upload.result(timeout=60) for upload in uploads]

    assert {info.version for info, _ in results} == {version_of(data)}
    assert store.encoded == 1


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities on Linux")
def test_class_names_are_encoded_at_low_priority(
    engine: Engine, open_store: Callable[..., TaskStore], tiny_backbone: Backbone
) -> None:
    seen = []

    def encode(sequences: Sequences) -> FloatArray:
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return engine.encode_text(sequences)

    here = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    open_store(encode).upload("pets", to_bytes(learned_prompt(tiny_backbone, ["cat"])))

    assert seen == [max(here, NICENESS)]


def test_tasks_of_another_backbone_are_listed_and_say_why_they_are_not_served(
    store: TaskStore, registry: Registry, tiny_backbone: Backbone
) -> None:
    prompt = learned_prompt(tiny_backbone, ["cat", "dog"])
    other = prompt.backbone.model_copy(update={"fingerprint": "0" * 64, "id": "other"})
    stranger = replace(prompt, backbone=other)
    registry.put(NewTask(name="old", data=to_bytes(stranger), prompt=stranger, features=None))
    store.upload("new", to_bytes(prompt))
    registry.set_pinned("old", True)

    listed = {task.name: task.servable for task in store.page(None, 9).tasks}
    assert listed == {"old": False, "new": True}
    assert not store.info("old").servable
    with pytest.raises(BackboneMismatch, match="learned on 'other'"):
        store.resolve(["new", "old"])
    assert store.load_pinned() == 0  # a start goes on without it


def test_cursors_are_opaque_and_others_are_refused(store: TaskStore, versions: list[str]) -> None:
    for name in ("a", "b", "c"):
        store.alias(name, "pets")
    first = store.page(None, 2)
    second = store.page(first.next, 2)
    assert [task.name for task in first.tasks + second.tasks] == ["a", "b", "c", "pets"]
    assert second.next is None

    history = store.history("pets", None, 2)
    rest = store.history("pets", history.next, 2)
    assert [c.version for c in history.changes + rest.changes] == versions[::-1]

    for wrong in ("b", "!!", "WyJhIiwgMV0", history.next, "W10"):
        with pytest.raises(RequestInvalid, match="is not a cursor"):
            store.page(wrong, 2)
    with pytest.raises(RequestInvalid, match="is not a cursor"):
        store.history("pets", first.next, 2)


_OTHER_PROCESS = """
import sys
from pathlib import Path
from prompt_serve.bundle import open_bundle
from prompt_serve.service.inference.engine import Engine
from prompt_serve.service.storage.database import Database
from prompt_serve.service.storage.registry import Registry
from prompt_serve.service.tasks.store import TaskStore
bundle = open_bundle(Path(sys.argv[2]))
engine = Engine(bundle, cuda_device=None, threads=1, max_batch=1)
store = TaskStore(Registry(Database(sys.argv[1])), bundle, engine.encode_text, 10**7)
for line in sys.stdin:
    print(store.resolve([line.strip()])[0].version, flush=True)
"""


def test_another_process_on_the_same_file_serves_an_upload_at_once(
    store: TaskStore, bundle: Bundle, tiny_backbone: Backbone, database_url: str
) -> None:
    files = [
        to_bytes(learned_prompt(tiny_backbone, ["cat", "dog"], seed=seed)) for seed in range(2)
    ]
    store.upload("pets", files[0])
    command = [sys.executable, "-c", _OTHER_PROCESS, database_url, str(bundle.path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        stale = 0
        for i in range(100):
            info, _ = store.upload("pets", files[i % 2])
            print("pets", file=other.stdin, flush=True)
            stale += other.stdout.readline().strip() != info.version
        other.stdin.close()
    print(json.dumps({"stale": stale, "of": 100}))
    assert stale == 0
