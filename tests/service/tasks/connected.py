"""The task classes of one registry, connected as ``Core`` does it."""

from prompt_serve.bundle import Bundle
from prompt_serve.prompts.class_features import EncodeText
from prompt_serve.prompts.prompt_file import Prompt
from prompt_serve.prompts.sequences import Sequences
from prompt_serve.service.storage.registry import Registry
from prompt_serve.service.tasks.cache import TaskCache
from prompt_serve.service.tasks.catalog import TaskCatalog
from prompt_serve.service.tasks.editor import TaskEditor
from prompt_serve.service.tasks.features import TaskFeatures
from prompt_serve.service.tasks.resolver import TaskResolver
from prompt_serve.service.tasks.store import TaskStore
from prompt_serve.signing.trusted_keys import ANY_FILE
from prompt_serve.types import FloatArray


class Tasks:
    """Resolver, catalog, store and editor that share a cache."""

    def __init__(self, registry: Registry, bundle: Bundle, encode_text: EncodeText) -> None:
        self.cache = TaskCache(10**7)
        self.features = TaskFeatures(registry, bundle, encode_text, no_rows)
        self.resolver = TaskResolver(registry, self.features, self.cache)
        self.catalog = TaskCatalog(registry, bundle.manifest.backbone.fingerprint)
        self.store = TaskStore(registry, self.features, self.cache, self.catalog, ANY_FILE)
        self.editor = TaskEditor(registry, self.resolver, self.cache, self.catalog, ANY_FILE)


def no_rows(prompt: Prompt) -> None:
    """Lay out the image vectors of a prompt that has none."""
    assert prompt.image is None


def never(sequences: Sequences) -> FloatArray:
    """Text encoder that must not be called."""
    raise AssertionError("nothing should be encoded")
