"""Processes in which torch cannot be imported, as after ``pip install 'prompt-serve[serve]'``."""

import os
import subprocess
import sys
from pathlib import Path

# Python imports this module at the start of every process, those of BentoML included.
_SITECUSTOMIZE = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        package = name.partition(".")[0]
        if package in {"torch", "torchvision", "open_clip", "timm", "onnx", "onnxscript"}:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)

sys.meta_path.insert(0, NotInstalled())
"""


def without_torch(folder: Path) -> dict[str, str]:
    """Return an environment for processes; ``folder`` is for a file that they read."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}


def run_without_torch(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with arguments where torch cannot be imported."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=without_torch(folder),
    )
