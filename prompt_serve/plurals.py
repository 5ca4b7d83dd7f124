"""Counts with their nouns, for messages."""


def counted(n: int, noun: str) -> str:
    """Return ``1 image`` or ``1,200 images``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
