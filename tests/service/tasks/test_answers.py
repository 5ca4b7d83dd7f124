"""Answers are made before a change is stored: what cannot be answered is not stored."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from safetensors import numpy as safetensors_numpy

from prompt_serve.errors import PromptServeError
from prompt_serve.prompts.prompt_file import METADATA_KEY, Prompt, to_bytes
from prompt_serve.schemas import TaskInfo
from prompt_serve.service.tasks.bulk import without_features
from prompt_serve.training.clip.backbone import Backbone
from tests.service.prompts import learned_prompt
from tests.service.tasks.connected import Tasks


def nested(depth: int, kind: type[dict[str, Any]] | type[list[Any]] = dict) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value} if kind is dict else [value]
    return value


def with_header(prompt: Prompt, **fields: object) -> bytes:
    """Return a prompt file whose header has these fields as they are, valid or not."""
    data = to_bytes(prompt)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][METADATA_KEY])
    document = json.dumps(header | fields)
    return safetensors_numpy.save(safetensors_numpy.load(data), {METADATA_KEY: document})


VALUES = {
    "objects, 200 deep": nested(200),
    "objects, 252 deep": nested(252),
    "objects, 253 deep": nested(253),
    "objects, 254 deep": nested(254),
    "objects, 255 deep": nested(255),
    "objects, 260 deep": nested(260),
    "lists, 300 deep": nested(300, list),
    "lists, 900 deep": nested(900, list),
    "NaN": float("nan"),
    "infinity": float("-inf"),
    "an integer of 65 bits": 2**64,
    "an integer of 4,000 digits": 10**4000,
    "a number beyond float64": 10**400,
    "half a surrogate pair": "\ud800",
    "control characters": "".join(map(chr, range(32))) + "\x7f",
    "U+2028": "\u2028\u2029\ufeff",
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("field", ["metrics", "training"])
def test_what_is_stored_can_be_answered(
    tasks: Tasks, tiny_backbone: Backbone, kind: str, field: str
) -> None:
    prompt = learned_prompt(tiny_backbone, ["cat", "dog"])
    before, _ = tasks.store.upload("pets", to_bytes(prompt))
    data = with_header(learned_prompt(tiny_backbone, ["a", "b"]), **{field: {"x": VALUES[kind]}})

    ways: list[Callable[[], object]] = [
        lambda: tasks.store.upload("pets", data),
        lambda: tasks.store.prepare("pets", data),
        lambda: without_features("pets", data),
    ]
    for store in ways:
        status = 200
        try:
            store()
        except PromptServeError as error:
            status = error.status
        assert status in (200, 422)
        if status == 422:
            assert tasks.catalog.info("pets").version == before.version
        check(tasks.catalog.info("pets"))
        check(tasks.editor.set_tags("pets", ["eu"]))


def check(info: TaskInfo) -> None:
    assert json.loads(info.model_dump_json())["name"] == info.name


class Unanswerable(Exception):
    pass


@pytest.mark.parametrize("what", ["upload", "replace", "alias", "rollback", "tags", "pin"])
def test_a_change_whose_answer_cannot_be_made_is_not_stored(
    tasks: Tasks,
    versions: list[str],
    tiny_backbone: Backbone,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    data = to_bytes(learned_prompt(tiny_backbone, ["horse", "cow"]))
    changes: dict[str, Callable[[], object]] = {
        "upload": lambda: tasks.store.upload("new", data),
        "replace": lambda: tasks.store.upload("pets", data),
        "alias": lambda: tasks.editor.alias("other", "pets"),
        "rollback": lambda: tasks.editor.rollback("pets", None),
        "tags": lambda: tasks.editor.set_tags("pets", ["eu"]),
        "pin": lambda: tasks.editor.set_pinned("pets", True),
    }
    catalog, registry = tasks.catalog, tasks.editor._registry
    before = (registry.revision(), catalog.page(None, 9), catalog.history("pets", None, 9))

    def fail(*_: object) -> TaskInfo:
        raise Unanswerable

    with monkeypatch.context() as patched:
        patched.setattr(catalog, "describe", fail)
        with pytest.raises(Unanswerable):
            changes[what]()

    assert (registry.revision(), catalog.page(None, 9), catalog.history("pets", None, 9)) == before
    changes[what]()
    assert registry.revision() > before[0]


def test_the_answer_of_a_change_is_of_that_change(tasks: Tasks, versions: list[str]) -> None:
    info, is_new = tasks.editor.alias("other", "pets")

    assert is_new
    assert (info.name, info.version) == ("other", versions[-1])
    assert tasks.catalog.info("other") == info
