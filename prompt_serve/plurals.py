"""Counts with their nouns, for messages."""


def counted(n: int, noun: str) -> str:
    """Return ``1 image``, ``1,200 images``, ``1 class`` or ``2 classes``."""
    if n == 1:
        return f"1 {noun}"
    return f"{n:,} {noun}{'es' if noun.endswith(('s', 'x', 'ch', 'sh')) else 's'}"
