"""Embeddings of images, and scores of embeddings."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from prompt_serve.client import wire
from prompt_serve.client.chunk_runner import ChunkRunner
from prompt_serve.client.classify_options import ClassifyOptions
from prompt_serve.client.connection import Connection
from prompt_serve.client.images import ImageFile, UnreadableImage
from prompt_serve.client.retries import RetryPolicy
from prompt_serve.client.scoring import Plan
from prompt_serve.errors import BackboneMismatch, PromptServeError, RequestInvalid
from prompt_serve.schemas import EmbeddedImage, ImageResult, Problem
from prompt_serve.types import FloatArray


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of N images, in order."""

    vectors: FloatArray  # (N, E), unit length; NaN for images with an error
    errors: dict[int, Problem]  # by index of the image
    backbone: str
    fingerprint: str  # of the backbone; only embeddings of one backbone are comparable
    task: str | None = None  # whose image vectors the image tower had; None: it was plain


EmbeddingSource: TypeAlias = Embeddings | NDArray[Any] | Sequence[Sequence[float]]


@dataclass(frozen=True)
class TracedEmbedding:
    """One image's embedding or error, with the backbone that made it."""

    image: EmbeddedImage
    backbone: str = ""
    fingerprint: str = ""


class Embedder(ChunkRunner[TracedEmbedding]):
    """Embeds chunks of images."""

    def __init__(
        self,
        connection: Connection,
        *,
        plan: Plan,
        retry: RetryPolicy,
        deadline_s: float | None,
        task: str | None,
    ) -> None:
        super().__init__(connection, plan=plan, retry=retry)
        self._deadline_s, self._task = deadline_s, task

    async def _run(self, files: list[ImageFile]) -> list[TracedEmbedding]:
        return await self._send_or_split(files, self._send)

    def _failed(
        self, image: ImageFile | UnreadableImage, error: PromptServeError
    ) -> TracedEmbedding:
        problem = Problem.of(error)
        return TracedEmbedding(EmbeddedImage(index=image.index, error=problem))

    async def _send(self, files: list[ImageFile]) -> list[TracedEmbedding]:
        call = wire.embed_call(files, self._deadline_s, self._task)
        reply = await self._connection.send(call, self._retry)
        images, answer = wire.read_embeddings(reply.response, len(files))
        made_by = ("", "") if answer is None else (answer.backbone, answer.fingerprint)
        return [TracedEmbedding(image, *made_by) for image in images]


def combine_embeddings(
    embeddings: Sequence[TracedEmbedding], backbone: str, fingerprint: str, width: int
) -> Embeddings:
    """Combine the embeddings of several requests.

    Args:
        embeddings: N embeddings or errors, in order.
        backbone: id of the service's backbone.
        fingerprint: fingerprint of the service's backbone.
        width: embedding width E.

    Returns:
        Vectors (N, E), NaN for images with an error.

    Raises:
        BackboneMismatch: the service changed its backbone between the requests.
    """
    vectors = np.full((len(embeddings), width), np.nan, dtype=np.float32)  # (N, E)
    errors: dict[int, Problem] = {}
    for index, one in enumerate(embeddings):
        if one.image.error is not None:
            errors[index] = one.image.error
        elif one.fingerprint != fingerprint:
            raise BackboneMismatch(
                f"The service reported the backbone {backbone!r} but embedded with "
                f"{one.backbone!r}: it was restarted in between. Embed all images again.",
                learned_on=one.backbone,
                served=backbone,
            )
        else:
            vectors[index] = one.image.embedding
    return Embeddings(vectors, errors, backbone, fingerprint)


class EmbeddingScorer:
    """Scores embeddings against tasks, at most ``plan.max_embeddings`` per request."""

    def __init__(
        self, connection: Connection, options: ClassifyOptions, *, plan: Plan, retry: RetryPolicy
    ) -> None:
        self._connection = connection
        self._groups = options.groups(plan.max_tasks)
        self._plan = plan
        self._retry = retry

    async def __call__(self, rows: FloatArray, fingerprint: str | None) -> list[ImageResult]:
        """Return one result per row of (N, E), in order."""
        results: list[ImageResult] = []
        for start in range(0, len(rows), self._plan.max_embeddings):
            part = rows[start : start + self._plan.max_embeddings].tolist()
            by_group = [await self._send(part, group, fingerprint) for group in self._groups]
            for offset, parts in enumerate(zip(*by_group, strict=True)):
                merged = wire.merge_results(parts)
                results.append(merged.model_copy(update={"index": start + offset}))
        return results

    async def _send(
        self, rows: list[list[float]], group: ClassifyOptions, fingerprint: str | None
    ) -> list[ImageResult]:
        call = wire.score_call(rows, group, fingerprint, streamed=self._plan.streams)
        reply = await self._connection.send(call, self._retry)
        return await asyncio.to_thread(
            wire.read_results, reply.response, len(rows), group.n_predictions
        )


def rows_of_embeddings(embeddings: EmbeddingSource) -> tuple[FloatArray, str | None]:
    """Return embeddings as (N, E), and the fingerprint of their backbone if it is known.

    A single vector (E,) becomes (1, E).

    Raises:
        RequestInvalid: not numbers, not of that shape, or embedded for one task.
    """
    if isinstance(embeddings, Embeddings) and embeddings.task is not None:
        raise RequestInvalid(
            f"The embeddings were made for task {embeddings.task!r}, whose vectors of the image "
            f"tower may have changed them. Classify the images, or embed them without a task."
        )
    source = embeddings.vectors if isinstance(embeddings, Embeddings) else embeddings
    try:
        rows = np.asarray(source, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise RequestInvalid(f"The embeddings are not an array of numbers: {error}") from error
    rows = rows[np.newaxis] if rows.ndim == 1 else rows  # (N, E)
    if rows.ndim != 2 or rows.size == 0:
        raise RequestInvalid(f"The embeddings have shape {rows.shape}; expected (N, width).")
    fingerprint = embeddings.fingerprint if isinstance(embeddings, Embeddings) else None
    return rows, fingerprint
