"""infinity (infinity-emb): it returns embeddings, and leaves the classes to its client."""

import base64
import json
from pathlib import Path

from benchmarks.peers.environments import PINNED_TORCH, environment
from benchmarks.peers.peer import Peer, Work, clean_variables, post, versions
from benchmarks.peers.server_process import running

# optimum 2 and click 8.2 changed what this version imports; its extra lacks aiohttp.
REQUIREMENTS = [
    *PINNED_TORCH,
    "infinity-emb[server,torch,vision]>=0.0.76,<0.1",
    "optimum<2",
    "click<8.2",
    "aiohttp>=3.9,<4",
]
OPTIONS = (
    "--engine torch --device cpu --no-bettertransformer --batch-size 8 "
    "--served-model-name clip --log-level warning"
).split()
DTYPES = {"fp32": "float32", "int8": "int8"}  # it has no other ones on a CPU


def peers(work: Work) -> list[Peer]:
    python = environment(work.build / "infinity", REQUIREMENTS)
    return [infinity_peer(work, python, precision) for precision in DTYPES]


def infinity_peer(work: Work, python: Path, precision: str) -> Peer:
    variables = {**clean_variables(work), "PEER_PRECISION": precision}

    def command(port: int) -> list[str]:
        server = [str(python.with_name("infinity_emb")), "v2", "--host", "127.0.0.1"]
        model = ["--model-id", str(work.weights / "transformers"), "--dtype", DTYPES[precision]]
        return [*server, "--port", str(port), *model, *OPTIONS]

    log = work.build / f"infinity-{precision}.log"
    return Peer(
        name="infinity",
        precision=precision,
        encoder=f"transformers {precision}",
        alone=[str(python), "-m", "benchmarks.peers.servers.infinity_encoder"],
        variables=variables,
        start=lambda: running(command, variables, log, "/health"),
        request=request,
        versions=versions(python, "infinity-emb", "transformers", "torch"),
    )


def request(data: bytes) -> bytes:
    image = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    asked = {"model": "clip", "modality": "image", "input": [image], "encoding_format": "base64"}
    return post("/embeddings", "application/json", json.dumps(asked).encode())
