"""From a shard to features: encode its images, or read its embeddings."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np

from prompt_serve.errors import BackboneMismatch, DatasetInvalid, ImageInvalid, PromptServeError
from prompt_serve.offline.image_features import Outcome, encoded
from prompt_serve.offline.model import Model
from prompt_serve.sources.shard import (
    EmbeddingBatch,
    EmbeddingShard,
    ImageShard,
    Item,
    Shard,
    holds_embeddings,
)
from prompt_serve.types import FloatArray

EMBEDDINGS_PER_BATCH = 65_536
IMAGES_PER_BATCH = 512  # of an ``EncodedBatch``; far fewer are in memory as pixels
NO_DIRECTION = "The embedding is all zeros or contains numbers that are not finite."


@dataclass(frozen=True)
class EncodedBatch:
    """Features of N images in V passes; those of images with an error are zeros."""

    sources: list[str]
    features: FloatArray  # (N, V, E), unit length
    errors: dict[int, tuple[str, str]]  # code and text, by index of the image


def encoded_batches(shard: Shard, model: Model) -> Iterator[EncodedBatch]:
    """Yield the features of a shard's images, batch by batch.

    Raises:
        DatasetInvalid: the embeddings have another width than the backbone's.
    """
    if holds_embeddings(shard):
        width = model.bundle.manifest.backbone.embed_dim
        for batch in cast(EmbeddingShard, shard).batches(EMBEDDINGS_PER_BATCH):
            yield unit_batch(batch, width, shard.name)
    else:
        yield from encoded_images(cast(ImageShard, shard).items(), model)


def check_fingerprint(shard: Shard, model: Model) -> None:
    """Raise BackboneMismatch if embeddings are known to be those of another backbone."""
    fingerprint = getattr(shard, "fingerprint", None)
    backbone = model.bundle.manifest.backbone
    known = (None, backbone.fingerprint, model.bundle.manifest.former_fingerprint)
    if fingerprint not in known:
        raise BackboneMismatch(
            f"{shard.name}: the embeddings were made by a backbone with the fingerprint "
            f"{str(fingerprint)[:12]}, but the prompts need {backbone.id!r} "
            f"({backbone.fingerprint[:12]}). Score the images.",
            learned_on=str(fingerprint),
            served=backbone.id,
        )


def unit_batch(batch: EmbeddingBatch, width: int, name: str) -> EncodedBatch:
    """Scale embeddings to unit length, and find those without a direction."""
    vectors = batch.vectors
    if len(batch.errors) == len(vectors):
        vectors = np.zeros((len(vectors), width), dtype=np.float32)
    if vectors.shape[1] != width:
        raise DatasetInvalid(
            f"{name} has embeddings of {vectors.shape[1]} numbers; those of the backbone have "
            f"{width}.",
            [],
        )
    with np.errstate(over="ignore", invalid="ignore"):
        # The square of a float32 cannot overflow in float64.
        lengths = np.sqrt(np.einsum("ne,ne->n", vectors, vectors, dtype=np.float64))
    valid = np.isfinite(lengths) & (lengths > 0)
    errors = dict(batch.errors)
    for index in np.flatnonzero(~valid).tolist():
        errors.setdefault(index, (ImageInvalid.code, NO_DIRECTION))
    if not valid.all():
        vectors = np.where(valid[:, np.newaxis], vectors, np.float32(0))
    scale = 1.0 / np.where(valid, lengths, 1.0)
    unit = (vectors * scale[:, np.newaxis].astype(np.float32)).reshape(len(vectors), 1, width)
    return EncodedBatch(batch.sources, unit, errors)


def encoded_images(items: Iterable[Item], model: Model) -> Iterator[EncodedBatch]:
    """Yield the features of images, batch by batch."""
    sources: list[str] = []

    def images() -> Iterator[str | bytes | PromptServeError]:
        for item in items:
            sources.append(item.source)
            yield _image(item)

    outcomes = encoded(images(), model.encoders, model.passes, decode_threads=model.threads)
    waiting: list[Outcome] = []
    for some in outcomes:
        waiting += some
        if len(waiting) >= IMAGES_PER_BATCH:
            yield _batch(sources[: len(waiting)], waiting, model)
            del sources[: len(waiting)]
            waiting = []
    if waiting:
        yield _batch(sources, waiting, model)


def _image(item: Item) -> str | bytes | PromptServeError:
    return item.source if item.data is None else item.data


def _batch(sources: list[str], outcomes: list[Outcome], model: Model) -> EncodedBatch:
    width = model.bundle.manifest.backbone.embed_dim
    features = np.zeros((len(outcomes), len(model.passes.rows), width), dtype=np.float32)
    errors = {}
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, PromptServeError):
            errors[index] = (outcome.code, " ".join(outcome.message.split()))
        else:
            features[index] = outcome
    return EncodedBatch(list(sources), features, errors)
