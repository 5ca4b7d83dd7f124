"""BentoML's own batching pattern and open_clip."""

from benchmarks.peers.environments import OPEN_CLIP
from benchmarks.peers.peer import Peer, Work, open_clip_peer, post_file

REQUIREMENTS = [*OPEN_CLIP, "bentoml>=1.4.39,<1.5"]
SERVICE = "benchmarks.peers.servers.bentoml_server:Clip"


def peers(work: Work) -> list[Peer]:
    return [
        open_clip_peer(
            work,
            "BentoML",
            REQUIREMENTS,
            precision=precision,
            command=lambda port: ["-m", "bentoml", "serve", SERVICE, "--port", str(port)],
            ready="/readyz",
            request=lambda data: post_file("/classify", "images", data),
            package="bentoml",
        )
        for precision in ("fp32", "bf16")
    ]
