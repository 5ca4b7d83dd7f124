"""Start, restart, two processes on one registry, and starts that must fail."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from prompt_serve.bundle import Bundle, open_bundle
from prompt_serve.engines import onnx_session
from prompt_serve.engines.batch_sizes import batch_buckets
from prompt_serve.engines.onnx_cuda import cuda
from prompt_serve.engines.onnx_session import CPU, open_session
from prompt_serve.engines.ort_placement import RECORD_ASSIGNMENT, nodes_on_other_providers
from prompt_serve.errors import BundleInvalid, PromptServeError, ProviderUnavailable
from prompt_serve.prompts.prompt_file import to_bytes
from prompt_serve.service import preflight
from prompt_serve.service.inference.engine import Engine
from prompt_serve.service.settings import Settings
from prompt_serve.training.clip.backbone import Backbone
from tests.service.process import environment, refused_start, service
from tests.service.prompts import learned_prompt, picture

PNG = {"content-type": "image/png"}


@pytest.mark.serve
@pytest.mark.slow
def test_a_restart_keeps_all_tasks_and_two_processes_share_them(
    tiny_bundle: Path, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    files = [to_bytes(learned_prompt(tiny_backbone, ["a", "b"], seed=seed)) for seed in range(3)]
    with service(tmp_path, tiny_bundle) as first:
        for seed, data in enumerate(files):
            assert httpx.put(f"{first.url}/v1/tasks/t{seed}", content=data).status_code == 201
        before = [_ask(first.url, f"t{seed}") for seed in range(3)]

    with service(tmp_path, tiny_bundle) as one, service(tmp_path, tiny_bundle) as two:
        assert [_ask(two.url, f"t{seed}") for seed in range(3)] == before
        stale = 0
        for i in range(40):
            here, there = (one, two) if i % 2 else (two, one)
            uploaded = httpx.put(f"{here.url}/v1/tasks/t0", content=files[i % 3])
            assert uploaded.status_code == 200
            answer = _ask(there.url, "t0")
            stale += answer["version"] != uploaded.json()["version"]
        log = one.log.read_text()
    assert stale == 0
    assert "Traceback" not in log
    assert one.process.returncode == 0


_HAS_GPU = Path("/proc/driver/nvidia/version").exists()


@pytest.mark.skipif(_HAS_GPU, reason="CUDA may well run here")
def test_cuda_that_cannot_run_is_no_quiet_cpu(bundle: Bundle) -> None:
    with pytest.raises(ProviderUnavailable, match=r"CUDA device 0 was requested.*DEVICE=cpu"):
        Engine(bundle, cuda_device=0, threads=1, max_batch=1)


def test_matrix_products_on_another_provider_stop_the_start(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ort.SessionOptions()
    options.add_session_config_entry(RECORD_ASSIGNMENT, "1")
    session = ort.InferenceSession(
        str(bundle.image_encoder), options, providers=["CPUExecutionProvider"]
    )
    graph = onnx.load(bundle.image_encoder).graph
    heavy = ("MatMul", "Gemm", "Conv", "MultiHeadAttention")
    products = Counter(node.op_type for node in graph.node if node.op_type in heavy)

    assert not nodes_on_other_providers(session, "CPUExecutionProvider")
    left = nodes_on_other_providers(session, "CUDAExecutionProvider")
    assert left["Conv"] == products["Conv"] > 0
    assert left.keys() == products.keys()

    monkeypatch.setattr(onnx_session, "nodes_on_other_providers", lambda *_: left)
    provider = replace(CPU, unavailable=cuda(0).unavailable)
    with pytest.raises(ProviderUnavailable, match=r"in image_encoder.onnx to another provider"):
        open_session(bundle.image_encoder, provider, threads=1)


@pytest.mark.gpu
@pytest.mark.skipif(not _HAS_GPU, reason="needs a CUDA device")
def test_cuda_that_was_asked_for_is_what_runs(bundle: Bundle, engine: Engine) -> None:
    on_gpu = Engine(bundle, cuda_device=0, threads=1, max_batch=8)
    side = bundle.manifest.preprocessing.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (5, side, side, 3), dtype=np.uint8)

    assert on_gpu.provider == "CUDAExecutionProvider"
    # Convolutions in float32 on CUDA sum in another order.
    assert np.abs(on_gpu.encode_images(pixels) - engine.encode_images(pixels)).max() <= 1e-3


@pytest.mark.serve
@pytest.mark.slow
def test_a_service_with_misspelt_settings_says_so_and_exits(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    misspelt = {"PROMPT_SERVE_DEVICE": "gpu", "PROMPT_SERVE_MAX_BACH": "3"}

    output = refused_start(environment(tmp_path, tiny_bundle) | misspelt)

    assert "did you mean PROMPT_SERVE_MAX_BATCH?" in output


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"bundle": "/nowhere"}, "There is no bundle in /nowhere"),
        ({"engine": "tensorrt"}, "TensorRT runs on CUDA devices only"),
    ],
)
def test_what_cannot_run_is_found_before_a_worker_starts(
    tiny_bundle: Path, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(PromptServeError, match=reason):
        preflight.check(Settings(**{"bundle": str(tiny_bundle), **settings}))


@pytest.mark.serve
@pytest.mark.slow
@pytest.mark.skipif(find_spec("openvino") is None, reason="needs prompt-serve[openvino]")
def test_all_workers_run_the_engine_that_was_measured(tiny_bundle: Path, tmp_path: Path) -> None:
    with service(tmp_path, tiny_bundle, engine="auto", workers="2") as running:
        infos = [httpx.get(f"{running.url}/v1/info", timeout=60).json() for _ in range(20)]

    engines = [info["engine"] for info in infos]
    assert engines == [engines[0]] * len(infos)
    assert engines[0]["images_per_s"].keys() == {"onnxruntime", "openvino"}
    assert engines[0]["name"] in engines[0]["reason"]
    assert infos[0]["runtime"].startswith(engines[0]["name"])
    assert running.log.read_text().count(engines[0]["reason"]) >= 2  # a line of each worker


def _flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("name", ["image_encoder.onnx", "text_encoder.onnx", "tokenizer.json"])
@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: b"", _flip])
def test_a_damaged_bundle_is_not_served(
    tiny_bundle: Path, tmp_path: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    _damaged(tiny_bundle, tmp_path, name, damage)
    with pytest.raises(BundleInvalid, match=f"{name} is not the file"):
        open_bundle(tmp_path)


@pytest.mark.serve
@pytest.mark.slow
def test_a_service_with_a_damaged_bundle_exits_and_starts_no_worker(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    _damaged(tiny_bundle, folder, "text_encoder.onnx", _flip)
    assert "text_encoder.onnx is not the file" in refused_start(environment(tmp_path, folder))


def _damaged(bundle: Path, folder: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    for path in bundle.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / name).write_bytes(damage((bundle / name).read_bytes()))


def test_batches_for_cuda_are_padded_to_powers_of_two() -> None:
    assert batch_buckets(1) == [1]
    assert batch_buckets(8) == [1, 2, 4, 8]
    assert batch_buckets(24) == [1, 2, 4, 8, 16, 24]


_IMPORTS = """
import sys
import {module}
print([name for name in ("torch", "open_clip", "timm", "torchvision") if name in sys.modules])
"""


@pytest.mark.parametrize("module", ["prompt_serve.service.bento", "prompt_serve.client"])
def test_neither_service_nor_client_imports_torch(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTS.format(module=module)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def _ask(url: str, task: str) -> dict[str, object]:
    response = httpx.post(
        f"{url}/v1/classify?task={task}", content=picture(3), headers=PNG, timeout=60
    )
    prediction: dict[str, object] = response.json()["results"][0]["predictions"][0]
    return prediction
