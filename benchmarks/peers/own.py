"""The service itself, with bundles of the same weights."""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import httpx

from benchmarks.http_throughput import prepared_bundle
from benchmarks.peers.peer import Peer, Work, clean_variables, post
from benchmarks.peers.server_process import RunningServer, running
from benchmarks.peers.weights import BACKBONE, CLASS_NAMES
from prompt_serve import __version__
from tests.service.process import environment

ENGINES = [
    ("onnxruntime", "fp32"),
    ("onnxruntime", "int8"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
]


def peers(work: Work) -> list[Peer]:
    installed = [pair for pair in ENGINES if find_spec(pair[0]) is not None]
    return [own_peer(work, engine, precision) for engine, precision in installed]


def own_peer(work: Work, engine: str, precision: str) -> Peer:
    asked = argparse.Namespace(bundle=None, model=BACKBONE, precision=precision, cache=work.bundles)
    bundle = prepared_bundle(asked)
    number = import_module(engine).__version__.partition("-")[0]
    return Peer(
        name=f"prompt-serve ({engine})",
        precision=precision,
        encoder=f"{engine} {precision}",
        alone=[sys.executable, "-m", "benchmarks.peers.own_encoder", str(bundle), engine],
        variables=clean_variables(work),
        start=lambda: served(work, bundle, engine, precision),
        request=lambda data: post("/v1/classify?task=bench", "image/jpeg", data),
        versions=f"prompt-serve {__version__}, {engine} {number}",
    )


@contextlib.contextmanager
def served(work: Work, bundle: Path, engine: str, precision: str) -> Iterator[RunningServer]:
    log = work.build / f"prompt-serve-{engine}-{precision}.log"
    with (
        tempfile.TemporaryDirectory() as home,
        running(command, environment(Path(home), bundle, engine=engine), log, "/readyz") as server,
    ):
        body = {"name": "bench", "class_names": CLASS_NAMES}
        url = f"http://127.0.0.1:{server.port}/v1/tasks"
        httpx.post(url, json=body, timeout=60).raise_for_status()
        yield server


def command(port: int) -> list[str]:
    server = [sys.executable, "-m", "bentoml", "serve", "."]
    return [*server, "--host", "127.0.0.1", "--port", str(port)]
