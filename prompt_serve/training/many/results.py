"""Results of runs: a row per run, and a table with mean and standard deviation over the seeds."""

import csv
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from prompt_serve.files import atomic_file
from prompt_serve.training.many.plan import PROMPT, PlannedRun

PARTS = ("test", "val", "cross-validation")  # measured on, the first that there is
TABLE, TABLE_JSON, RUNS, REPORT = "results.csv", "results.json", "runs.csv", "report.html"


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """Result of one run; without the numbers if it failed or was not trained yet."""

    dataset: str
    method: str  # name of the row in the file
    shots: int | None
    seed: int
    status: str  # "complete", "failed" or "missing"
    part: str | None = None  # images that it was measured on
    images: int | None = None
    accuracy: float | None = None  # fractions, 0 to 1
    zero_shot_accuracy: float | None = None
    calibration_error: float | None = None
    payload_bytes: int | None = None
    seconds: float | None = None
    prompt: str | None = None  # file, relative to the folder of all runs
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """Mean and sample standard deviation over the seeds of one dataset, method and shots."""

    dataset: str
    method: str
    shots: int | None
    part: str | None
    seeds: int  # that are complete
    failed: int  # others
    accuracy: float | None
    accuracy_std: float | None  # None with fewer than two seeds
    zero_shot_accuracy: float | None
    calibration_error: float | None
    calibration_error_std: float | None
    payload_bytes: float | None
    seconds: float | None


def row_of(run: PlannedRun) -> RunRow:
    """Return the row of a run from what is stored in its folder."""
    stored = run.stored() or {}
    named: dict[str, Any] = {
        "dataset": run.dataset.name,
        "method": run.method.name,
        "shots": run.shots,
        "seed": run.seed,
    }
    state = run.state
    if state == "complete":
        prompt = str((run.folder / PROMPT).relative_to(run.out))
        return RunRow(**named, status=state, **_numbers(stored["result"]), prompt=prompt)
    if state == "failed":
        return RunRow(**named, status=state, error=str(stored.get("error")))
    return RunRow(**named, status="missing", error="It was not trained to the end.")


def _numbers(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of a row from the document of ``prompt-serve train --json``."""
    held_out = document["held_out"]
    part = next((part for part in PARTS if part in held_out), None)
    return {
        "part": part,
        **(held_out[part] if part else {}),
        "payload_bytes": document["payload_bytes"],
        "seconds": round(sum(document["seconds"].values()), 3),
    }


def table_of(rows: Sequence[RunRow]) -> list[TableRow]:
    """Return the table of all rows, in their order."""
    groups: dict[tuple[str, str, int | None], list[RunRow]] = {}
    for row in rows:
        groups.setdefault((row.dataset, row.method, row.shots), []).append(row)
    return [_table_row(group) for group in groups.values()]


def _table_row(group: Sequence[RunRow]) -> TableRow:
    first, complete = group[0], [row for row in group if row.status == "complete"]

    def values(name: str) -> list[float]:
        found = (getattr(row, name) for row in complete)
        return [value for value in found if value is not None]

    return TableRow(
        dataset=first.dataset,
        method=first.method,
        shots=first.shots,
        part=next((row.part for row in complete), None),
        seeds=len(complete),
        failed=len(group) - len(complete),
        accuracy=_mean(values("accuracy")),
        accuracy_std=_std(values("accuracy")),
        zero_shot_accuracy=_mean(values("zero_shot_accuracy")),
        calibration_error=_mean(values("calibration_error")),
        calibration_error_std=_std(values("calibration_error")),
        payload_bytes=_mean(values("payload_bytes")),
        seconds=_mean(values("seconds")),
    )


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _std(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def write_results(folder: Path, rows: Sequence[RunRow]) -> None:
    """Write the table as CSV and JSON, and the rows of the runs as CSV."""
    table = table_of(rows)
    _write_csv(folder / TABLE, TableRow, table)
    _write_csv(folder / RUNS, RunRow, rows)
    with atomic_file(folder / TABLE_JSON) as temporary:
        temporary.write_text(json.dumps(document_of(rows), indent=1) + "\n", encoding="utf-8")


def document_of(rows: Sequence[RunRow]) -> dict[str, Any]:
    """Return table and rows in JSON types."""
    return {
        "table": [asdict(row) for row in table_of(rows)],
        "runs": [asdict(row) for row in rows],
    }


def _write_csv(path: Path, kind: type, rows: Iterable[Any]) -> None:
    with (
        atomic_file(path) as temporary,
        # A message may name a file that is not called in UTF-8.
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.DictWriter(file, [field.name for field in fields(kind)])
        writer.writeheader()
        writer.writerows(map(asdict, rows))
