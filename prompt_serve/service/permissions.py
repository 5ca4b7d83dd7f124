"""Permissions of a caller: what it may do, and to which tasks.

``middleware.auth`` asks for the action of a route, ``storage.visibility`` for the tasks; nothing
else decides.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

from prompt_serve.errors import RequestInvalid

Action = Literal["read", "classify", "upload", "admin"]
ACTIONS: tuple[Action, ...] = get_args(Action)
Role = Literal["infer", "admin", "custom"]
# Shorthands; any other set of actions is the role custom.
ROLES: dict[Role, frozenset[Action]] = {
    "infer": frozenset({"read", "classify"}),
    "admin": frozenset(ACTIONS),
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}\*?|\*")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/=+-]{0,63}")


@dataclass(frozen=True)
class Permissions:
    """Actions, and the tasks that they are limited to.

    Attributes:
        actions: what the caller may do.
        names: names of tasks; with * at the end, the beginning of names.
        tags: tasks with one of these tags. Without names and tags, the caller may use all tasks.
    """

    actions: frozenset[Action] = frozenset(ACTIONS)
    names: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    @classmethod
    def checked(
        cls, actions: Iterable[str], names: Iterable[str] = (), tags: Iterable[str] = ()
    ) -> "Permissions":
        """Return permissions made from texts.

        Raises:
            RequestInvalid: an action, a name or a tag is not one.
        """
        texts = set(actions)
        given = [action for action in ACTIONS if action in texts]
        if unknown := sorted(texts.difference(given)):
            raise RequestInvalid(
                f"{unknown[0][:100]!r} is not an action; expected {', '.join(ACTIONS)}."
            )
        if not given:
            raise RequestInvalid(f"There is no action; expected some of {', '.join(ACTIONS)}.")
        found = cls(frozenset(given), tuple(sorted(set(names))), tuple(sorted(set(tags))))
        for kind, pattern, listed in (
            ("the name of a task, or its beginning and *", _NAME, found.names),
            ("a tag", _TAG, found.tags),
        ):
            for text in listed:
                if pattern.fullmatch(text) is None:
                    raise RequestInvalid(f"{text[:200]!r} is not {kind}.")
        if found.tags and found.actions & {"upload", "admin"}:
            raise RequestInvalid(
                "A key that is limited by tag may only read and classify: whoever changes a task "
                "also sets its tags. Limit it to names instead, for example team/*."
            )
        return found

    @property
    def role(self) -> Role:
        """Return the shorthand for the actions."""
        return next((role for role, actions in ROLES.items() if actions == self.actions), "custom")

    @property
    def has_all_tasks(self) -> bool:
        """Return True if the actions hold for all tasks."""
        return not self.names and not self.tags

    @cached_property
    def of_tasks(self) -> "Permissions":
        """The same tasks without the actions: callers with equal ones see the same tasks."""
        return replace(self, actions=frozenset())

    def allow_name(self, name: str) -> bool:
        """Return True if a task of this name may be changed, whether it exists or not."""
        return self.has_all_tasks or any(
            name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
            for pattern in self.names
        )


EVERYTHING = Permissions()


@dataclass(frozen=True, kw_only=True)
class Quota:
    """Limits of a key; None: no limit. Keys of the same name share them.

    Attributes:
        requests_per_s: requests, by all workers of a service.
        images_per_s: images, by all workers of a service.
        concurrency: requests being answered at once, by all workers of a service.
        tasks: tasks that the key may see.
        stored_bytes: prompt files of these tasks, with the versions that are kept.
    """

    requests_per_s: float | None = None
    images_per_s: float | None = None
    concurrency: int | None = None
    tasks: int | None = None
    stored_bytes: int | None = None


NO_LIMITS = Quota()
