"""BentoML's own batching pattern: an API that takes a list of images, filled from many requests."""

import bentoml
import numpy as np
import torch
from PIL.Image import Image

from benchmarks.peers.servers.alone import BATCH
from benchmarks.peers.servers.open_clip_encoder import Classifier


@bentoml.service(traffic={"timeout": 60})
class Clip:
    """Image tower and class vectors in the one worker."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    @bentoml.api(batchable=True, max_batch_size=BATCH)  # type: ignore[untyped-decorator]
    def classify(self, images: list[Image]) -> np.ndarray:
        pixels = torch.stack([self.classifier.preprocess(image) for image in images])
        return self.classifier.probabilities(pixels).numpy()
