"""Weights of a pretrained tag: from the local cache, or downloaded if the host can be reached.

The hub's client retries for most of a minute before it gives up without a network. The connection
is tried first, so that this takes seconds.
"""

import socket
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from huggingface_hub import constants, try_to_load_from_cache
from open_clip.constants import HF_WEIGHTS_NAME
from open_clip.pretrained import download_pretrained

from prompt_serve.errors import DownloadFailed

CONNECT_TIMEOUT_S = 5.0
_HF_SAFE_NAME = "open_clip_model.safetensors"  # what open_clip prefers to HF_WEIGHTS_NAME


def pretrained_weights(label: str, tag_cfg: Mapping[str, Any]) -> Path:
    """Return the file with the weights of a tag.

    Args:
        label: MODEL/TAG, for errors.
        tag_cfg: the tag as open_clip describes it, with ``hf_hub`` or ``url``.

    Raises:
        DownloadFailed: the file is not cached, and cannot be downloaded.
    """
    if (cached := next(_cached(tag_cfg), None)) is not None:
        return cached
    try:
        return Path(download_pretrained(dict(tag_cfg)))
    except Exception as error:  # the hub's client raises a dozen unrelated types
        raise _failed(label, tag_cfg, error) from error


def check_connection(label: str, tag_cfg: Mapping[str, Any]) -> None:
    """Check that the weights of a tag are cached, or that their host can be connected to.

    Raises:
        DownloadFailed: they are not, and it cannot.
    """
    if constants.HF_HUB_OFFLINE or next(_cached(tag_cfg), None) is not None:
        return  # the hub's client itself refuses at once to work offline
    try:
        _connect(_host(tag_cfg))
    except OSError as error:
        raise _failed(label, tag_cfg, error) from error


def _host(tag_cfg: Mapping[str, Any]) -> str:
    """Return the URL of the host that has the weights, in open_clip's order of preference."""
    url: str = constants.ENDPOINT if tag_cfg.get("hf_hub") else tag_cfg["url"]
    return url


def _failed(label: str, tag_cfg: Mapping[str, Any], error: Exception) -> DownloadFailed:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DownloadFailed(
        f"The weights of {label} could not be downloaded from {_host(tag_cfg)}: "
        f"{reason.rstrip('.')}. Download them where there is a network, copy the file here, and "
        f"name it: {label}@/path/to/the/file",
        url=_host(tag_cfg),
    )


def _cached(tag_cfg: Mapping[str, Any]) -> Iterator[Path]:
    """Yield files in the hub's cache, in the order in which open_clip looks for them."""
    where = PurePosixPath(tag_cfg.get("hf_hub", ""))
    if not where.name:
        return
    # "organization/model/file", or "organization/model/" for the default names.
    is_file = not tag_cfg["hf_hub"].endswith("/")
    repo = str(where.parent if is_file else where)
    names = (
        (where.with_suffix(".safetensors").name, where.name)
        if is_file
        else (_HF_SAFE_NAME, HF_WEIGHTS_NAME)
    )
    for name in names:
        found = try_to_load_from_cache(repo, name)
        if isinstance(found, str):
            yield Path(found)


def _connect(url: str) -> None:
    """Connect to the host of ``url``, or to the proxy that requests to it go through."""
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy)
    address = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    with socket.create_connection(address, timeout=CONNECT_TIMEOUT_S):
        pass
