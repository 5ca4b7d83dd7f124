"""``TrackedRuns``: the runs of one training command, in a tracker that may fail.

A prompt is worth more than its curves: after the first error of a tracker one warning is given,
nothing more is sent to it, and the training continues.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

# Parts of a line of the log that are no curves.
_NO_CURVES = ("epoch", "seed", "seconds", "idk", "facts")
_PASSWORD = re.compile(r"://[^/\s@]+@")  # and user, in a URL
# Numbers of an outcome beside its metrics.
_NUMBERS = (
    "learned_numbers", "payload_bytes", "file_bytes", "temperature", "unknown_below",
    "unlike_below", "seconds",
)  # fmt: skip


class Tracker(Protocol):
    """One run in a tracker."""

    place: str  # of the run, for people and programs

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers of a step."""

    def finish(
        self,
        parameters: Mapping[str, str],
        metrics: Mapping[str, float],
        document: Mapping[str, Any],
        file: Path,
    ) -> None:
        """Log settings, results and the prompt file, and end the run."""

    def fail(self) -> None:
        """End the run without a result."""


class TrackedRuns:
    """Runs of one command, one per prompt file.

    Args:
        start: begins a run of a name.
        name_of: returns the name of a run by its seed; None where there is one run.
        warn: shows a sentence.
    """

    def __init__(
        self,
        start: Callable[[str], Tracker],
        name_of: Callable[[int | None], str],
        warn: Callable[[str], object],
    ) -> None:
        self._start, self._name_of, self._warn = start, name_of, warn
        self._runs: dict[int | None, Tracker] = {}
        self._tries: Counter[tuple[int | None, int]] = Counter()
        self._failed = False

    def close(self) -> None:
        """End the runs that have no outcome."""
        for run in self._runs.values():
            self._safely(run.fail)

    def line(self, line: Mapping[str, Any]) -> None:
        """Log a line of the training log; all but those of epochs are ignored.

        Where several learning rates are tried, all but the first have a prefix: ``try2/loss``.
        """
        if "epoch" not in line:
            return
        seed, epoch = line.get("seed"), line["epoch"]
        self._tries[seed, epoch] += 1
        tried = self._tries[seed, epoch]
        prefix = "" if tried == 1 else f"try{tried}/"
        values = {
            **{name: value for name, value in line.items() if name not in _NO_CURVES},
            "epoch_seconds": line.get("seconds"),
            **{f"idk_{k}": value for k, value in enumerate(line.get("idk", ()), start=1)},
            **line.get("facts", {}),
        }
        curves = {f"{prefix}{name}": value for name, value in numbers(values).items()}
        self._safely(lambda: self._run(seed).metrics(curves, epoch))

    def finish(self, document: Mapping[str, Any]) -> str | None:
        """Log the outcome of a run and end it.

        Args:
            document: facts of the finished prompt, with its ``file``.

        Returns:
            Place of the run; None if the tracker failed.
        """
        seed = document.get("seed")

        def finish() -> None:
            parameters = {
                "name": document["name"],
                "method": document["method"],
                "classes": len(document["class_names"]),
                **document["training"],
            }
            results = {**document["metrics"], **{name: document[name] for name in _NUMBERS}}
            self._run(seed).finish(
                {name: _text(value) for name, value in parameters.items() if value is not None},
                numbers(results),
                document,
                Path(document["file"]),
            )

        self._safely(finish)
        run = self._runs.pop(seed, None)
        return None if run is None or self._failed else run.place

    def _run(self, seed: int | None) -> Tracker:
        if seed not in self._runs:
            self._runs[seed] = self._start(self._name_of(seed))
        return self._runs[seed]

    def begin(self, seed: int | None = None) -> None:
        """Begin a run now, so that a tracker that fails is known before the training."""
        self._safely(lambda: self._run(seed))

    def _safely(self, call: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            call()
        except Exception as error:  # of any type: trackers raise those of their HTTP clients
            self._failed = True
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            reason = _PASSWORD.sub("://", reason)
            self._warn(f"The tracker failed: {reason.rstrip('.')}. The run continues without it.")


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers in nested mappings, under names such as ``test/accuracy``."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{name}"] = float(value)
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
