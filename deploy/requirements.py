"""Write deploy/requirements.txt and requirements.cuda.txt: what an image installs.

    python deploy/requirements.py

An image built by BentoML installs packages before the project's own files are there, so it cannot
install the project; it runs it from the Bento's src folder.
"""

import tomllib
from pathlib import Path

_EXTRAS = ("serve", "postgres", "otel")
FILES = {
    "requirements.txt": (),
    "requirements.cuda.txt": ("onnxruntime-gpu[cuda,cudnn]",),
}
_ROOT = Path(__file__).parents[1]


def requirements(*more: str) -> str:
    """The dependencies of the service in pyproject.toml, and ``more``; one a line."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *(line for extra in _EXTRAS for line in extras[extra]),
        *more,
    ]
    return "# Made by deploy/requirements.py from pyproject.toml.\n" + "".join(
        f"{line}\n" for line in sorted(set(wanted))
    )


if __name__ == "__main__":
    for name, more in FILES.items():
        Path(__file__).with_name(name).write_text(requirements(*more))
