"""Scoring of stored embeddings against the matrix product alone, in CPU time.

    python -m benchmarks.embeddings_scoring                   1,000,000 x 1,000 classes, E = 512
    python -m benchmarks.embeddings_scoring --tasks 1000 --classes 10 --rows 100000

In one process, in turns: a plain sgemm over the same rows in the same blocks, and the scoring of
blocks to tables and to Parquet parts. CPU time counts all threads, so the ratio holds on a machine
that is shared. ``OPENBLAS_NUM_THREADS=1`` takes waiting threads of the library out of both.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from prompt_serve.offline.columns import ScoreColumns, score_schema
from prompt_serve.offline.parts import PartFolder
from prompt_serve.offline.score_job import ROWS_PER_TABLE
from prompt_serve.offline.task_scores import TaskScorer
from prompt_serve.scoring import unit
from prompt_serve.tasks.predictions import NamedTasks
from prompt_serve.tasks.task import Task
from prompt_serve.types import FloatArray

BATCH = 65_536  # embeddings that the offline engine reads at a time
BLOCK = 4096  # rows of one matrix product


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=1000, help="per task")
    parser.add_argument("--tasks", type=int, default=1)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    tasks: NamedTasks = [
        (f"task-{index}", _task(rng, index, arguments.classes, arguments.width))
        for index in range(arguments.tasks)
    ]
    batch = unit(rng.standard_normal((BATCH, arguments.width), dtype=np.float32))
    stacked = np.concatenate([task.class_features for _, task in tasks])
    scorer = TaskScorer(tasks, logit_scale=100.0, top_k=1, threads=arguments.threads)
    columns = ScoreColumns(scorer)
    sources = [f"embeddings.npy#{row}" for row in range(BATCH)]
    ratios: dict[str, list[float]] = {"scored": [], "in a table": [], "in a part": []}
    gflops = []
    batches = max(1, arguments.rows // BATCH)
    images = max(1, ROWS_PER_TABLE // len(tasks))
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(arguments.turns + 1):
            cpu = dict.fromkeys(("sgemm", *ratios), 0.0)
            started = time.monotonic()
            out = PartFolder(folder)
            with out.writer("part-0.parquet", score_schema(), {}) as part:
                for _ in range(batches):
                    cpu["sgemm"] += _cpu(lambda: _products(batch, stacked))
                    for first in range(0, BATCH, images):
                        rows = slice(first, first + images)
                        start = time.process_time()
                        scores = scorer([batch[rows]] * len(tasks))
                        cpu["scored"] += time.process_time() - start
                        table = columns.table(sources[rows], scores, {})
                        cpu["in a table"] += time.process_time() - start
                        part.write(table)
                        cpu["in a part"] += time.process_time() - start
            size = Path(folder, "part-0.parquet").stat().st_size
            if turn:  # the first is a warm-up
                flops = 2.0 * batches * stacked.shape[0] * BATCH * arguments.width
                gflops.append(flops / cpu["sgemm"] / 1e9)
                for name, values in ratios.items():
                    values.append(cpu["sgemm"] / cpu[name])
            print(f"turn {turn}: {time.monotonic() - started:.1f} s, CPU seconds {cpu}")
    print(f"{batches * BATCH:,} x {stacked.shape[0]:,} classes of {len(tasks):,} tasks, E = "
          f"{arguments.width}")  # fmt: skip
    print(f"sgemm: {statistics.median(gflops):.0f} GFLOP per CPU second")
    for name, values in ratios.items():
        print(f"{name}: {statistics.median(values):.1%} of sgemm ({min(values):.1%} to "
              f"{max(values):.1%})")  # fmt: skip
    print(f"largest resident set: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB,"
          f" part: {size / 2**20:.1f} MiB")  # fmt: skip


def _cpu(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _products(batch: FloatArray, classes: FloatArray) -> None:
    rows = max(16, BLOCK * 1000 // len(classes))
    out = np.empty((rows, len(classes)), dtype=np.float32)
    for start in range(0, len(batch), rows):
        some = batch[start : start + rows]
        np.matmul(some, classes.T, out=out[: len(some)])


def _task(rng: np.random.Generator, index: int, n_classes: int, width: int) -> Task:
    return Task(
        version=f"{index:064x}",
        class_names=tuple(f"class {index}" for index in range(n_classes)),
        class_features=unit(rng.standard_normal((n_classes, width), dtype=np.float32)),
    )


if __name__ == "__main__":
    main()
