"""Names of tasks and of versions in requests: ``task``, ``task@sha``, ETags and conditions."""

import re
from dataclasses import dataclass

from prompt_serve.errors import RequestInvalid, TaskNameInvalid, VersionChanged
from prompt_serve.schemas import TASK_NAME_PATTERN

MIN_PREFIX = 8  # hex digits: short enough to type, long enough not to be met by chance
_PREFIX = re.compile(r"[0-9a-f]{8,64}")
_TASK_NAME = re.compile(TASK_NAME_PATTERN.strip("^$"))


def is_task_name(name: str) -> bool:
    """Whether a task may be named so; other texts never reach the database."""
    return _TASK_NAME.fullmatch(name) is not None


def check_task_name(name: str) -> None:
    """Raise TaskNameInvalid unless ``name`` may be the name of a task."""
    if not is_task_name(name):
        raise TaskNameInvalid(
            f"{name[:200]!r} cannot be the name of a task. Use 1 to 128 letters, digits, dots, "
            f"underscores and hyphens, beginning with a letter or digit.",
            name=name[:200],
        )


def checked_prefix(text: str) -> str:
    """The beginning of a version, in small letters.

    Raises:
        RequestInvalid: it is too short, or not hexadecimal.
    """
    prefix = text.lower()
    if _PREFIX.fullmatch(prefix) is None:
        raise RequestInvalid(
            f"{text[:100]!r} is not a version: give {MIN_PREFIX} to 64 hexadecimal digits of the "
            f"sha256 that listings show."
        )
    return prefix


@dataclass(frozen=True)
class Pin:
    """``task@prefix``: that task at the one version of its history that begins like this."""

    name: str
    prefix: str


def pin_of(text: str) -> Pin | None:
    """The pin that ``text`` is, None where it is a plain name.

    Raises:
        RequestInvalid: what follows the @ is no version.
    """
    name, at, prefix = text.partition("@")
    return Pin(name, checked_prefix(prefix)) if at else None


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What must hold of a name for a change to be made: If-Match and If-None-Match."""

    versions: frozenset[str] | None = None  # it points at one of these; None: whatever it is
    exists: bool = False
    is_new: bool = False

    def check(self, name: str, current: str | None) -> None:
        """Raise VersionChanged where it does not hold.

        Args:
            name: of the task.
            current: the version it points at, None where there is no such task.
        """
        stands = f"is at version {current[:12]}" if current else "does not exist"
        if self.is_new and current is not None:
            wanted = "none"
        elif self.exists and current is None:
            wanted = "any"
        elif self.versions is not None and current not in self.versions:
            wanted = ", ".join(sorted(self.versions))
        else:
            return
        raise VersionChanged(
            f"Task {name!r} {stands}; the request was made for "
            f"{wanted if wanted in ('none', 'any') else 'version ' + wanted[:12]}. "
            f"Nothing was changed. Look at the task again, then decide.",
            name=name,
            expected=wanted,
            current=current or "none",
        )


ALWAYS = Condition()


def condition_of(if_match: str | None, if_none_match: str | None) -> Condition:
    """The condition that the two headers state.

    Raises:
        RequestInvalid: they are not entity tags as this service gives them.
    """
    is_new = False
    if if_none_match is not None:
        if if_none_match.strip() != "*":
            raise RequestInvalid("If-None-Match of a change must be *: only where there is none.")
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
            f"If-Match is {if_match[:200]!r}; wanted * or the task's ETag, a sha256 in quotes."
        )
    return Condition(is_new=is_new, versions=versions)
