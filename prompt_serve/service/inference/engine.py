"""Encoders of the served bundle: the text encoder at low priority, warm-up, and checks."""

import time
from collections.abc import Sequence

import numpy as np

from prompt_serve.bundle import Bundle
from prompt_serve.engines.encoders import Encoders
from prompt_serve.errors import ServiceError
from prompt_serve.prompts.class_features import class_features
from prompt_serve.prompts.image_rows import ImageRows
from prompt_serve.prompts.prompt_file import Prompt
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.prompts.sequences import Sequences
from prompt_serve.schemas import DEFAULT_TEMPLATE, EngineInfo
from prompt_serve.service.tasks.feature_queue import at_low_priority
from prompt_serve.types import EngineName, FloatArray, PixelArray


class Engine:
    """Image and text encoder of a bundle. Thread-safe.

    Args:
        bundle: an exported backbone.
        cuda_device: index of a CUDA device; None runs on the CPU.
        threads: number of threads of the CPU kernels.
        max_batch: maximum number of images per call.
        engine: runs the image encoder; None chooses the fastest.

    Raises:
        ProviderUnavailable: the engine cannot run this bundle on this device.
        DependencyMissing: the engine is not installed.
        BundleInvalid: the graphs cannot be loaded.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        cuda_device: int | None,
        threads: int,
        max_batch: int,
        engine: EngineName | None = "onnxruntime",
    ) -> None:
        self.bundle = bundle
        encoders = Encoders.open(
            bundle,
            cuda_device=cuda_device,
            threads=threads,
            max_batch=max_batch,
            engine=engine,
            # Its threads yield to those of the image encoder: an upload can wait.
            open_text=at_low_priority,
        )
        self._images, self._text = encoders.images, encoders.text
        self.provider, self.text_provider = encoders.provider, encoders.text.provider
        self.runtime = encoders.images.engine.runtime
        self.info = EngineInfo(
            name=encoders.images.engine.name,
            reason=encoders.chosen.reason,
            images_per_s=dict(encoders.chosen.images_per_s),
            placement=dict(encoders.images.engine.placement),
        )
        self.last_text_success = float("-inf")  # on time.monotonic()
        self._probe_prompt = _probe_prompt(bundle)

    @property
    def slowest_batch_s(self) -> float:
        """Duration of the largest batch after warm-up."""
        return self._images.slowest_batch_s

    def encode_images(
        self, pixels: PixelArray, rows: Sequence[ImageRows | None] = ()
    ) -> FloatArray:
        """Encode (B, S, S, 3) uint8 pixels to (B, E) image features; see ``ImageEncoder``."""
        return self._images.encode(pixels, rows)

    def image_rows(self, prompt: Prompt) -> ImageRows | None:
        """Lay out the image vectors of a prompt for ``encode_images``; see ``ImageEncoder``."""
        return self._images.image_rows(prompt)

    def lay_out(self, vectors: PromptVectors[FloatArray]) -> ImageRows | None:
        """Lay out the folded image branch of a prompt for ``encode_images``."""
        return self._images.lay_out(vectors)

    def encode_text(self, sequences: Sequences) -> FloatArray:
        """Encode the assembled sequences of C classes to (C, E) features of unit length.

        Raises:
            PromptFileInvalid: the sequences have vectors for a different number of blocks.
        """
        features = self._text.encode(sequences)
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
        self._images.warm_up()
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
