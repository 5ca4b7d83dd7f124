"""Image encoder of a bundle, whatever runs it: padded batches, learned vectors, warm-up."""

import time
from collections.abc import Sequence

import numpy as np

from prompt_serve.bundle import Bundle
from prompt_serve.engines.batch_sizes import Rows, in_bucket
from prompt_serve.engines.image_graphs import ImageGraphs
from prompt_serve.engines.interface import ImageEngine, PromptedEngine
from prompt_serve.errors import BackboneUnsupported
from prompt_serve.prompts.class_features import folded_image
from prompt_serve.prompts.image_rows import ImageRows
from prompt_serve.prompts.prompt_file import Prompt
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.types import FloatArray, PixelArray


class ImageEncoder:
    """Image encoder of a bundle, run by an engine. Thread-safe.

    Args:
        bundle: the exported backbone that ``engine`` has opened.
        engine: runs it.
        max_batch: maximum number of images per call.
    """

    def __init__(self, bundle: Bundle, engine: ImageEngine, *, max_batch: int) -> None:
        self._bundle, self.engine = bundle, engine
        self._warm_up_sizes = list(engine.batch_sizes) or sorted({1, max_batch})
        size = bundle.manifest.image_tower
        self._graphs = (
            None
            if size is None or engine.prompted is None
            else ImageGraphs(
                self.encode_plain,
                engine.prompted,
                layers=size.layers,
                width=size.width,
                image_size=bundle.manifest.preprocessing.image_size,
                max_batch=max_batch,
                buckets=engine.batch_sizes,
            )
        )
        self.slowest_batch_s = 0.0  # duration of the largest batch after warm-up

    def encode(self, pixels: PixelArray, rows: Sequence[ImageRows | None] = ()) -> FloatArray:
        """Encode (B, S, S, 3) uint8 pixels to (B, E) image features of unit length.

        ``rows`` are the learned vectors of each image's task, or None; empty: no image has any.
        """
        if self._graphs is None or not any(own is not None for own in rows):
            return self.encode_plain(pixels)
        return self._graphs.encode(pixels, rows)

    def encode_plain(self, pixels: PixelArray) -> FloatArray:
        """Encode (B, S, S, 3) uint8 pixels without learned vectors to (B, E) features."""
        return in_bucket(self._run_plain, pixels, (), self.engine.batch_sizes)

    @property
    def prompted(self) -> PromptedEngine:
        """The encoder that takes learned vectors.

        Raises:
            BackboneUnsupported: this image tower takes none.
        """
        if self.engine.prompted is None:
            raise BackboneUnsupported(
                f"The image tower of {self._bundle.manifest.backbone.id!r} takes no learned "
                f"vectors: it is no plain vision transformer, as that of 'embedded-vit' or "
                f"ViT-B-16 is. On this backbone, train a text prompt: method 'dip' or 'coop'."
            )
        return self.engine.prompted

    def image_rows(self, prompt: Prompt) -> ImageRows | None:
        """Lay out the image vectors of a prompt for ``encode``; None if it has none.

        Raises:
            BackboneUnsupported: this image tower takes no vectors.
            PromptFileInvalid: they are for another tower.
        """
        if prompt.image is None:
            return None
        return self.lay_out(folded_image(prompt, self._bundle.text_side))

    def lay_out(self, vectors: PromptVectors[FloatArray]) -> ImageRows | None:
        """Lay out the folded image branch of a prompt for ``encode``; see ``ImageGraphs``.

        Raises:
            BackboneUnsupported: this image tower takes no vectors.
            PromptFileInvalid: they are for another tower.
        """
        return (self._graphs or self.prompted).lay_out(vectors)

    def warm_up(self) -> None:
        """Run every batch size once, so that no request pays for a first run."""
        for size in self._warm_up_sizes:
            self.encode(self._black(size))
        largest = self._black(self._warm_up_sizes[-1])
        started = time.monotonic()
        self.encode(largest)
        self.slowest_batch_s = time.monotonic() - started

    def _black(self, images: int) -> PixelArray:
        side = self._bundle.manifest.preprocessing.image_size
        return np.zeros((images, side, side, 3), dtype=np.uint8)

    def _run_plain(self, pixels: PixelArray, _: Rows) -> FloatArray:
        return self.engine.encode(pixels)
