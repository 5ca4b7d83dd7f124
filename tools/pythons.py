"""Run tests of the core, the client and the service on every other Python that is installed.

    python -m tools.pythons [3.13 ...]

Looks for 3.11 to 3.14 on PATH and among pyenv's versions, and leaves out the one it runs on: that
is what ``make test`` is for. Each gets an environment in ``build/`` with the extra ``serve``,
without torch. Ends with a table of what was run, and with exit code 1 if a test failed.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
PACKAGES = (".[serve,postgres,tables]", "pytest>=8.4")
# Fast tests that need no torch: the core, the client and its commands against the fake service, and
# parts of the service. The example then learns a task, serves it in a process and asks it.
TESTS = (
    "tests/test_files.py",
    "tests/test_scoring.py",
    "tests/closed_form",
    "tests/prompts/test_prompt_file.py",
    "tests/prompts/test_folding.py",
    "tests/client",
    "tests/cli/serving/test_score.py",
    "tests/service/inference/test_requests.py",
    "tests/service/inference/test_batcher.py",
    "tests/service/storage/test_api_keys.py",
    "tests/service/storage/test_database.py",
    "tests/service/storage/test_registry.py",
    "tests/service/test_settings.py",
    "tests/service/test_startup.py",
    "tests/service/test_problems.py",
)
TIMEOUT_S = 600.0


def main(chosen: Sequence[str]) -> int:
    """Run the tests; return the exit code."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    outcomes: dict[str, str] = {}
    for version in chosen or VERSIONS:
        if version == here and not chosen:
            outcomes[version] = "the environment of make test"
        elif (python := find(version)) is None:
            outcomes[version] = "not installed here; nothing was run"
        else:
            outcomes[version] = run(version, python)
    for version, outcome in outcomes.items():
        print(f"Python {version}: {outcome}", flush=True)
    return 1 if any(outcome.startswith("FAILED") for outcome in outcomes.values()) else 0


def find(version: str) -> Path | None:
    """Return an interpreter of a version; None if there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    candidates = [folder / f"python{version}" for folder in folders]
    candidates += sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True)
    return next((path for path in candidates if path.is_file() and _is(path, version)), None)


def _is(path: Path, version: str) -> bool:
    # pyenv's shims are there for every version, and fail for those that are not selected.
    code = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.strip() == version


def run(version: str, python: Path) -> str:
    """Install the package for an interpreter and run the tests; return the outcome in words."""
    started = time.monotonic()
    folder = ROOT / "build" / f"python-{version}"
    own = folder / "bin" / "python"
    print(f"Python {version} ({python})", flush=True)
    try:
        if not own.is_file():
            _call(python, "-m", "venv", folder)
        _call(own, "-m", "pip", "install", "--quiet", "--editable", *PACKAGES)
        _call(own, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *TESTS)
        _call(own, "examples/quickstart.py", PROMPT_SERVE_HOME=str(folder / "home"))
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        return f"FAILED: {error}"
    return f"passed in {time.monotonic() - started:.0f} s"


def _call(*command: str | Path, **variables: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    environment.pop("REQUIRE_PROGRAMS", None)  # ``make test`` has run what needs programs
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=TIMEOUT_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
