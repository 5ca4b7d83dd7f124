"""How far a long step has come: a bar on standard error, or nothing."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tqdm import tqdm

Advance = Callable[[int], object]  # told how many more items are done


@dataclass(frozen=True)
class Progress:
    """Shows bars where somebody watches: standard error is a terminal, and ``quiet`` is not set."""

    quiet: bool = False

    @contextmanager
    def bar(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        hidden = self.quiet or not sys.stderr.isatty()
        with tqdm(total=total, desc=label, unit=unit, leave=False, disable=hidden) as shown:
            yield shown.update


SILENT = Progress(quiet=True)


def no_advance(count: int) -> None:
    """For callers that do not want to know."""
