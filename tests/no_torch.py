"""Processes in which torch cannot be imported, as after ``pip install 'prompt-serve[serve]'``."""

import os
import subprocess
import sys
from pathlib import Path

# Python imports this module at the start of every process, those of BentoML included.
_SITECUSTOMIZE = """
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec
ABSENT = {"torch", "torchvision", "open_clip", "timm", "onnx", "onnxscript"}

def find_unless_absent(name, path=None, target=None):
    return None if name.partition(".")[0] in ABSENT else find_spec(name, path, target)

PathFinder.find_spec = find_unless_absent
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
