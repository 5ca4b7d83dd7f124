"""Environments of the peers, one each in ``build/peers``: ``python -m venv``, then pip.

torch and what it loads take 5 GB per environment. Where the running interpreter has the pinned
version, its files are linked instead, in a folder that a .pth file adds; pip sees them as installed
and leaves them alone.
"""

import os
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

TORCH = {"torch": "2.14.1", "torchvision": "0.29.1"}
PINNED_TORCH = [f"{name}=={number}" for name, number in TORCH.items()]
OPEN_CLIP = [*PINNED_TORCH, "open_clip_torch>=3.3,<4", "pillow>=11.3,<14"]
_LINKED = ("torch", "torchvision", "torchgen", "functorch", "triton", "nvidia", "cuda")
_INSTALLED = "installed.txt"


class NotInstalled(Exception):
    """The packages of a peer cannot be installed here; the text is pip's last line."""


def environment(folder: Path, requirements: list[str]) -> Path:
    """Make an environment with these packages unless it is there; return its interpreter.

    Raises:
        NotInstalled: pip failed.
    """
    python = folder / "bin" / "python"
    stamp = folder / _INSTALLED
    listed = "\n".join(requirements)
    if stamp.is_file() and stamp.read_text() == listed:
        return python
    run(sys.executable, "-m", "venv", "--clear", str(folder))
    if has_pinned_torch():
        link_torch(folder)
    run(str(python), "-m", "pip", "install", "--quiet", *requirements)
    stamp.write_text(listed)
    return python


def has_pinned_torch() -> bool:
    try:
        return all(version(name).partition("+")[0] == number for name, number in TORCH.items())
    except PackageNotFoundError:
        return False


def link_torch(folder: Path) -> None:
    """Link torch, and the libraries that it loads, from the running interpreter.

    The links lie outside the environment: pip never removes what it finds there.
    """
    links = folder.with_name("torch-links")
    links.mkdir(exist_ok=True)
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        link = links / path.name
        if is_linked(path.name):
            link.unlink(missing_ok=True)
            link.symlink_to(path)
    major, minor = sys.version_info[:2]
    packages = folder / "lib" / f"python{major}.{minor}" / "site-packages"
    (packages / "torch.pth").write_text(f"{links}\n")


def is_linked(name: str) -> bool:
    """Return True for a file of torch, or of what it loads, below site-packages."""
    # nvidia_ml_py has its module elsewhere, and torch does not need it.
    words = name.replace("-", ".").replace("_", ".").split(".")
    return words[0] in _LINKED and words[:2] != ["nvidia", "ml"]


def run(*command: str) -> None:
    # pip of the new environment must not see the packages of this one.
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=clean)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise NotInstalled((errors or done.stderr.splitlines() or ["pip failed"])[-1][:200])
