"""Plain FastAPI and open_clip."""

from benchmarks.peers.environments import OPEN_CLIP
from benchmarks.peers.peer import Peer, Work, open_clip_peer, post_file

REQUIREMENTS = [
    *OPEN_CLIP,
    "fastapi>=0.115,<1",
    "uvicorn[standard]>=0.30,<1",
    "python-multipart>=0.0.20,<1",
]


def peers(work: Work) -> list[Peer]:
    return [
        open_clip_peer(
            work,
            "FastAPI",
            REQUIREMENTS,
            precision=precision,
            command=lambda port: ["-m", "benchmarks.peers.servers.fastapi_server", str(port)],
            ready="/openapi.json",
            request=lambda data: post_file("/classify", "image", data),
            package="fastapi",
        )
        for precision in ("fp32", "bf16")
    ]
