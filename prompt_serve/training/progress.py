"""Progress bars on standard error, and the seconds spent per stage."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tqdm import tqdm

Advance = Callable[[int], object]  # called with the number of items done since the last call


@dataclass(frozen=True)
class Progress:
    """Progress bars, shown where standard error is a terminal and ``quiet`` is not set."""

    quiet: bool = False

    @contextmanager
    def bar(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        hidden = self.quiet or not sys.stderr.isatty()
        with tqdm(total=total, desc=label, unit=unit, leave=False, disable=hidden) as shown:
            yield shown.update


SILENT = Progress(quiet=True)


def no_advance(count: int) -> None:
    """Ignore progress; the default where no bar is shown."""


class StageTimer:
    """Adds up the seconds spent in each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
