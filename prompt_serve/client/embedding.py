"""Embeddings of images, and predictions for embeddings that were made before."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from prompt_serve.client import wire
from prompt_serve.client.chunk_runner import ChunkRunner, Question, is_of_one_image
from prompt_serve.client.connection import Connection
from prompt_serve.client.images import ImageFile, UnreadableImage
from prompt_serve.client.retries import RetryPolicy
from prompt_serve.client.scoring import Plan
from prompt_serve.errors import (
    BackboneMismatch,
    PromptServeError,
    RequestInvalid,
    RequestTooLarge,
    ServiceFailed,
)
from prompt_serve.schemas import EmbeddedImage, ImageResult, Problem
from prompt_serve.types import FloatArray


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of N images, in their order."""

    vectors: FloatArray  # (N, E), unit length; NaN where there is an error
    errors: dict[int, Problem]  # by the place of the image
    backbone: str
    fingerprint: str  # of the backbone: only embeddings of one backbone can be compared


EmbeddingSource: TypeAlias = Embeddings | NDArray[Any] | Sequence[Sequence[float]]


@dataclass(frozen=True)
class Embedded:
    """One image's embedding, and which backbone made it."""

    image: EmbeddedImage
    backbone: str = ""
    fingerprint: str = ""


class Embedder(ChunkRunner[Embedded]):
    """Asks for the embeddings of chunks of images."""

    def __init__(
        self, connection: Connection, *, plan: Plan, retry: RetryPolicy, deadline_s: float | None
    ) -> None:
        super().__init__(connection, plan=plan, retry=retry)
        self._deadline_s = deadline_s

    async def _ask(self, files: list[ImageFile]) -> list[Embedded]:
        """Ask; what fails as a whole is cut in two, until the image at fault stands alone."""
        call = wire.embed_call(files, self._deadline_s)
        try:
            reply = await self._connection.send(call, self._retry)
            images, answer = wire.embeddings_of(reply.response, len(files))
            made_by = ("", "") if answer is None else (answer.backbone, answer.fingerprint)
            return [Embedded(image, *made_by) for image in images]
        except (RequestTooLarge, ServiceFailed) as error:
            if not is_of_one_image(error):
                raise
            if len(files) == 1:
                return [self._failed(files[0], error)]
        middle = len(files) // 2
        return [*await self._ask(files[:middle]), *await self._ask(files[middle:])]

    def _failed(self, image: ImageFile | UnreadableImage, error: PromptServeError) -> Embedded:
        return Embedded(EmbeddedImage(index=image.index, error=wire.problem_from(error)))


def together(
    embedded: Sequence[Embedded], backbone: str, fingerprint: str, width: int
) -> Embeddings:
    """What many requests gave, as one.

    Raises:
        BackboneMismatch: the service changed its backbone between the requests.
    """
    vectors = np.full((len(embedded), width), np.nan, dtype=np.float32)
    errors: dict[int, Problem] = {}
    for place, one in enumerate(embedded):
        if one.image.error is not None:
            errors[place] = one.image.error
        elif one.fingerprint != fingerprint:
            raise BackboneMismatch(
                f"The service ran {backbone!r} when asked what it runs, and embedded with "
                f"{one.backbone!r}. Embed all images again.",
                learned_on=one.backbone,
                served=backbone,
            )
        else:
            vectors[place] = one.image.embedding
    return Embeddings(vectors, errors, backbone, fingerprint)


class EmbeddingScorer:
    """Asks tasks about embeddings, ``plan.max_embeddings`` a request."""

    def __init__(
        self, connection: Connection, asked: Question, *, plan: Plan, retry: RetryPolicy
    ) -> None:
        self._connection = connection
        self._groups = asked.groups(plan.max_tasks)
        self._size = plan.max_embeddings
        self._retry = retry

    async def __call__(self, rows: FloatArray, fingerprint: str | None) -> list[ImageResult]:
        """One result a row (N, E), in their order."""
        results: list[ImageResult] = []
        for start in range(0, len(rows), self._size):
            part = rows[start : start + self._size].tolist()
            answers = [await self._ask(part, group, fingerprint) for group in self._groups]
            for place, parts in enumerate(zip(*answers, strict=True)):
                merged = wire.merged(parts)
                results.append(merged.model_copy(update={"index": start + place}))
        return results

    async def _ask(
        self, rows: list[list[float]], group: Question, fingerprint: str | None
    ) -> list[ImageResult]:
        call = wire.score_call(
            rows, group.tasks, group.tags, group.top_k, group.deadline_s, fingerprint
        )
        reply = await self._connection.send(call, self._retry)
        return wire.scores_of(reply.response, len(rows), group.n_tasks)


def rows_of_embeddings(embeddings: EmbeddingSource) -> tuple[FloatArray, str | None]:
    """Embeddings as (N, E), and the fingerprint of their backbone where it is known.

    Raises:
        RequestInvalid: they are not of that shape.
    """
    source = embeddings.vectors if isinstance(embeddings, Embeddings) else embeddings
    try:
        rows = np.asarray(source, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise RequestInvalid(f"The embeddings are no table of numbers: {error}") from error
    rows = rows[np.newaxis] if rows.ndim == 1 else rows
    if rows.ndim != 2 or rows.size == 0:
        raise RequestInvalid(f"The embeddings have the shape {rows.shape}; wanted (N, width).")
    fingerprint = embeddings.fingerprint if isinstance(embeddings, Embeddings) else None
    return rows, fingerprint
