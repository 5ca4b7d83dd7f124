"""Passes through the image encoder that the tasks of a request need: one per image prompt."""

from collections.abc import Iterable
from dataclasses import dataclass

from prompt_serve.errors import NotReady
from prompt_serve.prompts.image_rows import ImageRows
from prompt_serve.tasks.task import Task


@dataclass(frozen=True)
class ImagePasses:
    """Vectors of each pass, None for the plain tower; tasks with equal vectors share a pass."""

    rows: tuple[ImageRows | None, ...]

    @classmethod
    def of(cls, rows: Iterable[ImageRows | None]) -> "ImagePasses":
        """Return the passes of tasks with these vectors, in the order in which they come."""
        return cls(tuple({_key(own): own for own in rows}.values()))

    def index_of(self, task: Task) -> int:
        """Return the pass whose features score a task.

        Raises:
            NotReady: there is none, since the task was replaced after the passes were planned.
        """
        key = _key(task.image_rows)
        for index, own in enumerate(self.rows):
            if _key(own) == key:
                return index
        raise NotReady("A task was replaced while it was asked. Ask again.", retry_after_s=0.1)


PLAIN = ImagePasses((None,))


def _key(rows: ImageRows | None) -> bytes | None:
    return None if rows is None else rows.digest
