"""Weights by name: from the cache without a network, and a quick answer where there is neither."""

import time
from functools import partial
from pathlib import Path

import open_clip
import pytest

from prompt_serve.errors import DownloadFailed
from prompt_serve.training.clip.downloads import pretrained_weights
from prompt_serve.training.clip.open_clip_models import open_clip_source

SPECS = [
    "RN50/openai", "ViT-B-32/laion400m_e31", "RN101/yfcc15m", "ViT-B-16/datacomp_xl_s13b_b90k",
    "ViT-L-14/openai",
]  # fmt: skip


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty cache of the hub's client; requests go to a proxy that is not there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for variable in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # a port where nothing listens
    monkeypatch.setenv("NO_PROXY", "")
    return tmp_path / "hub"


@pytest.mark.parametrize("offline", [False, True], ids=["unreachable", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize("spec", SPECS)
def test_without_a_network_the_error_comes_at_once_and_names_the_way_out(
    spec: str, offline: bool, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)

    tag_cfg = open_clip.get_pretrained_cfg(*spec.split("/"))
    # The hub client itself refuses to work offline; else the host is tried before any work.
    ask = (
        partial(pretrained_weights, spec, tag_cfg)
        if offline
        else open_clip_source(spec).check_weights
    )

    started = time.monotonic()
    with pytest.raises(DownloadFailed, match=f"name it: {spec}@/path/to/the/file") as caught:
        ask()

    assert time.monotonic() - started < 10  # the hub's client alone takes most of a minute
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("spec", SPECS)
def test_cached_weights_need_no_network(spec: str, hub_cache: Path) -> None:
    tag_cfg = open_clip.get_pretrained_cfg(*spec.split("/"))
    repo = tag_cfg["hf_hub"].rstrip("/")
    folder = hub_cache / f"models--{repo.replace('/', '--')}"
    file = folder / "snapshots" / "abc" / "open_clip_model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")

    open_clip_source(spec).check_weights()
    assert pretrained_weights(spec, tag_cfg) == file


@pytest.mark.parametrize("spec", ["ViT-B-32/random", "RN50/random", "ViT-B-32/openai@FILE",
                                  "ViT-B-32@FILE", "RN50/openai@FILE"])  # fmt: skip
def test_nothing_is_asked_for_weights_that_are_here(
    spec: str, hub_cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "weights.pt").touch()

    open_clip_source(spec.replace("FILE", str(tmp_path / "weights.pt"))).check_weights()
