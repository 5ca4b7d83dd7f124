"""A part has every row of its tables as a plain table would, or it is not there."""

import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from prompt_serve.offline import parts
from prompt_serve.offline.columns import ScoreColumns, score_schema
from prompt_serve.offline.parts import PartFolder, PartWriter
from prompt_serve.offline.task_scores import TaskScorer
from prompt_serve.scoring import LabelScores, unit
from prompt_serve.tasks.task import Task

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
else:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")

NAME = "part-00000.parquet"
ERRORS = {1: ("image-invalid", "no image"), 8: ("image-invalid", "other")}


def tables(
    n_tasks: int, top_k: int, errors: dict[int, tuple[str, str]]
) -> tuple["pa.Schema", list["pa.Table"]]:
    """Return tables of three images each, of tasks with two to nine classes."""
    rng = np.random.default_rng(n_tasks)
    tasks: list[tuple[str, Task]] = []
    for index in range(n_tasks):
        n = 2 + index % 8
        labels = LabelScores(
            slopes=np.full(n, 9, np.float32),
            offsets=np.zeros(n, np.float32),
            thresholds=np.full(n, 0.6, np.float32),
        )
        tasks.append(
            (
                f"task-{index}",
                Task(
                    version=f"{index:064x}",
                    class_names=tuple(f"class {c}" for c in range(n)),
                    class_features=unit(rng.standard_normal((n, 16), dtype=np.float32)),
                    unknown_below=0.7,
                    label_scores=labels if index % 5 == 4 else None,
                ),
            )
        )
    scorer = TaskScorer(tasks, logit_scale=10.0, top_k=top_k)
    columns = ScoreColumns(scorer)
    found = []
    for start in range(0, 12, 3):
        images = unit(rng.standard_normal((3, 16), dtype=np.float32))
        own = {i - start: error for i, error in errors.items() if start <= i < start + 3}
        sources = [f"{start + i} \udcff.png" for i in range(3)]
        found.append(columns.table(sources, scorer([images] * n_tasks), own))
    return columns.schema, found


@pytest.mark.parametrize("errors", [{}, ERRORS, dict.fromkeys(range(12), ERRORS[1])])
@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("n_tasks", [1, 2, 5, 40])
@pytest.mark.parametrize("rows_per_group", [1, 50, 10**6])
def test_a_part_has_the_rows_and_the_types_of_plain_tables(
    rows_per_group: int,
    n_tasks: int,
    top_k: int,
    errors: dict[int, tuple[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parts, "_ROWS_PER_GROUP", rows_per_group)
    schema, given = tables(n_tasks, top_k, errors)

    with PartFolder(str(tmp_path)).writer(NAME, score_schema(), {"a": 1}, schema) as part:
        for table in given:
            part.write(table)

    found = pq.read_table(tmp_path / NAME)
    assert found.schema.equals(score_schema())
    assert found.to_pylist() == [row for table in given for row in table.to_pylist()]
    assert max_group(tmp_path / NAME) <= rows_per_group
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize("n_tasks", [1, 5, 40])
def test_plain_readers_find_texts_and_numbers(n_tasks: int, tmp_path: Path) -> None:
    schema, given = tables(n_tasks, 2, ERRORS)
    with PartFolder(str(tmp_path)).writer(NAME, score_schema(), {}, schema) as part:
        for table in given:
            part.write(table)

    # Without the types that Arrow keeps beside those of Parquet.
    plain = pq.ParquetFile(tmp_path / NAME).schema
    kinds = {plain.column(i).path: plain.column(i).logical_type.type for i in range(len(plain))}
    assert {path for path, kind in kinds.items() if kind == "STRING"} == {
        "source", "task", "version", "class_name", "labels.list.element",
        "classes.list.element.class_name", "error_code", "error",
    }  # fmt: skip


def test_bytes_bound_a_row_group_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema, given = tables(5, 1, {})
    monkeypatch.setattr(parts, "_BYTES_PER_GROUP", given[0].nbytes)

    with PartFolder(str(tmp_path)).writer(NAME, score_schema(), {}, schema) as part:
        for table in given:
            part.write(table)

    assert max_group(tmp_path / NAME) == given[0].num_rows


def max_group(path: Path) -> int:
    found = pq.ParquetFile(path).metadata
    return max(found.row_group(i).num_rows for i in range(found.num_row_groups))


@pytest.mark.parametrize("fails_at", [0, 1, 3])
@pytest.mark.parametrize("ours", [True, False])
def test_a_part_that_fails_is_not_there(
    fails_at: int, ours: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_ROWS_PER_GROUP", 1)
    schema, given = tables(2, 1, {})
    others = pa.table({"other": [1]})

    def write() -> None:
        with PartFolder(str(tmp_path)).writer(NAME, score_schema(), {}, schema) as part:
            for index, table in enumerate(given):
                if index == fails_at and ours:
                    raise ZeroDivisionError
                part.write(others if index == fails_at else table)

    with pytest.raises(ZeroDivisionError if ours else ValueError):
        write()

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rows", [1, 3, 10])
def test_tables_do_not_pile_up_before_a_slow_disk(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_ROWS_PER_GROUP", 10)
    made: list[weakref.ref[pa.Table]] = []
    most = []

    class SlowDisk:
        def write_table(self, table: "pa.Table", row_group_size: int) -> None:
            time.sleep(0.01)
            alive = [one for ref in made if (one := ref()) is not None]
            most.append(sum(one.num_rows for one in alive))

    with ThreadPoolExecutor(1) as pool:
        part = PartWriter(SlowDisk(), pool)
        for _ in range(60):
            table = pa.table({"n": list(range(rows))})
            made.append(weakref.ref(table))
            part.write(table)
        del table
        part.finish()

    # A row group that is written, one that grows, and the table in hand.
    assert max(most) <= 10 + 10 + rows
