"""LitServe and open_clip, with LitServe's batching."""

import base64
import json

from benchmarks.peers.environments import OPEN_CLIP
from benchmarks.peers.peer import Peer, Work, open_clip_peer, post

REQUIREMENTS = [*OPEN_CLIP, "litserve>=0.2.19,<0.3"]


def peers(work: Work) -> list[Peer]:
    return [
        open_clip_peer(
            work,
            "LitServe",
            REQUIREMENTS,
            precision=precision,
            command=lambda port: ["-m", "benchmarks.peers.servers.litserve_server", str(port)],
            ready="/health",
            request=request,
            package="litserve",
        )
        for precision in ("fp32", "bf16")
    ]


def request(data: bytes) -> bytes:
    body = json.dumps({"image": base64.b64encode(data).decode()})
    return post("/classify", "application/json", body.encode())
