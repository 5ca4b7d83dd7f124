"""Encoders of the served bundle: padded batches, warm-up, and a check of the text encoder."""

import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import onnxruntime as ort

from prompt_serve.bundle import Bundle
from prompt_serve.errors import ServiceError
from prompt_serve.onnx_encoders import OnnxEncoders, open_session
from prompt_serve.prompts.class_features import class_features, folded_image
from prompt_serve.prompts.image_rows import ImageRows
from prompt_serve.prompts.prompt_file import Prompt
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.prompts.sequences import Sequences
from prompt_serve.schemas import DEFAULT_TEMPLATE
from prompt_serve.service.inference.batch_sizes import Rows, batch_buckets, in_bucket
from prompt_serve.service.inference.image_graphs import ImageGraphs
from prompt_serve.service.tasks.feature_queue import at_low_priority
from prompt_serve.types import FloatArray, PixelArray


class Engine:
    """Image and text encoder of a bundle. Thread-safe, as ONNX Runtime's sessions are.

    Args:
        bundle: an exported backbone.
        cuda_device: index of a CUDA device; None runs on the CPU.
        threads: number of threads of the CPU kernels.
        max_batch: maximum number of images per call.

    Raises:
        ProviderUnavailable: CUDA was requested and does not run.
        BundleInvalid: the graphs cannot be loaded.
    """

    def __init__(
        self, bundle: Bundle, *, cuda_device: int | None, threads: int, max_batch: int
    ) -> None:
        self.bundle = bundle
        self._image_size = bundle.manifest.preprocessing.image_size
        # On a CPU a padded image costs as much as a real one. On CUDA every new batch size needs a
        # new memory plan, so a few sizes are warmed up and smaller batches are padded to them.
        self._buckets = [] if cuda_device is None else batch_buckets(max_batch)
        self._warm_up_sizes = self._buckets or sorted({1, max_batch})
        open_graph = partial(open_session, cuda_device=cuda_device, threads=threads)
        self._encoders = OnnxEncoders(
            bundle,
            open_graph(bundle.image_encoder),
            # Its threads yield to those of the image encoder: an upload can wait.
            at_low_priority(lambda: open_graph(bundle.text_encoder)),
            open_graph,
        )
        self.provider, self.text_provider = self._encoders.provider, self._encoders.text_provider
        self.runtime = f"onnxruntime {ort.__version__}"
        size = bundle.manifest.image_tower
        self._graphs = (
            None
            if size is None
            else ImageGraphs(
                self._encode_plain,
                self._encoders.prompted,
                layers=size.layers,
                width=size.width,
                image_size=self._image_size,
                max_batch=max_batch,
                buckets=self._buckets,
            )
        )
        self.slowest_batch_s = 0.0  # duration of the largest batch after warm-up
        self.last_text_success = float("-inf")  # on time.monotonic()
        self._probe_prompt = _probe_prompt(bundle)

    def encode_images(
        self, pixels: PixelArray, rows: Sequence[ImageRows | None] = ()
    ) -> FloatArray:
        """Encode (B, S, S, 3) uint8 pixels to (B, E) image features of unit length.

        ``rows`` are the learned vectors of each image's task, or None; empty: no image has any.
        """
        if self._graphs is None or not any(own is not None for own in rows):
            return self._encode_plain(pixels)
        return self._graphs.encode(pixels, rows)

    def image_rows(self, prompt: Prompt) -> ImageRows | None:
        """Lay out the image vectors of a prompt for ``encode_images``; None if it has none.

        Raises:
            BackboneUnsupported: this image tower takes no vectors.
            PromptFileInvalid: they are for another tower.
        """
        if prompt.image is None:
            return None
        return self.lay_out(folded_image(prompt, self.bundle.text_side))

    def lay_out(self, vectors: PromptVectors[FloatArray]) -> ImageRows | None:
        """Lay out the folded image branch of a prompt for ``encode_images``; see ``ImageGraphs``.

        Raises:
            BackboneUnsupported: this image tower takes no vectors.
            PromptFileInvalid: they are for another tower.
        """
        return (self._graphs or self._encoders.prompted).lay_out(vectors)

    def _encode_plain(self, pixels: PixelArray) -> FloatArray:
        return in_bucket(self._run_plain, pixels, (), self._buckets)

    def _run_plain(self, pixels: PixelArray, _: Rows) -> FloatArray:
        return self._encoders.encode_pixels(pixels)

    def encode_text(self, sequences: Sequences) -> FloatArray:
        """Encode the assembled sequences of C classes to (C, E) features of unit length.

        Raises:
            PromptFileInvalid: the sequences have vectors for a different number of blocks.
        """
        features = self._encoders.encode_text(sequences)
        self.last_text_success = time.monotonic()
        return features

    def check_text_encoder(self) -> None:
        """Run the text graph on one short class name.

        Raises:
            ServiceError: the features are not finite.
        """
        features = class_features(self._probe_prompt, self.bundle.text_side, self.encode_text)
        if not np.isfinite(features).all():
            raise ServiceError("The text encoder returned NaN or infinite class features.")

    def warm_up(self) -> None:
        """Run every batch size and the text graph once, so that no request pays for a first run."""
        side = self._image_size
        for size in self._warm_up_sizes:
            self.encode_images(np.zeros((size, side, side, 3), dtype=np.uint8))
        largest = np.zeros((self._warm_up_sizes[-1], side, side, 3), dtype=np.uint8)
        started = time.monotonic()
        self.encode_images(largest)
        self.slowest_batch_s = time.monotonic() - started
        self.check_text_encoder()


def _probe_prompt(bundle: Bundle) -> Prompt:
    return Prompt(
        name="probe",
        method="zero-shot",
        class_names=("cat",),
        templates=(DEFAULT_TEMPLATE,),
        backbone=bundle.manifest.backbone,
        probe=np.zeros(1, dtype=np.float16),
    )
