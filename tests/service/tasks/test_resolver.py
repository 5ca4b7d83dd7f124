"""Names are resolved to the current version, or to a version of their history."""

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from prompt_serve.bundle import Bundle
from prompt_serve.errors import RequestInvalid, TaskNotFound, VersionAmbiguous, VersionNotFound
from prompt_serve.prompts.prompt_file import to_bytes
from prompt_serve.service.permissions import EVERYTHING
from prompt_serve.service.storage.database import Database
from prompt_serve.service.storage.registry import Registry
from prompt_serve.service.tasks import resolver
from prompt_serve.training.clip.backbone import Backbone
from tests.service.prompts import learned_prompt
from tests.service.tasks.connected import Tasks, never


def test_an_unknown_task_is_named_with_those_that_look_like_it(
    tasks: Tasks, tiny_backbone: Backbone
) -> None:
    tasks.store.upload("pets", to_bytes(learned_prompt(tiny_backbone, ["cat"])))

    with pytest.raises(
        TaskNotFound, match=r"No task named 'pet' is loaded\. Did you mean 'pets'\?"
    ) as caught:
        tasks.resolver.resolve(["pets", "pet"])

    assert caught.value.name == "pet"
    assert caught.value.loaded == ("pets",)


def test_a_restart_encodes_nothing(
    tasks: Tasks, open_tasks: Callable[..., Tasks], tiny_backbone: Backbone
) -> None:
    tasks.store.upload("pets", to_bytes(learned_prompt(tiny_backbone, ["cat", "dog"])))
    (before,) = tasks.resolver.resolve(["pets"])

    (after,) = open_tasks(never).resolver.resolve(["pets"])

    assert (after.class_features == before.class_features).all()


def test_features_that_are_missing_are_computed_once_and_kept(
    tasks: Tasks, open_tasks: Callable[..., Tasks], sqlite: Database, tiny_backbone: Backbone
) -> None:
    prompt = learned_prompt(tiny_backbone, ["cat", "dog"])
    tasks.store.upload("pets", to_bytes(prompt))
    with sqlite.write() as db:
        db.exec_driver_sql("DELETE FROM class_features")

    open_tasks().resolver.resolve(["pets"])
    open_tasks(never).resolver.resolve(["pets"])


def test_a_pin_is_that_version_whatever_the_name_points_at(
    tasks: Tasks, versions: list[str]
) -> None:
    named = [f"pets@{versions[0][:8]}", f"pets@{versions[1].upper()}", "pets"]

    assert [task.version for task in tasks.resolver.resolve(named)] == versions
    assert tasks.catalog.info(named[0]).version == versions[0]
    assert tasks.catalog.file(named[1])[0] == versions[1]


def test_pins_reach_only_the_history_of_their_name(
    tasks: Tasks, registry: Registry, versions: list[str], tiny_backbone: Backbone
) -> None:
    other, _ = tasks.store.upload("other", to_bytes(learned_prompt(tiny_backbone, ["cat"], seed=9)))

    with pytest.raises(VersionNotFound, match="in the history of 'pets'"):
        tasks.resolver.resolve([f"pets@{other.version[:8]}"])
    with pytest.raises(TaskNotFound, match="No task named 'none'"):
        tasks.resolver.resolve([f"none@{versions[0][:8]}"])
    for short in ("pets@", "pets@1234567", "pets@nothexad", f"pets@{versions[0]}0"):
        with pytest.raises(RequestInvalid, match="give 8 to 64 hexadecimal digits"):
            tasks.resolver.resolve([short])


def test_a_pin_that_several_versions_begin_with_is_ambiguous(
    tasks: Tasks, sqlite: Database, versions: list[str]
) -> None:
    twin = versions[0][:60] + ("0000" if versions[0][60:] != "0000" else "1111")
    with sqlite.write() as db:  # two real files whose sha256 agree so far cannot be found
        db.exec_driver_sql(
            "INSERT INTO prompt_file (version, data, method, backbone, n_classes, size_bytes) "
            f"SELECT '{twin}', data, method, backbone, n_classes, size_bytes FROM prompt_file "
            f"WHERE version = '{versions[0]}'"
        )
        db.exec_driver_sql(
            f"INSERT INTO kept_version (name, version, change_id) VALUES ('pets', '{twin}', 99)"
        )

    with pytest.raises(VersionAmbiguous, match="Give more digits"):
        tasks.resolver.resolve([f"pets@{versions[0][:12]}"])
    assert tasks.resolver.resolve([f"pets@{versions[0]}"])[0].version == versions[0]


_OTHER_PROCESS = """
import sys
from pathlib import Path
from prompt_serve.bundle import open_bundle
from prompt_serve.service.inference.engine import Engine
from prompt_serve.service.storage.database import Database
from prompt_serve.service.storage.registry import Registry
from prompt_serve.service.tasks.cache import TaskCache
from prompt_serve.service.tasks.features import TaskFeatures
from prompt_serve.service.tasks.resolver import TaskResolver
bundle = open_bundle(Path(sys.argv[2]))
engine = Engine(bundle, cuda_device=None, threads=1, max_batch=1)
registry = Registry(Database(sys.argv[1]))
features = TaskFeatures(registry, bundle, engine.encode_text, engine.image_rows)
resolver = TaskResolver(registry, features, TaskCache(10**7))
for line in sys.stdin:
    print(resolver.resolve([line.strip()])[0].version, flush=True)
"""


def test_another_process_on_the_same_file_serves_an_upload_at_once(
    tasks: Tasks, bundle: Bundle, tiny_backbone: Backbone, sqlite_url: str
) -> None:
    files = [
        to_bytes(learned_prompt(tiny_backbone, ["cat", "dog"], seed=seed)) for seed in range(2)
    ]
    tasks.store.upload("pets", files[0])
    command = [sys.executable, "-c", _OTHER_PROCESS, sqlite_url, str(bundle.path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        stale = 0
        for i in range(100):
            info, _ = tasks.store.upload("pets", files[i % 2])
            print("pets", file=other.stdin, flush=True)
            stale += other.stdout.readline().strip() != info.version
        other.stdin.close()
    print(json.dumps({"stale": stale, "of": 100}))
    assert stale == 0


def test_spellings_of_a_version_take_no_more_memory_than_the_limit(
    tasks: Tasks, versions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One version can be written in 57 lengths, each in upper and lower case."""
    monkeypatch.setattr(resolver, "_MAX_KNOWN", 20)
    spelled = [f"pets@{version[:n]}" for version in versions for n in range(8, 65)]
    spelled += [name.replace("a", "A") for name in spelled]

    for name in ("pets", *spelled):
        [found] = tasks.resolver.versions([name])
        assert found.startswith(name.lower().partition("@")[2])

    assert len(tasks.resolver.read_known().of(EVERYTHING).versions) <= 20
