"""LitServe with its dynamic batching: one worker, batches of eight, 10 ms to wait for them."""

import base64
import sys
from typing import Any

import litserve as ls
from torch import Tensor

from benchmarks.peers.servers.alone import BATCH
from benchmarks.peers.servers.open_clip_encoder import Classifier


class ClipApi(ls.LitAPI):  # type: ignore[misc]  # not installed beside the project
    """Photographs in base64, probabilities of the classes."""

    def setup(self, device: str) -> None:
        self.classifier = Classifier()

    def decode_request(self, request: dict[str, Any]) -> Tensor:
        return self.classifier.pixels(base64.b64decode(request["image"]))

    def predict(self, x: Tensor) -> Tensor:
        return self.classifier.probabilities(x)

    def encode_response(self, output: Tensor) -> list[float]:
        found: list[float] = output.tolist()
        return found


if __name__ == "__main__":
    api = ClipApi(max_batch_size=BATCH, batch_timeout=0.01, api_path="/classify")
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
