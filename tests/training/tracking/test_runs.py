"""Runs of a command in a tracker: what is logged, and what a tracker that fails may cost."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from prompt_serve.training.tracking.runs import TrackedRuns, numbers

DOCUMENT: dict[str, Any] = {
    "file": "pets.safetensors",
    "name": "pets",
    "method": "dip",
    "class_names": ["cat", "dog"],
    "learned_numbers": 40,
    "payload_bytes": 80,
    "file_bytes": 900,
    "temperature": 0.5,
    "unknown_below": 0.0,
    "unlike_below": None,
    "training": {"learning_rate": 0.2, "epochs": 3, "templates": ["{}"], "views": None},
    "metrics": {"test": {"accuracy": 0.5, "per_class": [0.5]}, "images": {"test": 4}},
    "notes": [],
    "seconds": {"learning": 0.5},
}
EPOCH = {
    "epoch": 0, "learning_rate": 0.1, "loss": 2.0, "val_accuracy": None, "val_loss": 1.5,
    "idk": [0.5, 0.25], "seconds": 0.01, "facts": {"bits": 4, "kept": [1, 2]},
}  # fmt: skip


class Notebook:
    """A tracker that keeps what it is told, and fails from the n-th call on."""

    def __init__(self, name: str, calls: list[Any], fails_at: int) -> None:
        self.place, self._calls, self._fails_at = f"notebook {name}", calls, fails_at
        self._note("begin", name)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._note("metrics", dict(values), step)

    def finish(self, *outcome: Any) -> None:
        self._note("finish", *outcome)

    def fail(self) -> None:
        self._note("fail")

    def _note(self, *call: Any) -> None:
        if len(self._calls) >= self._fails_at:
            self._calls.append("failed")
            raise ConnectionError("no such host\nat all.")
        self._calls.append(call)


def runs_of(fails_at: int = 1000) -> tuple[TrackedRuns, list[Any], list[str]]:
    calls: list[Any] = []
    warnings: list[str] = []
    runs = TrackedRuns(
        lambda name: Notebook(name, calls, fails_at),
        lambda seed: "pets" if seed is None else f"pets-seed{seed}",
        warnings.append,
    )
    return runs, calls, warnings


def test_a_run_has_its_curves_settings_and_results() -> None:
    runs, calls, warnings = runs_of()

    runs.begin()
    runs.line(EPOCH)
    runs.line({"candidate": {"label": "dip"}})
    runs.line({"metrics": {}, "seconds": {}})
    place = runs.finish(DOCUMENT)
    runs.close()

    begin, metrics, (_, parameters, results, document, file) = calls
    assert begin == ("begin", "pets")
    expected = {
        "learning_rate": 0.1, "loss": 2.0, "val_loss": 1.5, "epoch_seconds": 0.01,
        "idk_1": 0.5, "idk_2": 0.25, "bits": 4.0,
    }  # fmt: skip
    assert metrics == ("metrics", expected, 0)
    assert parameters == {
        "name": "pets", "method": "dip", "classes": "2", "learning_rate": "0.2", "epochs": "3",
        "templates": '["{}"]',
    }  # fmt: skip
    assert results == {
        "test/accuracy": 0.5, "images/test": 4.0, "seconds/learning": 0.5, "learned_numbers": 40.0,
        "payload_bytes": 80.0, "file_bytes": 900.0, "temperature": 0.5, "unknown_below": 0.0,
    }  # fmt: skip
    assert (document, file) == (DOCUMENT, Path("pets.safetensors"))
    assert (place, warnings) == ("notebook pets", [])


@pytest.mark.parametrize("order", ["one after the other", "at once"])
def test_learning_rates_that_are_tried_have_curves_of_their_own(order: str) -> None:
    runs, calls, _ = runs_of()
    pairs = [(epoch, tried) for tried in (1, 2, 3) for epoch in (0, 1)]

    for epoch, tried in pairs if order == "one after the other" else sorted(pairs):
        runs.line({"epoch": epoch, "loss": float(tried)})

    seen = {(step, name): value for _, values, step in calls[1:] for name, value in values.items()}
    assert seen == {
        (epoch, "loss" if tried == 1 else f"try{tried}/loss"): float(tried)
        for epoch, tried in pairs
    }


@pytest.mark.parametrize("seeds", [(1,), (1, 2), (3, 1, 2)])
def test_every_seed_is_a_run(seeds: tuple[int, ...]) -> None:
    runs, calls, _ = runs_of()

    for epoch in (0, 1):
        for seed in seeds:
            runs.line({"seed": seed, "epoch": epoch, "loss": float(seed)})
    places = [runs.finish({**DOCUMENT, "seed": seed}) for seed in seeds]

    assert places == [f"notebook pets-seed{seed}" for seed in seeds]
    assert [call[1] for call in calls if call[0] == "begin"] == [f"pets-seed{s}" for s in seeds]
    assert [call[1] for call in calls if call[0] == "metrics"] == 2 * [
        {"loss": float(seed)} for seed in seeds
    ]


@pytest.mark.parametrize("fails_at", range(6))
def test_after_its_first_error_a_tracker_is_left_alone(fails_at: int) -> None:
    runs, calls, warnings = runs_of(fails_at)

    runs.begin()
    for epoch in range(3):
        runs.line({**EPOCH, "epoch": epoch})
    place = runs.finish(DOCUMENT)
    runs.close()

    tells = fails_at < 5
    assert place == (None if tells else "notebook pets")
    assert calls[fails_at:] == (["failed"] if tells else [])
    assert warnings == (
        ["The tracker failed: no such host at all. The run continues without it."] if tells else []
    )


def test_a_run_without_outcome_ends_as_failed() -> None:
    runs, calls, _ = runs_of()

    runs.begin(1)
    runs.begin(2)
    runs.finish({**DOCUMENT, "seed": 1})
    runs.close()

    assert [call[0] for call in calls] == ["begin", "begin", "finish", "fail"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {}),
        ({"a": 1, "b": 0.5, "c": None, "d": "x", "e": [1], "f": True}, {"a": 1.0, "b": 0.5}),
        ({"a": {"b": {"c": 3}}}, {"a/b/c": 3.0}),
        ({"a": {}}, {}),
    ],
)
def test_numbers_of_nested_mappings(values: dict[str, Any], expected: dict[str, float]) -> None:
    assert numbers(values) == expected
