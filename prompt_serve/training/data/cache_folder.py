"""Folders of caches, whose content can be recomputed."""

import os
from pathlib import Path

from prompt_serve.errors import ConfigInvalid
from prompt_serve.text_files import expand_user


def cache_folder(kind: str) -> Path:
    """Return ``$PROMPT_SERVE_CACHE/<kind>``, else ``prompt-serve/<kind>`` in the user's cache.

    Raises:
        ConfigInvalid: neither is set and the user has no home folder.
    """
    override = os.environ.get("PROMPT_SERVE_CACHE")
    if override:
        return expand_user(override) / kind
    base = expand_user(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if base.parts[:1] == ("~",):
        raise ConfigInvalid(
            "There is no home folder for the cache. Name a folder: PROMPT_SERVE_CACHE=/tmp/cache"
        )
    return base / "prompt-serve" / kind
