"""Choose the engine of the image encoder once, before the workers start.

All workers, and those that replace one, then run the same engine. The measurement runs in a process
of its own, whose memory is free again afterwards; the workers inherit its result in a variable.
"""

import os
import subprocess
import sys

from prompt_serve.bundle import open_bundle
from prompt_serve.engines import openvino_images
from prompt_serve.engines.choice import check_engine, choose_engine
from prompt_serve.engines.onnx_session import available_cores
from prompt_serve.errors import PromptServeError, ProviderUnavailable
from prompt_serve.schemas import EngineInfo
from prompt_serve.service.settings import Settings

VARIABLE = "_PROMPT_SERVE_ENGINE"
_SELF = "prompt_serve.service.inference.engine_choice"


def choose_for_workers(settings: Settings) -> None:
    """Check the engine of the settings; measure if there is a choice. For the parent process.

    Raises:
        ProviderUnavailable: the engine cannot run the bundle on the device.
        DependencyMissing: it is not installed.
        BundleInvalid: the bundle is missing or damaged.
    """
    os.environ.pop(VARIABLE, None)
    bundle = open_bundle(settings.bundle_path, verify=False)
    check_engine(bundle, settings.engine_name, cuda_device=settings.cuda_device)
    if settings.engine_name is not None or settings.cuda_device is not None:
        return
    if not openvino_images.is_installed():
        return
    done = subprocess.run(  # noqa: S603 (our own)
        [sys.executable, "-m", _SELF], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ProviderUnavailable(done.stderr.strip()[-4000:])
    os.environ[VARIABLE] = done.stdout.splitlines()[-1]


def chosen_before() -> EngineInfo | None:
    """Return what was chosen for all workers; None if each engine is what its settings say."""
    text = os.environ.get(VARIABLE)
    return EngineInfo.model_validate_json(text) if text else None


def _measured(settings: Settings) -> EngineInfo:
    chosen = choose_engine(
        open_bundle(settings.bundle_path, verify=False),
        settings.engine_name,
        cuda_device=settings.cuda_device,
        threads=settings.inference_threads or available_cores(),
        max_batch=settings.batch_size,
    )
    return EngineInfo(
        name=chosen.engine.name, reason=chosen.reason, images_per_s=dict(chosen.images_per_s)
    )


if __name__ == "__main__":
    try:
        print(_measured(Settings.from_environment()).model_dump_json())
    except PromptServeError as problem:
        sys.exit(problem.message)
