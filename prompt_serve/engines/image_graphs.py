"""Encode batches in which some images have learned vectors of their task and others have none.

Two graphs share the work: the plain one, and one that takes vectors (``bundle``). A batch without
vectors runs the plain graph, so that nobody pays for tasks of others. A mixed batch runs whole in
the graph with vectors, or is split between the two: whichever takes less time, by a measurement on
this machine when the graph with vectors is first needed.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from prompt_serve.engines.batch_sizes import Rows, in_bucket
from prompt_serve.engines.interface import PromptedEngine
from prompt_serve.prompts.image_rows import ImageRows
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.types import FloatArray, PixelArray

EncodePlain = Callable[[PixelArray], FloatArray]  # pixels (B, S, S, 3) -> (B, E)

_TRIES, _ENOUGH_S = 5, 0.5  # of a batch in the measurement
_TYPICAL_ROWS = 4  # per block, in the measurement


@dataclass(frozen=True, kw_only=True)
class GraphCost:
    """Seconds of a batch of one image and of a full batch; between them it grows evenly."""

    one: float
    full: float
    full_size: int

    def seconds(self, images: int) -> float:
        """Return the seconds that ``images`` take; 0 for none."""
        if images == 0:
            return 0.0
        per_image = (self.full - self.one) / max(1, self.full_size - 1)
        return self.one + per_image * (images - 1)


class ImageGraphs:
    """Plain image graph and the one that takes vectors, which is opened when first needed.

    Args:
        plain: runs the plain graph.
        prompted: graph with vectors.
        layers: L, blocks of the image tower.
        width: D, its width.
        image_size: S.
        max_batch: maximum number of images per batch.
        buckets: batch sizes to which batches with vectors are padded; none on the CPU.
    """

    def __init__(
        self,
        plain: EncodePlain,
        prompted: PromptedEngine,
        *,
        layers: int,
        width: int,
        image_size: int,
        max_batch: int,
        buckets: Sequence[int] = (),
    ) -> None:
        self._plain, self._prompted = plain, prompted
        self._sizes = layers, width
        self._image_size, self._max_batch = image_size, max_batch
        self._buckets = buckets
        self._costs: tuple[GraphCost, GraphCost] | None = None  # plain, with vectors
        self._lock = threading.Lock()

    def lay_out(self, vectors: PromptVectors[FloatArray]) -> ImageRows | None:
        """Project the image branch of a prompt; the first call opens and warms up the graph.

        Raises:
            PromptFileInvalid: the vectors are for another tower.
            BundleInvalid, ProviderUnavailable: the graph cannot be opened.
        """
        rows = self._prompted.lay_out(vectors)
        if rows is not None:
            self.prepare()
        return rows

    def prepare(self) -> None:
        """Open the graph with vectors and measure both, unless that was done."""
        with self._lock:
            if self._costs is None:
                with_vectors = self._measure(self._encode_typical)
                for images in self._buckets:  # each needs a memory plan of its own
                    self._encode_typical(self._black(images))
                self._costs = self._measure(self._plain), with_vectors

    def encode(self, pixels: PixelArray, rows: Sequence[ImageRows | None]) -> FloatArray:
        """Encode (B, S, S, 3) pixels, each with the rows of its task or None, to (B, E)."""
        prompted = np.array([own is not None for own in rows])
        if not prompted.any():
            return self._plain(pixels)
        if prompted.all() or not self.is_split(len(rows), int(prompted.sum())):
            return self._encode_prompted(pixels, rows)
        plain = self._plain(pixels[~prompted])
        features = np.empty((len(rows), plain.shape[1]), dtype=np.float32)
        features[~prompted] = plain
        features[prompted] = self._encode_prompted(
            pixels[prompted], [own for own in rows if own is not None]
        )
        return features

    def is_split(self, images: int, prompted: int) -> bool:
        """Return True if a mixed batch is split: faster by the costs that ``prepare`` measured."""
        if self._costs is None:
            return False
        plain, with_vectors = self._costs
        apart = plain.seconds(images - prompted) + with_vectors.seconds(prompted)
        return apart < with_vectors.seconds(images)

    def _encode_typical(self, pixels: PixelArray) -> FloatArray:
        layers, width = self._sizes
        rows = np.zeros((_TYPICAL_ROWS, width), dtype=np.float32)
        of_each = ImageRows(
            entering=rows, block=layers - 1, keys=(rows,) * layers, values=(rows,) * layers
        )
        return self._encode_prompted(pixels, [of_each] * len(pixels))

    def _encode_prompted(self, pixels: PixelArray, rows: Rows) -> FloatArray:
        return in_bucket(self._prompted.encode, pixels, rows, self._buckets)

    def _black(self, images: int) -> PixelArray:
        return np.zeros((images, self._image_size, self._image_size, 3), dtype=np.uint8)

    def _measure(self, encode: EncodePlain) -> GraphCost:
        one, full = (self._fastest(encode, images) for images in (1, self._max_batch))
        return GraphCost(one=one, full=full, full_size=self._max_batch)

    def _fastest(self, encode: EncodePlain, images: int) -> float:
        pixels = self._black(images)
        encode(pixels)  # allocates memory
        tries: list[float] = []
        # A large batch evens out by itself, and an upload waits for the measurement.
        while len(tries) < _TRIES and sum(tries) < _ENOUGH_S:
            started = time.monotonic()
            encode(pixels)
            tries.append(time.monotonic() - started)
        return min(tries)
