"""Download the two npm packages of the pipeline with `npm pack`."""

import subprocess
import tarfile

from pretraining.workdir import WorkDir

PACKAGES = {"iconify": "@iconify/json@2.2.535", "emojibase": "emojibase-data@17.0.0"}


def fetch_sources(work: WorkDir) -> None:
    """Unpack both packages into the work folder unless they exist."""
    for folder, package in PACKAGES.items():
        target = work.root / folder
        if (target / "package").exists():
            continue
        target.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(
            ["npm", "pack", package, "--silent"],
            cwd=target,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()[-1]
        with tarfile.open(target / packed) as archive:
            archive.extractall(target, filter="data")
        (target / packed).unlink()
