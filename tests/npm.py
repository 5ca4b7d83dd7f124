"""Packages from npm for tests; skipped where its registry cannot be reached."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.required import program_missing

# Errors of npm that are faults of our files; all others are about the network.
OUR_FAULTS = ("EUSAGE", "EJSONPARSE", "ERESOLVE", "EINTEGRITY")


def check_programs(what: str) -> None:
    """Skip the test without npm and node; ``what`` is not tested then."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        program_missing(f"{what} IS NOT TESTED HERE: apt-get install nodejs npm")


def install(folder: Path, what: str) -> None:
    """Install the locked packages; skip the test where there is no registry."""
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    network = ["--fetch-retries=0", "--fetch-timeout=30000"]
    done = subprocess.run(
        ["npm", "ci", *options, *network], cwd=folder, capture_output=True, text=True, timeout=300
    )
    if done.returncode == 0:
        return
    assert not any(code in done.stderr for code in OUR_FAULTS), done.stderr
    pytest.skip(f"{what} IS NOT TESTED HERE: npm ci failed: {done.stderr.strip()[:300]}")
