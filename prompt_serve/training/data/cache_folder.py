"""Folders of caches, whose content can be recomputed."""

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """Return ``$PROMPT_SERVE_CACHE/<kind>``, else ``prompt-serve/<kind>`` in the user's cache."""
    override = os.environ.get("PROMPT_SERVE_CACHE")
    if override:
        return Path(override) / kind
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "prompt-serve" / kind
