"""Checks before the first worker starts, in the parent process.

BentoML restarts a failing worker again and again without showing the reason.
"""

import logging
import re
import subprocess
import sys

from prompt_serve.bundle import BUNDLE_FORMAT, MANIFEST, bundle_format, open_bundle
from prompt_serve.errors import BundleInvalid, PromptServeError, ProviderUnavailable
from prompt_serve.service.inference.engine import Engine
from prompt_serve.service.settings import Settings

_EMBEDDED = "embedded"
_COLORS = re.compile(
    r"\x1b\[[0-9;]*m"
)  # ONNX Runtime colors its log, which names a missing library
_SELF = "prompt_serve.service.preflight"

_log = logging.getLogger(__name__)


def check(settings: Settings) -> None:
    """Export the default bundle if necessary, and check that bundle and device are usable.

    Raises:
        BundleInvalid: the bundle is missing or incomplete, or the export failed.
        ProviderUnavailable: CUDA was requested and does not run.
    """
    ensure_bundle(settings)
    open_bundle(settings.bundle_path, verify=False)  # the worker verifies the digests
    if settings.cuda_device is not None:
        _check_cuda()


def ensure_bundle(settings: Settings) -> None:
    """Export the embedded backbone if the default bundle is missing or has an older format.

    Runs in a separate process: exporting needs torch, which the service never imports.
    """
    path = settings.bundle_path
    version = bundle_format(path)
    is_old = version is not None and version < BUNDLE_FORMAT
    if settings.bundle is not None or ((path / MANIFEST).is_file() and not is_old):
        return
    old, missing = f"The bundle in {path} has the old format {version}", f"No bundle in {path}"
    reason = old if is_old else missing
    _log.warning("%s: exporting the embedded backbone.", reason)
    done = _run("prompt_serve", "export", _EMBEDDED, "-o", str(path))
    if done.returncode != 0:
        raise BundleInvalid(
            f"{reason}, and exporting the embedded backbone failed:\n"
            f"{done.stderr.strip()[-2000:]}\n"
            f"Exporting needs torch: pip install 'prompt-serve[train]', then prompt-serve export "
            f"{_EMBEDDED} -o {path}. Or export on another machine, copy the folder here, and set "
            f"PROMPT_SERVE_BUNDLE=/path/to/the/bundle",
            path=str(path),
        )


def _check_cuda() -> None:
    """Open the bundle on CUDA in a separate process: a CUDA context here would hold its memory."""
    done = _run(_SELF)
    if done.returncode != 0:
        raise ProviderUnavailable(_COLORS.sub("", done.stderr).strip()[-4000:])


def _run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (our own)


def _open_on_device(settings: Settings) -> None:
    bundle = open_bundle(settings.bundle_path, verify=False)
    Engine(bundle, cuda_device=settings.cuda_device, threads=1, max_batch=1).warm_up()


if __name__ == "__main__":
    try:
        _open_on_device(Settings.from_environment())
    except PromptServeError as problem:
        sys.exit(problem.message)
