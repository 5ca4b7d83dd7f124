"""Find class names that the text encoder cannot tell apart: Cat and cat, sea_bear and sea bear."""

from collections.abc import Sequence

from prompt_serve.prompts.tokenizer import Tokenizer

_GROUPS_SHOWN = 10


def equal_names(class_names: Sequence[str], tokenizer: Tokenizer) -> list[tuple[str, ...]]:
    """Return the groups of two or more names that have the same tokens.

    Args:
        class_names: C names; underscores become spaces, as in ``plan_sequences``.
        tokenizer: of the backbone.
    """
    groups: dict[tuple[int, ...], list[str]] = {}
    tokens = tokenizer.encode_many([name.replace("_", " ") for name in class_names])
    for name, ids in zip(class_names, tokens, strict=True):
        groups.setdefault(tuple(ids), []).append(name)
    return [tuple(names) for names in groups.values() if len(names) > 1]


def equal_names_notes(class_names: Sequence[str], tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return a note that lists names with the same tokens; empty if all differ."""
    groups = [" = ".join(map(repr, names)) for names in equal_names(class_names, tokenizer)]
    if not groups:
        return ()
    more = f" and {len(groups) - _GROUPS_SHOWN:,} more" if len(groups) > _GROUPS_SHOWN else ""
    return (
        f"Class names with the same tokens, which the text encoder cannot tell apart: "
        f"{', '.join(groups[:_GROUPS_SHOWN])}{more}. Rename or merge these classes.",
    )
