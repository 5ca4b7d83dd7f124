"""Features of images, extracted once and kept.

The image tower is frozen, so the features of a view never change. Training draws from K views of
each image that were encoded beforehand; validation and test see the plain view. Features are
rounded to float16 and scaled to unit length again, whether they come from the cache or not, so
that a run with a cold cache and one with a warm cache learn the same prompt.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from prompt_serve.files import atomic_file, sha256_of_file
from prompt_serve.preprocess import Preprocessing, decode_image
from prompt_serve.scoring import unit
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.data.augment import make_views
from prompt_serve.training.data.cache_folder import cache_folder
from prompt_serve.training.data.dataset import ImageSet
from prompt_serve.training.progress import Advance, no_advance
from prompt_serve.types import FloatArray, HalfArray, IntArray, PixelArray

# Views a batch of the image tower. On a CPU the activations of a large batch are fetched from the
# system and given back at every layer: 4 at a time are more than twice as fast as 64.
CPU_BATCH = 4
CUDA_BATCH = 64
DECODE_CHUNK = 64  # views decoded ahead while the ones before are encoded
CACHE_VERSION = 1  # of the views and of the layout; a new number forgets what was kept


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """Image features with their labels."""

    features: FloatArray  # (N, K, E), unit length along E; K = 1 for plain views
    labels: IntArray  # (N,)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def plain(self) -> FloatArray:
        """(N, E), the features of the first view."""
        return self.features[:, 0]


class FeatureCache:
    """Keeps features on disk, one file for each set of images, and knows when they are stale.

    The key is made of all that the features depend on: backbone, preprocessing, the content of
    every image, number of views and their seed.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_cache_folder()

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.npy"

    def load(self, key: str, shape: tuple[int, ...]) -> HalfArray | None:
        """What was kept under ``key``; None if nothing, or if the file is damaged."""
        try:
            kept = np.load(self.path(key), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return kept if kept.dtype == np.float16 and kept.shape == shape else None

    def store(self, key: str, features: HalfArray) -> None:
        """Write atomically: readers see the whole file or none."""
        with atomic_file(self.path(key), mode=0o600) as temporary, temporary.open("wb") as file:
            np.save(file, features)


def default_cache_folder() -> Path:
    """``$PROMPT_SERVE_CACHE/features``, else ``prompt-serve/features`` in the user's cache."""
    return cache_folder("features")


def image_features(
    images: ImageSet,
    backbone: Backbone,
    *,
    views: int = 0,
    seed: int = 0,
    cache: FeatureCache | None = None,
    workers: int = 4,
    advance: Advance = no_advance,
) -> FeatureSet:
    """Features of every image, from the cache where they are there.

    Args:
        images: N of them, all readable.
        backbone: whose image tower sees them.
        views: K augmented views an image; 0 for the one plain view.
        seed: of the views.
        cache: where they are kept; None keeps nothing.
        workers: threads that decode images.
        advance: called with the number of images done, N in all.
    """
    paths = [item.path for item in images.items]
    digests = file_digests(paths, workers=workers)
    shape = (len(paths), max(views, 1), backbone.embed_dim)
    key = feature_key(backbone, digests, views=views, seed=seed)
    halves = cache.load(key, shape) if cache else None
    if halves is None:
        halves = extract_features(
            paths, digests, backbone, views=views, seed=seed, workers=workers, advance=advance
        )
        if cache:
            cache.store(key, halves)
    else:
        advance(len(paths))
    return FeatureSet(
        features=unit(halves.astype(np.float32)),
        labels=np.asarray([item.label for item in images.items], dtype=np.int64),
    )


def extract_features(
    paths: Sequence[Path],
    digests: Sequence[str],
    backbone: Backbone,
    *,
    views: int = 0,
    seed: int = 0,
    workers: int = 4,
    advance: Advance = no_advance,
) -> HalfArray:
    """Decode and encode; nothing is remembered. Returns (N, max(K, 1), E) float16."""
    features = np.empty((len(paths), max(views, 1), backbone.embed_dim), dtype=np.float16)
    batch = CPU_BATCH if backbone.device.type == "cpu" else CUDA_BATCH
    per_chunk = max(1, DECODE_CHUNK // max(views, 1))
    done = 0
    sources = list(zip(paths, digests, strict=True))
    chunks = [sources[start : start + per_chunk] for start in range(0, len(sources), per_chunk)]
    with ThreadPoolExecutor(workers) as pool:
        for pixels in decoded_views(pool, chunks, backbone.preprocessing, views, seed):
            n, k, *square = pixels.shape
            flat = torch.from_numpy(pixels.reshape(n * k, *square))
            encoded = torch.cat([backbone.encode_images(part) for part in torch.split(flat, batch)])
            features[done : done + n] = encoded.cpu().numpy().reshape(n, k, -1)
            done += n
            advance(n)
    return features


def feature_key(backbone: Backbone, digests: Sequence[str], *, views: int, seed: int) -> str:
    """sha256 over all that the features depend on, in hexadecimal."""
    document = {
        "cache_version": CACHE_VERSION,
        "fingerprint": backbone.ref.fingerprint,
        "preprocessing": asdict(backbone.preprocessing),
        "images": list(digests),
        "views": views,
        "seed": seed if views else 0,  # the plain view has no seed
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def file_digests(paths: Sequence[Path], *, workers: int = 4) -> list[str]:
    """sha256 of each file, in hexadecimal."""
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(sha256_of_file, paths))


def decoded_views(
    pool: ThreadPoolExecutor,
    chunks: Sequence[Sequence[tuple[Path, str]]],
    preprocessing: Preprocessing,
    views: int,
    seed: int,
) -> Iterator[PixelArray]:
    """Pixels (n, K, S, S, 3) of each chunk; the next one is decoded while this one is used."""

    def decode(source: tuple[Path, str]) -> PixelArray:
        path, digest = source
        image = decode_image(path.read_bytes())
        return make_views(image, preprocessing, digest=digest, views=views, seed=seed)

    ahead: list[Future[PixelArray]] = []
    for index in range(len(chunks) + 1):
        ready = ahead
        ahead = [pool.submit(decode, s) for s in chunks[index]] if index < len(chunks) else []
        if ready:
            yield np.stack([future.result() for future in ready])
