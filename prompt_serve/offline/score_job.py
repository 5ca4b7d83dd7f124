"""A scoring job: prompts, shards and an output folder; and what scores one shard of it.

Every engine runs the same job: this process shard by shard, Ray with many processes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from prompt_serve import __version__
from prompt_serve.errors import ConfigInvalid, PromptUnsupported
from prompt_serve.offline.columns import ScoreColumns, score_schema
from prompt_serve.offline.encoding import (
    EMBEDDINGS_PER_BATCH,
    EncodedBatch,
    check_fingerprint,
    encoded_batches,
    unit_batch,
)
from prompt_serve.offline.model import Model, load_model
from prompt_serve.offline.parts import PartFolder
from prompt_serve.offline.task_scores import TaskScorer, best_tasks
from prompt_serve.sources.shard import EmbeddingShard, Shard, digest, holds_embeddings
from prompt_serve.sources.tables import table_shards
from prompt_serve.tasks.image_passes import PLAIN
from prompt_serve.types import FloatArray

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS_PER_TABLE = 2**19
_CLASSES_PER_TABLE = 2**21

Advance = Callable[[int], object]  # called with the number of images done since the last call


@dataclass(frozen=True, kw_only=True)
class ScoreJob:
    """What to score and where to; can be sent to another process."""

    prompts: Mapping[str, str]  # prompt files by name
    bundle: str | None = None
    device: str = "cpu"
    threads: int = 0
    top_k: int = 1
    top_tasks: int | None = None  # rows per image, of the best tasks; None: all tasks
    out: str  # folder of parts
    embeddings: str | None = None  # folder to keep the embeddings in

    def load(self) -> Model:
        """Load the prompts over their bundle."""
        return load_model(
            self.prompts, bundle=self.bundle, device=self.device, threads=self.threads
        )


@dataclass(frozen=True)
class Counts:
    """Numbers of what was scored."""

    images: int = 0
    rows: int = 0
    errors: int = 0  # rows
    unknown: int = 0  # rows

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.images + other.images,
            self.rows + other.rows,
            self.errors + other.errors,
            self.unknown + other.unknown,
        )


class ShardScorer:
    """Scores shards of one job, and writes their parts.

    Args:
        job: the job.
        model: its prompts, loaded.

    Raises:
        ConfigInvalid: embeddings are to be kept, but no prompt uses the plain image tower.
    """

    def __init__(self, job: ScoreJob, model: Model) -> None:
        self.job, self.model = job, model
        self.out = PartFolder(job.out)
        self.kept = None if job.embeddings is None else PartFolder(job.embeddings)
        if self.kept is not None and None not in model.passes.rows:
            raise ConfigInvalid(
                "Embeddings are those of the plain image tower, but every prompt has learned "
                "vectors for it; there are none to keep."
            )

    def part(self, index: int, shard: Shard) -> str:
        """Return the name of a shard's part."""
        versions = [f"{name}={task.version}" for name, task in self.model.tasks]
        best = [] if self.job.top_tasks is None else [f"top_tasks={self.job.top_tasks}"]
        return _part(
            index, shard.name, *self._backbone, f"top_k={self.job.top_k}", *best, *versions
        )

    def score(self, index: int, shard: Shard, advance: Advance) -> Counts:
        """Score a shard and write its part; the embeddings first, if they are kept."""
        return self.write(index, shard, self.features(index, shard), advance)

    def features(self, index: int, shard: Shard) -> Iterator[EncodedBatch]:
        """Yield the features of a shard: kept ones of an earlier run, if there are."""
        self.check(shard)
        if self.kept is None or holds_embeddings(shard):
            yield from encoded_batches(shard, self.model)
            return
        name = _part(index, shard.name, *self._backbone)
        if self.model.passes == PLAIN and name in self.kept:
            yield from self._kept_features(name)
            return
        with self.kept.writer(name, embedding_schema(self._width), self._facts(shard)) as part:
            plain = self.model.passes.rows.index(None)
            for batch in encoded_batches(shard, self.model):
                part.write(embedding_table(batch, plain, self._width))
                yield batch

    def _kept_features(self, name: str) -> Iterator[EncodedBatch]:
        assert self.kept is not None  # noqa: S101  # for the type checker
        for own in table_shards(self.kept.join(name), rows_per_shard=2**62, column="embedding"):
            for batch in cast(EmbeddingShard, own).batches(EMBEDDINGS_PER_BATCH):
                yield unit_batch(batch, self._width, name)

    def write(
        self,
        index: int,
        shard: Shard,
        batches: Iterable[EncodedBatch],
        advance: Advance = lambda count: None,
    ) -> Counts:
        """Score features and write the part of their shard."""
        counts = Counts()
        facts = {
            **self._facts(shard),
            "tasks": {name: task.version for name, task in self.model.tasks},
            "top_k": self.job.top_k,
        }
        if self.job.top_tasks is not None:
            facts["top_tasks"] = self.job.top_tasks
        name = self.part(index, shard)
        with self.out.writer(name, score_schema(), facts, self._columns.schema) as part:
            for batch in batches:
                for table, some in self.tables(batch):
                    part.write(table)
                    counts += some
                advance(len(batch.sources))
        return counts

    def check(self, shard: Shard) -> None:
        """Raise an error if the prompts cannot score a shard's embeddings.

        Raises:
            PromptUnsupported: a prompt changes the image tower.
            BackboneMismatch: the embeddings are those of another backbone.
        """
        if not holds_embeddings(shard):
            return
        check_fingerprint(shard, self.model)
        for name, task in self.model.tasks:
            if task.image_rows is not None:
                raise PromptUnsupported(
                    f"Prompt {name!r} has learned vectors for the image tower, which change the "
                    f"features of an image; embeddings of the plain tower say nothing to it. "
                    f"Score the images."
                )

    def tables(self, batch: EncodedBatch) -> Iterator[tuple["pa.Table", Counts]]:
        """Yield tables of the scores of some images, with the numbers of what is in them."""
        import pyarrow.compute as pc

        n_tasks = len(self.model.tasks)
        rows = images_per_table(n_tasks, self._scorer.k)
        for start in range(0, len(batch.sources), rows):
            stop = min(start + rows, len(batch.sources))
            features = batch.features[start:stop]
            errors = {
                index - start: error
                for index, error in batch.errors.items()
                if start <= index < stop
            }
            scores = self._scorer(features_by_task(self.model, features))
            table = self._columns.table(batch.sources[start:stop], scores, errors)
            if self.job.top_tasks is not None:
                k = min(self.job.top_tasks, n_tasks)
                table = table.take(best_tasks(scores, k, errors).reshape(-1))
            yield (
                table,
                Counts(
                    stop - start,
                    table.num_rows,
                    table.num_rows - table["error_code"].null_count,
                    pc.sum(table["unknown"]).as_py() or 0,
                ),
            )

    @cached_property
    def _scorer(self) -> TaskScorer:
        return TaskScorer(
            self.model.tasks,
            logit_scale=self.model.bundle.manifest.logit_scale,
            top_k=self.job.top_k,
            threads=self.model.threads,
        )

    @cached_property
    def _columns(self) -> ScoreColumns:
        return ScoreColumns(self._scorer)

    @property
    def _width(self) -> int:
        return self.model.bundle.manifest.backbone.embed_dim

    @property
    def _backbone(self) -> tuple[str, str]:
        manifest = self.model.bundle.manifest
        return manifest.backbone.fingerprint, manifest.precision

    def _facts(self, shard: Shard) -> dict[str, Any]:
        manifest = self.model.bundle.manifest
        return {
            "format": 1,
            "tool_version": __version__,
            "backbone": manifest.backbone.id,
            "fingerprint": manifest.backbone.fingerprint,
            "precision": manifest.precision,
            "shard": shard.name,
        }


def images_per_table(n_tasks: int, k: int) -> int:
    """Return how many images to score at once: many for one matrix product, few for the memory.

    Args:
        k: number of classes per row of the output.
    """
    return max(1, min(_ROWS_PER_TABLE, _CLASSES_PER_TABLE // k) // n_tasks)


def features_by_task(model: Model, features: FloatArray) -> list[FloatArray]:
    """Return for each task the features (N, E) of its pass, from those of all (N, V, E)."""
    of_pass = [np.ascontiguousarray(features[:, index]) for index in range(features.shape[1])]
    return [of_pass[model.passes.index_of(task)] for _, task in model.tasks]


def embedding_schema(width: int) -> "pa.Schema":
    """Return the schema of kept embeddings (E = ``width``)."""
    import pyarrow as pa

    return pa.schema(
        [
            ("source", pa.string()),
            ("embedding", pa.list_(pa.float32(), width)),
            ("error_code", pa.string()),
            ("error", pa.string()),
        ]
    )


def embedding_table(batch: EncodedBatch, of_pass: int, width: int) -> "pa.Table":
    """Return the embeddings of one pass; null for images with an error."""
    import pyarrow as pa

    n = len(batch.sources)
    failed = np.zeros(n, dtype=np.bool_)
    failed[list(batch.errors)] = True
    values = pa.array(np.ascontiguousarray(batch.features[:, of_pass]).reshape(-1))
    sources = [source.encode("utf-8", "backslashreplace").decode() for source in batch.sources]
    return pa.Table.from_arrays(
        [
            pa.array(sources, pa.string()),
            pa.FixedSizeListArray.from_arrays(values, width, mask=pa.array(failed)),
            *(
                pa.array(
                    [batch.errors[i][part] if i in batch.errors else None for i in range(n)],
                    pa.string(),
                )
                for part in range(2)
            ),
        ],
        schema=embedding_schema(width),
    )


def _part(index: int, *parts: str) -> str:
    return f"part-{index:05d}-{digest(*parts)}.parquet"
