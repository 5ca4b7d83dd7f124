"""What a check found: facts to show, problems to solve, and notes."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Facts of one part, in JSON types, with the problems and notes about it.

    A problem or a note is a sentence that ends with the way out.
    """

    facts: dict[str, Any]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
