"""Scoring of stored embeddings against the matrix product alone, in CPU time and by the clock.

    python -m benchmarks.embeddings_scoring                   1,000,000 x 1,000 classes, E = 512
    python -m benchmarks.embeddings_scoring --tasks 1000 --classes 10 --rows 16384

In one process, in turns, batch by batch: a plain sgemm over the same rows and classes; scoring
alone; scoring to tables; and scoring to a Parquet part. CPU time counts all threads, so its ratios
hold on a machine that is shared. ``OPENBLAS_NUM_THREADS=1`` takes waiting threads of the library
out of all. By the clock, the part is written while the next products are computed.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from prompt_serve.offline.columns import ScoreColumns, score_schema
from prompt_serve.offline.encoding import EMBEDDINGS_PER_BATCH
from prompt_serve.offline.parts import PartFolder
from prompt_serve.offline.score_job import images_per_table
from prompt_serve.offline.task_scores import TaskScorer, TaskScores
from prompt_serve.scoring import unit
from prompt_serve.tasks.predictions import NamedTasks
from prompt_serve.tasks.task import Task
from prompt_serve.types import FloatArray

LOGITS = 4 * 2**20  # of one plain matrix product
PART = "part-0.parquet"


class Work:
    """What is measured, each on a whole batch of embeddings."""

    def __init__(self, batch: FloatArray, tasks: NamedTasks, top_k: int, threads: int) -> None:
        self.batch, self.tasks = batch, tasks
        self.stacked = np.concatenate([task.class_features for _, task in tasks])
        self.scorer = TaskScorer(tasks, logit_scale=100.0, top_k=top_k, threads=threads)
        self.columns = ScoreColumns(self.scorer)
        self.sources = [f"embeddings.npy#{row}" for row in range(len(batch))]

    def sgemm(self) -> None:
        rows = max(16, LOGITS // len(self.stacked))
        out = np.empty((rows, len(self.stacked)), dtype=np.float32)
        for start in range(0, len(self.batch), rows):
            some = self.batch[start : start + rows]
            np.matmul(some, self.stacked.T, out=out[: len(some)])

    def scored(self) -> None:
        for _ in self._scores():
            pass

    def in_tables(self) -> None:
        for _ in self._tables():
            pass

    def in_a_part(self, folder: str) -> None:
        facts: dict[str, str] = {}
        with PartFolder(folder).writer(PART, score_schema(), facts, self.columns.schema) as part:
            for table in self._tables():
                part.write(table)

    def _scores(self) -> Iterator[tuple[slice, TaskScores]]:
        images = images_per_table(len(self.tasks), self.scorer.k)
        for first in range(0, len(self.batch), images):
            rows = slice(first, first + images)
            yield rows, self.scorer([self.batch[rows]] * len(self.tasks))

    def _tables(self) -> Iterator[pa.Table]:
        for rows, scores in self._scores():
            yield self.columns.table(self.sources[rows], scores, {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=1000, help="per task")
    parser.add_argument("--tasks", type=int, default=1)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--top-k", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    tasks: NamedTasks = [
        (f"task-{index}", _task(rng, index, arguments.classes, arguments.width))
        for index in range(arguments.tasks)
    ]
    n = min(arguments.rows, EMBEDDINGS_PER_BATCH)
    batch = unit(rng.standard_normal((n, arguments.width), dtype=np.float32))
    work = Work(batch, tasks, arguments.top_k, arguments.threads)
    batches = max(1, arguments.rows // n)
    names = ("sgemm", "scored", "in tables", "in a part")
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}  # CPU, clock
    with tempfile.TemporaryDirectory() as folder:
        steps = (work.sgemm, work.scored, work.in_tables, lambda: work.in_a_part(folder))
        for turn in range(arguments.turns + 1):
            spent = {name: np.zeros(2) for name in names}
            for _ in range(batches):
                for name, step in zip(names, steps, strict=True):
                    spent[name] += _seconds(step)
            if turn:  # the first is a warm-up
                for name in names:
                    found[name].append((float(spent[name][0]), float(spent[name][1])))
            print(f"turn {turn}: CPU and clock in s, {spent}")
        size = Path(folder, PART).stat().st_size
    columns = len(work.stacked)
    print(f"{batches * n:,} x {columns:,} classes of {len(tasks):,} tasks, E = {arguments.width}")
    flops = 2.0 * batches * n * columns * arguments.width
    cpu = statistics.median(seconds[0] for seconds in found["sgemm"])
    print(f"sgemm: {flops / cpu / 1e9:.0f} GFLOP per CPU second")
    rows = batches * n * len(tasks)
    for name in names[1:]:
        of_cpu, of_clock = (
            [one[kind] / own[kind] for one, own in zip(found["sgemm"], found[name], strict=True)]
            for kind in range(2)
        )
        beside = statistics.median(own[0] for own in found[name]) - cpu
        print(f"{name}: {statistics.median(of_cpu):.1%} of sgemm in CPU ({min(of_cpu):.1%} to "
              f"{max(of_cpu):.1%}), {statistics.median(of_clock):.1%} by the clock; "
              f"{beside / rows * 1e9:.0f} ns of CPU per row beside it")  # fmt: skip
    print(f"largest resident set: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB,"
          f" part: {size / 2**20:.1f} MiB, {size / n / len(tasks):.1f} bytes per row")  # fmt: skip


def _seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return the CPU time of all threads and the time by the clock."""
    cpu, clock = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - clock


def _task(rng: np.random.Generator, index: int, n_classes: int, width: int) -> Task:
    return Task(
        version=f"{index:064x}",
        class_names=tuple(f"class {index}" for index in range(n_classes)),
        class_features=unit(rng.standard_normal((n_classes, width), dtype=np.float32)),
    )


if __name__ == "__main__":
    main()
