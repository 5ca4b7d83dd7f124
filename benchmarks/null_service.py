"""The service with an encoder that waits ``NULL_ENCODER_MS`` per image, beside its own work.

``bentoml serve benchmarks.null_service:PromptServe``; started by ``benchmarks.front``. It waits
without the CPU, like a device that all processes share: a lock on the file ``NULL_ENCODER_LOCK``
lets one batch run at a time.
"""

import fcntl
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from prompt_serve.prompts.image_rows import ImageRows
from prompt_serve.service import core
from prompt_serve.service.inference.batcher import Batcher
from prompt_serve.types import FloatArray, PixelArray

SECONDS_PER_IMAGE = float(os.environ.get("NULL_ENCODER_MS", "0")) / 1000
LOCK = os.environ.get("NULL_ENCODER_LOCK", os.devnull)


class WaitingBatcher(Batcher):
    """Batcher whose encoder takes longer."""

    def __init__(
        self,
        decode: Callable[[bytes], PixelArray],
        encode: Callable[[PixelArray, Sequence[ImageRows | None]], FloatArray],
        **options: Any,
    ) -> None:
        device = os.open(LOCK, os.O_RDWR)

        def encode_slowly(pixels: PixelArray, rows: Sequence[ImageRows | None]) -> FloatArray:
            features = encode(pixels, rows)
            fcntl.flock(device, fcntl.LOCK_EX)
            time.sleep(len(pixels) * SECONDS_PER_IMAGE)
            fcntl.flock(device, fcntl.LOCK_UN)
            return features

        super().__init__(decode, encode_slowly, **options)


vars(core)["Batcher"] = WaitingBatcher  # before the service makes its own

from prompt_serve.service.bento import PromptServe  # noqa: E402 (see above)

__all__ = ["PromptServe"]
