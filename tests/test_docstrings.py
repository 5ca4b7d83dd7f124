"""Docstrings open with a verb or a noun, and folders stay small enough to survey."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import prompt_serve

PACKAGE = Path(prompt_serve.__file__).parent
QUESTION_WORDS = {"what", "whether", "where", "how", "which", "who", "whose", "when", "why"}
MAX_SHARE = 0.02
MAX_MODULES = 15  # per folder, __init__ not counted

_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """The docstrings of a module, its classes and functions, each with its place."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node)):
            # A module node has no line number.
            yield f"{path.relative_to(PACKAGE.parent)}:{getattr(node, 'lineno', 1)}", text


def test_fewer_than_two_percent_of_the_docstrings_open_with_a_question_word() -> None:
    texts = [found for path in sorted(PACKAGE.rglob("*.py")) for found in docstrings(path)]
    offenders = [
        f"{place} {text.splitlines()[0]}"
        for place, text in texts
        if text.split(maxsplit=1)[0].strip("`*\"'.,:;").lower() in QUESTION_WORDS
    ]

    assert len(texts) > 500
    assert len(offenders) < MAX_SHARE * len(texts), (
        f"{len(offenders)} of {len(texts)} docstrings open with a question word "
        f"({len(offenders) / len(texts):.1%}):\n" + "\n".join(offenders)
    )


def test_no_folder_has_more_than_fifteen_modules() -> None:
    modules = (path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    counts = Counter(path.parent.relative_to(PACKAGE.parent) for path in modules)
    too_many = [f"{folder}: {count}" for folder, count in counts.items() if count > MAX_MODULES]

    assert not too_many, f"Folders with more than {MAX_MODULES} modules: {', '.join(too_many)}"
