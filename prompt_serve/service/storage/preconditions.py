"""Task names and versions in requests: ``task``, ``task@prefix``, ETags and conditions."""

import re
from dataclasses import dataclass

from prompt_serve.errors import RequestInvalid, TaskNameInvalid, VersionChanged
from prompt_serve.schemas import RESERVED_NAMES, TASK_NAME_PATTERN, is_reserved_name

_MIN_PREFIX = 8  # hexadecimal digits: short enough to type, long enough to avoid collisions
_PREFIX = re.compile(rf"[0-9a-f]{{{_MIN_PREFIX},64}}")


_TASK_NAME = re.compile(TASK_NAME_PATTERN.strip("^$"))


def is_task_name(name: str) -> bool:
    """Return True if ``name`` is a valid task name; other texts never reach the database."""
    return _TASK_NAME.fullmatch(name) is not None and not is_reserved_name(name)


def check_task_name(name: str) -> None:
    """Raise TaskNameInvalid unless ``name`` is a valid task name."""
    if not is_task_name(name):
        raise TaskNameInvalid(
            f"{name[:200]!r} cannot be the name of a task. Use 1 to 128 letters, digits, dots, "
            f"underscores and hyphens, beginning with a letter or digit; or NAMESPACE/NAME, each "
            f"of at most 63 of these, where NAME is none of {', '.join(RESERVED_NAMES)}.",
            name=name[:200],
        )


def parse_version_prefix(text: str) -> str:
    """Return the beginning of a version in lower case.

    Raises:
        RequestInvalid: it is too short, too long or not hexadecimal.
    """
    prefix = text.lower()
    if _PREFIX.fullmatch(prefix) is None:
        raise RequestInvalid(
            f"{text[:100]!r} is not a version: give {_MIN_PREFIX} to 64 hexadecimal digits of the "
            f"sha256 that listings show."
        )
    return prefix


def parse_versioned_name(text: str) -> tuple[str, str | None]:
    """Split ``name@prefix`` into name and version prefix; the prefix of a plain name is None.

    Raises:
        RequestInvalid: the part after the @ is not the beginning of a version.
    """
    name, at, prefix = text.partition("@")
    return name, parse_version_prefix(prefix) if at else None


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Condition under which a name may be changed, from If-Match and If-None-Match."""

    versions: frozenset[str] | None = None  # the name points at one of these; None: no condition
    exists: bool = False
    is_new: bool = False

    def check(self, name: str, current: str | None) -> None:
        """Raise VersionChanged if the condition does not hold.

        Args:
            name: of the task.
            current: the version it points at; None if there is no such task.
        """
        if self.is_new and current is not None:
            expected = "none"
        elif self.exists and current is None:
            expected = "any"
        elif self.versions is not None and current not in self.versions:
            expected = ", ".join(sorted(self.versions))
        else:
            return
        found = f"is at version {current[:12]}" if current else "does not exist"
        shown = expected if expected in ("none", "any") else f"version {expected[:12]}"
        raise VersionChanged(
            f"Task {name!r} {found}, but the request expected {shown}. Nothing was changed. "
            f"Read the task again before you change it.",
            name=name,
            expected=expected,
            current=current or "none",
        )


ALWAYS = Condition()


def parse_condition(if_match: str | None, if_none_match: str | None) -> Condition:
    """Return the condition that the two headers state.

    Raises:
        RequestInvalid: they are not entity tags of this service.
    """
    is_new = False
    if if_none_match is not None:
        if if_none_match.strip() != "*":
            raise RequestInvalid(
                f"If-None-Match is {if_none_match[:200]!r}; a change accepts only *, which means: "
                f"only if there is no such task."
            )
        is_new = True
    if if_match is None:
        return Condition(is_new=is_new)
    if if_match.strip() == "*":
        return Condition(is_new=is_new, exists=True)
    tags = [tag.strip() for tag in if_match.split(",")]
    found = [re.fullmatch(r'"([0-9a-f]{64})"', tag) for tag in tags]
    versions = frozenset(match[1] for match in found if match is not None)
    if len(versions) != len(set(tags)):
        raise RequestInvalid(
            f"If-Match is {if_match[:200]!r}; expected * or the task's ETag, a sha256 in quotes."
        )
    return Condition(is_new=is_new, versions=versions)
