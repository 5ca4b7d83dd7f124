"""Image encoder of a bundle alone, in ONNX Runtime (its default options) or OpenVINO.

python -m benchmarks.peers.own_encoder BUNDLE ENGINE PHOTOGRAPHS SECONDS
"""

import sys
from pathlib import Path

import numpy as np

from benchmarks.http_throughput import pixels_of, raw_session
from benchmarks.peers.servers.alone import BATCH, print_alone
from prompt_serve.bundle import open_bundle
from prompt_serve.engines.onnx_session import available_cores
from prompt_serve.engines.openvino_images import OpenVinoImages


def main(path: Path, engine: str, photographs: Path, seconds: float) -> None:
    bundle = open_bundle(path, verify=False)
    files = [file.read_bytes() for file in sorted(photographs.iterdir())[:BATCH]]
    pixels = pixels_of(bundle, files)
    if engine == "openvino":
        encoder = OpenVinoImages(bundle, threads=available_cores())
        print_alone(lambda: encoder.encode(pixels), seconds)
    else:
        session = raw_session(bundle, "cpu")

        def encode() -> np.ndarray:
            return session.run(None, {"pixels": pixels})[0]  # type: ignore[no-any-return]

        print_alone(encode, seconds)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), float(sys.argv[4]))
