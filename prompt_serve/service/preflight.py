"""Checks before the first worker starts, in the parent process.

BentoML restarts a failing worker again and again without showing the reason.
"""

import os
import re
import subprocess
import sys

import httpx

from prompt_serve.bundle import open_bundle
from prompt_serve.errors import ConfigInvalid, PromptServeError, ProviderUnavailable
from prompt_serve.service.inference.engine import Engine
from prompt_serve.service.inference.engine_choice import choose_for_workers
from prompt_serve.service.inference.graph_check import check_graphs
from prompt_serve.service.middleware.oidc import token_verifier
from prompt_serve.service.settings import Settings
from prompt_serve.signing.trusted_keys import read_trusted_keys

_COLORS = re.compile(
    r"\x1b\[[0-9;]*m"
)  # ONNX Runtime colors its log, which names a missing library
_SELF = "prompt_serve.service.preflight"


def check(settings: Settings) -> None:
    """Check that bundle, engine, device and identity provider are usable.

    Raises:
        ConfigInvalid: images are fetched by URL, and the certificates for that cannot be read; or
            there are no trusted keys where the settings name them; or the settings of the identity
            provider are incomplete.
        DependencyMissing: an extra is missing: ``signing`` for trusted keys, ``oidc`` for an
            identity provider, ``openvino`` for that engine.
        BundleInvalid: the bundle is missing, incomplete or damaged.
        ProviderUnavailable: the engine or the device that was requested does not run.
    """
    token_verifier(settings)
    check_graphs(open_bundle(settings.bundle_path))
    choose_for_workers(settings)
    if settings.cuda_device is not None:
        _check_cuda()
    if settings.image_urls:
        _check_certificates()
    if settings.trusted_keys_path is not None:
        read_trusted_keys(settings.trusted_keys_path)


def _check_cuda() -> None:
    """Open the bundle on CUDA in a separate process: a CUDA context here would hold its memory."""
    command = [sys.executable, "-m", _SELF]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (our own)
    if done.returncode != 0:
        raise ProviderUnavailable(_COLORS.sub("", done.stderr).strip()[-4000:])


def _check_certificates() -> None:
    try:
        httpx.create_ssl_context()
    except OSError as error:  # ssl.SSLError is one, too
        raise ConfigInvalid(
            f"SSL_CERT_FILE is {os.environ.get('SSL_CERT_FILE')!r}, which cannot be read: {error}. "
            f"PROMPT_SERVE_IMAGE_URLS needs its certificates; correct it or unset it."
        ) from error


def _open_on_device(settings: Settings) -> None:
    bundle = open_bundle(settings.bundle_path, verify=False)
    Engine(
        bundle,
        cuda_device=settings.cuda_device,
        threads=1,
        max_batch=1,
        engine=settings.engine_name,
    ).warm_up()


if __name__ == "__main__":
    try:
        _open_on_device(Settings.from_environment())
    except PromptServeError as problem:
        sys.exit(problem.message)
