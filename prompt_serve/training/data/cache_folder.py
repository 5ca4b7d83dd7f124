"""Where things are kept that can be made again."""

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """``$PROMPT_SERVE_CACHE/<kind>``, else ``prompt-serve/<kind>`` in the user's cache."""
    own = os.environ.get("PROMPT_SERVE_CACHE")
    if own:
        return Path(own) / kind
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "prompt-serve" / kind
