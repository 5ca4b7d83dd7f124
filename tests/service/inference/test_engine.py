"""Features of a batch are those of its images alone."""

from functools import partial

import numpy as np

from prompt_serve.bundle import Bundle
from prompt_serve.preprocess import pixels_from_bytes
from prompt_serve.service.inference.engine import Engine
from tests.service.inference.test_batcher import NO_DEADLINE, batcher, outcomes
from tests.service.prompts import picture


def test_batches_of_many_requests_give_what_images_give_alone(
    bundle: Bundle, engine: Engine
) -> None:
    decode = partial(pixels_from_bytes, preprocessing=bundle.manifest.preprocessing)
    files = [picture(seed) for seed in range(12)]
    with batcher(engine.encode_images, decode=decode) as running:
        futures = [running.submit(files[i : i + 3], NO_DEADLINE) for i in range(0, 12, 3)]
        together = [row for future in futures for row in outcomes(future)]

    for file, row in zip(files, together, strict=True):
        alone = engine.encode_images(decode(file)[np.newaxis])[0]
        # A batch is multiplied in blocks of another size: float32 rounding, no more.
        assert np.abs(np.asarray(row)[0] - alone).max() <= 2e-6
