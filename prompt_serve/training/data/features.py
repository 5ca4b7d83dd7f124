"""Image features, extracted once and cached on disk.

The image tower is frozen, so the features of a view never change. Training draws from K views of
each image, encoded beforehand; validation and test use the plain view. Features are rounded to
float16 and scaled to unit length again, whether they come from the cache or not, so that a run with
a cold cache and one with a warm cache learn the same prompt.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from prompt_serve.files import atomic_file, check_writable_folder, sha256_of_file
from prompt_serve.preprocess import Preprocessing, decode_image, pixels_from_bytes
from prompt_serve.scoring import unit
from prompt_serve.training.data.augment import Augmentation, decoded_side, make_views
from prompt_serve.training.data.cache_folder import cache_folder, cache_limit, mark_used, trim
from prompt_serve.training.data.dataset import ImageSet
from prompt_serve.training.progress import Advance, no_advance
from prompt_serve.types import BackboneRef, FloatArray, HalfArray, IntArray, PixelArray

_log = logging.getLogger(__name__)

DECODE_CHUNK = 64  # views that are decoded while the previous ones are encoded
CACHE_VERSION = 2  # of views, key and file layout; a new number invalidates the cache


class ImageEncoder(Protocol):
    """Image tower of a backbone: in PyTorch (``Backbone``) or in ONNX Runtime (``Encoders``).

    The two round differently, in the sixth digit; ``runtime`` keeps their features apart.
    """

    @property
    def ref(self) -> BackboneRef:
        """The backbone."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become pixels."""

    @property
    def runtime(self) -> str:
        """Name of what runs the tower; empty for PyTorch."""

    @property
    def batch_size(self) -> int:
        """Images to encode at once."""

    def encode_pixels(self, pixels: PixelArray, /) -> FloatArray:
        """Encode (B, S, S, 3) uint8 pixels to (B, E) features of unit length."""


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """Image features with their labels."""

    features: FloatArray  # (N, K, E), unit length along E; K = 1 for plain views
    labels: IntArray  # (N,)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def plain(self) -> FloatArray:
        """Features (N, E) of the first view."""
        return self.features[:, 0]


class FeatureCache:
    """Cache of features on disk, one file per image set.

    The key covers everything that the features depend on (backbone, preprocessing, content of every
    image, number of views and their seed), so an entry is never stale. Beyond ``cache_limit``, the
    files that were not used for longest are removed.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder("features")
        self._limit = cache_limit()
        self._read_only = False

    def check_writable(self) -> None:
        """Warn, before any work, if features cannot be written; they are then only read."""
        try:
            check_writable_folder(self.folder)
        except OSError as error:
            self._warn(error)

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.npy"

    def load(self, key: str, shape: tuple[int, ...]) -> HalfArray | None:
        """Return the features stored under ``key``; None if missing or damaged."""
        try:
            stored = np.load(self.path(key), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        mark_used(self.path(key))
        return stored if stored.dtype == np.float16 and stored.shape == shape else None

    def store(self, key: str, features: HalfArray) -> None:
        """Write atomically: readers see the complete file or none.

        A cache that cannot be written is one warning.
        """
        if self._read_only:
            return
        try:
            with atomic_file(self.path(key), mode=0o600) as temporary, temporary.open("wb") as file:
                np.save(file, features)
            trim(self.folder, max(self._limit, self.path(key).stat().st_size))
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        self._read_only = True
        _log.warning(
            "Warning: %s cannot be written: %s. The run continues, and image features are not "
            "kept; choose another folder with --cache or PROMPT_SERVE_CACHE.",
            self.folder,
            error.strerror or error,
        )


def image_features(
    images: ImageSet,
    encoder: ImageEncoder,
    *,
    views: int = 0,
    seed: int = 0,
    augmentation: Augmentation = "crops",
    cache: FeatureCache | None = None,
    workers: int = 4,
    advance: Advance = no_advance,
) -> FeatureSet:
    """Return the features of every image, from the cache where possible.

    Args:
        images: N readable images.
        encoder: image tower.
        views: K augmented views per image; 0 for the plain view only.
        seed: random seed of the views.
        augmentation: kind of random crops.
        cache: feature cache; None keeps nothing on disk.
        workers: threads that decode images.
        advance: called with the number of images done, N in all.
    """
    paths = [item.path for item in images.items]
    digests = file_digests(paths, workers=workers)
    shape = (len(paths), max(views, 1), encoder.ref.embed_dim)
    key = feature_key(encoder, digests, views=views, seed=seed, augmentation=augmentation)
    rounded = cache.load(key, shape) if cache else None
    if rounded is None:
        rounded = extract_features(
            paths,
            digests,
            encoder,
            views=views,
            seed=seed,
            augmentation=augmentation,
            workers=workers,
            advance=advance,
        )
        if cache:
            cache.store(key, rounded)
    else:
        advance(len(paths))
    return FeatureSet(
        features=unit(rounded.astype(np.float32)),
        labels=np.asarray([item.label for item in images.items], dtype=np.int64),
    )


def extract_features(
    paths: Sequence[Path],
    digests: Sequence[str],
    encoder: ImageEncoder,
    *,
    views: int = 0,
    seed: int = 0,
    augmentation: Augmentation = "crops",
    workers: int = 4,
    advance: Advance = no_advance,
) -> HalfArray:
    """Decode and encode images, without a cache; return (N, max(K, 1), E) float16."""
    features = np.empty((len(paths), max(views, 1), encoder.ref.embed_dim), dtype=np.float16)
    batch = encoder.batch_size
    per_chunk = max(1, DECODE_CHUNK // max(views, 1))
    done = 0
    sources = list(zip(paths, digests, strict=True))
    chunks = [sources[start : start + per_chunk] for start in range(0, len(sources), per_chunk)]
    with ThreadPoolExecutor(workers) as pool:
        for pixels in decoded_views(pool, chunks, encoder.preprocessing, views, seed, augmentation):
            n, k, *square = pixels.shape
            flat = pixels.reshape(n * k, *square)  # (n K, S, S, 3)
            parts = [flat[start : start + batch] for start in range(0, n * k, batch)]
            encoded = np.concatenate([encoder.encode_pixels(part) for part in parts])  # (n K, E)
            features[done : done + n] = encoded.reshape(n, k, -1)
            done += n
            advance(n)
    return features


def feature_key(
    encoder: ImageEncoder,
    digests: Sequence[str],
    *,
    views: int,
    seed: int,
    augmentation: Augmentation = "crops",
) -> str:
    """Return a sha256 over everything that the features depend on, in hexadecimal."""
    preprocessing = asdict(encoder.preprocessing)
    if encoder.preprocessing.decoding == "full":  # as in caches from before it was a choice
        del preprocessing["decoding"]
    document = {
        "cache_version": CACHE_VERSION,
        "fingerprint": encoder.ref.fingerprint,
        "preprocessing": preprocessing,
        "images": list(digests),
        "views": views,
        "seed": seed if views else 0,  # the plain view has no seed
    }
    if views and augmentation != "crops":
        document["augmentation"] = augmentation
    if encoder.runtime:
        document["runtime"] = encoder.runtime
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def file_digests(paths: Sequence[Path], *, workers: int = 4) -> list[str]:
    """Return the sha256 of each file, in hexadecimal."""
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(sha256_of_file, paths))


def decoded_views(
    pool: ThreadPoolExecutor,
    chunks: Sequence[Sequence[tuple[Path, str]]],
    preprocessing: Preprocessing,
    views: int,
    seed: int,
    augmentation: Augmentation,
) -> Iterator[PixelArray]:
    """Yield pixels (n, K, S, S, 3) of each chunk; the next chunk is decoded in the background."""

    side = decoded_side(preprocessing, views, augmentation)

    def decode(source: tuple[Path, str]) -> PixelArray:
        path, digest = source
        data = path.read_bytes()
        if not views:
            return pixels_from_bytes(data, preprocessing)[np.newaxis]
        image = decode_image(data, min_side=side)
        return make_views(
            image, preprocessing, digest=digest, views=views, seed=seed, augmentation=augmentation
        )

    ahead: list[Future[PixelArray]] = []
    for index in range(len(chunks) + 1):
        ready = ahead
        ahead = [pool.submit(decode, s) for s in chunks[index]] if index < len(chunks) else []
        if ready:
            yield np.stack([future.result() for future in ready])
