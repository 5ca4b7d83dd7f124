"""Tasks by name: an upload is what the next request gets, and no request gets half of one."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prompt_serve.assembly import Sequences
from prompt_serve.bundle import Bundle
from prompt_serve.errors import (
    BackboneMismatch,
    PromptFileInvalid,
    TaskNameInvalid,
    TaskNotFound,
)
from prompt_serve.prompt_file import from_bytes, to_bytes, version_of
from prompt_serve.schemas import ZeroShotTask
from prompt_serve.service.engine import Engine
from prompt_serve.service.registry import Registry
from prompt_serve.service.tasks import TaskStore
from prompt_serve.training.backbone import Backbone
from prompt_serve.training.evaluate import class_features_of
from prompt_serve.types import FloatArray
from tests.service.prompts import learned_prompt

CACHE_BYTES = 10**7


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    opened = Registry(f"sqlite:///{tmp_path / 'registry.db'}")
    yield opened
    opened.close()


@pytest.fixture
def store(registry: Registry, bundle: Bundle, engine: Engine) -> TaskStore:
    return TaskStore(registry, bundle, engine.encode_text, CACHE_BYTES)


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
    store: TaskStore, registry: Registry, bundle: Bundle, tiny_backbone: Backbone
) -> None:
    store.upload("pets", to_bytes(learned_prompt(tiny_backbone, ["cat", "dog"])))
    (before,) = store.resolve(["pets"])

    (after,) = TaskStore(registry, bundle, never, CACHE_BYTES).resolve(["pets"])

    assert (after.class_features == before.class_features).all()


def test_features_that_are_missing_are_computed_once_and_kept(
    store: TaskStore, registry: Registry, bundle: Bundle, engine: Engine, tiny_backbone: Backbone
) -> None:
    prompt = learned_prompt(tiny_backbone, ["cat", "dog"])
    store.upload("pets", to_bytes(prompt))
    with registry._writing.begin() as db:
        db.exec_driver_sql("DELETE FROM class_features")

    TaskStore(registry, bundle, engine.encode_text, CACHE_BYTES).resolve(["pets"])
    TaskStore(registry, bundle, never, CACHE_BYTES).resolve(["pets"])


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


def test_memory_holds_the_tasks_used_last_within_its_budget(
    registry: Registry, bundle: Bundle, engine: Engine, tiny_backbone: Backbone
) -> None:
    filling = TaskStore(registry, bundle, engine.encode_text, CACHE_BYTES)
    names = ["a", "b", "c", "d"]
    for seed, name in enumerate(names):
        prompt = learned_prompt(tiny_backbone, ["cat", "dog"], seed=seed)
        filling.upload(name, to_bytes(prompt))
    size = filling.resolve(["a"])[0].size_bytes

    store = TaskStore(registry, bundle, never, cache_bytes=2 * size)
    first = store.resolve(["a"])[0]
    store.resolve(["b"])
    assert store.resolve(["a"])[0] is first
    store.resolve(["c"])  # b goes: it was used longest ago

    assert store.resolve(["a"])[0] is first
    assert len(store._loaded._tasks) == 2
    assert store._loaded._size_bytes == 2 * size

    tiny = TaskStore(registry, bundle, never, cache_bytes=0)
    assert [t.version for t in tiny.resolve(names)] == [t.version for t in store.resolve(names)]


_OTHER_PROCESS = """
import sys
from pathlib import Path
from prompt_serve.bundle import open_bundle
from prompt_serve.service.engine import Engine
from prompt_serve.service.registry import Registry
from prompt_serve.service.tasks import TaskStore
bundle = open_bundle(Path(sys.argv[2]))
engine = Engine(bundle, cuda_device=None, threads=1, max_batch=1)
store = TaskStore(Registry(sys.argv[1]), bundle, engine.encode_text, 10**7)
for line in sys.stdin:
    print(store.resolve([line.strip()])[0].version, flush=True)
"""


def test_another_process_on_the_same_file_serves_an_upload_at_once(
    store: TaskStore, bundle: Bundle, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    files = [
        to_bytes(learned_prompt(tiny_backbone, ["cat", "dog"], seed=seed)) for seed in range(2)
    ]
    store.upload("pets", files[0])
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    command = [sys.executable, "-c", _OTHER_PROCESS, url, str(bundle.path)]
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
