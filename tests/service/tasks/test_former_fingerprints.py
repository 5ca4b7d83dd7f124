"""Prompts from before settings were part of the fingerprint: served where they are unambiguous."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from prompt_serve.bundle import Bundle
from prompt_serve.errors import BackboneMismatch
from prompt_serve.prompts.prompt_file import to_bytes
from prompt_serve.service.inference.engine import Engine
from prompt_serve.service.storage.registry import Registry
from prompt_serve.training.clip.backbone import Backbone
from tests.service.prompts import learned_prompt
from tests.service.tasks.connected import Tasks

FORMER, OTHER = "f" * 64, "0" * 64
ID = "ViT-B-32/openai"


@pytest.fixture
def renamed(bundle: Bundle) -> Bundle:
    """The bundle of a backbone with a name of open_clip and a former fingerprint."""
    ref = bundle.manifest.backbone.model_copy(update={"id": ID})
    update = {"backbone": ref, "former_fingerprint": FORMER}
    return replace(bundle, manifest=bundle.manifest.model_copy(update=update))


@pytest.fixture
def tasks(registry: Registry, renamed: Bundle, engine: Engine) -> Iterator[Tasks]:
    tasks = Tasks(registry, renamed, engine.encode_text)
    yield tasks
    tasks.features.close()


def file_of(backbone: Backbone, **ref: str) -> bytes:
    prompt = learned_prompt(backbone, ["cat", "dog"])
    return to_bytes(replace(prompt, backbone=prompt.backbone.model_copy(update=ref)))


@pytest.mark.parametrize("former", [True, False])
def test_both_fingerprints_are_served(
    former: bool, tasks: Tasks, registry: Registry, renamed: Bundle, tiny_backbone: Backbone,
    engine: Engine,
) -> None:  # fmt: skip
    fingerprint = FORMER if former else tiny_backbone.ref.fingerprint
    data = file_of(tiny_backbone, id=ID, fingerprint=fingerprint)

    info, _ = tasks.store.upload("pets", data)

    assert info.servable
    assert [*registry.versions_of_backbone(renamed.manifest.backbone.fingerprint)] == ["pets"]
    again = Tasks(registry, renamed, engine.encode_text)
    assert again.resolver.resolve(["pets"])[0].class_names == ("cat", "dog")
    again.features.close()


@pytest.mark.parametrize(
    ("name", "fingerprint", "told"),
    [
        ("ViT-B-32@b32.pt", FORMER, "Train it again with --backbone ViT-B-32/openai"),
        ("ViT-B-32-quickgelu@b32.pt", FORMER, "Train it again"),
        ("ViT-B-32/laion400m_e31", FORMER, "Train it again"),
        ("tiny", FORMER, "Train it again"),
        (ID, OTHER, "names are equal.*export ViT-B-32/openai again"),
    ],
)
def test_what_is_ambiguous_or_another_is_refused(
    name: str, fingerprint: str, told: str, tasks: Tasks, tiny_backbone: Backbone
) -> None:
    with pytest.raises(BackboneMismatch, match=told):
        tasks.store.upload("pets", file_of(tiny_backbone, id=name, fingerprint=fingerprint))
