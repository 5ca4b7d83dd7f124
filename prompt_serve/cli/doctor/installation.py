"""Versions of prompt-serve, of Python, and of the libraries that it uses; nothing is imported."""

import importlib.util
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import prompt_serve
from prompt_serve.cli.doctor.findings import Checked
from prompt_serve.cli.failures import EXTRAS

PACKAGES = (
    "torch", "open_clip_torch", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "nncf",
    "bentoml", "fastapi", "sqlalchemy", "psycopg", "tokenizers", "numpy", "pillow", "pillow-heif",
    "pydantic", "httpx", "click", "safetensors", "pyarrow", "huggingface_hub",
)  # fmt: skip
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")


def check_installation() -> Checked:
    """Return the versions, and what is missing of each extra."""
    versions = {name: _version(name) for name in PACKAGES}
    extras = _missing_by_extra()
    problems, notes = [], []
    if all(versions[name] for name in _RUNTIMES):
        problems.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: "
            "pip uninstall onnxruntime onnxruntime-gpu, then install prompt-serve again."
        )
    for extra in ("serve", "train"):
        if extras[extra]:
            notes.append(
                f"The extra {extra} is not complete ({', '.join(extras[extra])}): "
                f"pip install 'prompt-serve[{extra}]'."
            )
    facts: dict[str, Any] = {
        "version": prompt_serve.__version__,
        "folder": str(Path(prompt_serve.__file__).parent),
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": versions,
        "missing": extras,
    }
    return Checked(facts=facts, problems=problems, notes=notes)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _missing_by_extra() -> dict[str, list[str]]:
    missing: dict[str, list[str]] = {extra: [] for extra, _ in EXTRAS.values()}
    for module, (extra, _) in EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            missing[extra].append(module)
    return missing
