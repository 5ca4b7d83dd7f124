"""Arguments that ``classify``, ``score`` and ``score_embeddings`` share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from prompt_serve.errors import RequestInvalid
from prompt_serve.schemas import DEFAULT_TOP_K

ALL_TASKS = "*"


@dataclass(frozen=True, kw_only=True)
class ClassifyOptions:
    """Tasks to score the images against, classes per task, and time limit of a request."""

    tasks: tuple[str, ...]
    tags: tuple[str, ...] = ()
    top_k: int = DEFAULT_TOP_K
    deadline_s: float | None = None
    top_tasks: int | None = None  # only so many tasks per image, best first

    @classmethod
    def from_arguments(
        cls,
        tasks: str | Sequence[str],
        tags: str | Sequence[str] = (),
        top_k: int = DEFAULT_TOP_K,
        deadline_s: float | None = None,
        top_tasks: int | None = None,
    ) -> Self:
        """Check a caller's arguments; a single name becomes a tuple, duplicates are dropped.

        Raises:
            RequestInvalid: no task and no tag, or a deadline that is not above 0.
        """
        if deadline_s is not None and deadline_s <= 0:
            raise RequestInvalid(f"deadline_s is {deadline_s:g}; expected seconds above 0.")
        options = cls(
            tasks=_unique(tasks),
            tags=_unique(tags),
            top_k=top_k,
            deadline_s=deadline_s,
            top_tasks=top_tasks,
        )
        if not options.selectors:
            raise RequestInvalid("No task was named. Name at least one, as in tasks='pets'.")
        return options

    @property
    def n_tasks(self) -> int | None:
        """Number of tasks; None if only the service knows it."""
        return None if self.tags or ALL_TASKS in self.tasks else len(self.tasks)

    @property
    def n_predictions(self) -> int | None:
        """Number of predictions per image; None if only the service knows it."""
        return self.n_tasks and min(self.n_tasks, self.top_tasks or self.n_tasks)

    def may_exceed(self, max_tasks: int) -> bool:
        """Return True if a JSON answer of at most ``max_tasks`` tasks may be too small."""
        return self.top_tasks is None and (self.n_tasks is None or self.n_tasks > max_tasks)

    @property
    def selectors(self) -> tuple[str, ...]:
        """Task names and ``tag:NAME`` entries, as the rows of failed images list them."""
        return (*self.tasks, *(f"tag:{tag}" for tag in self.tags))

    def groups(self, max_tasks: int) -> list[Self]:
        """Split into requests of at most ``max_tasks`` tasks, if the tasks can be counted."""
        if self.n_tasks is None or self.top_tasks is not None:
            return [self]
        return [
            replace(self, tasks=self.tasks[i : i + max_tasks])
            for i in range(0, len(self.tasks), max_tasks)
        ]


def _unique(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
