"""Fixtures shared by all tests.

torch is imported by the fixtures that need it: ``make pythons`` runs tests where it is missing.
"""

import hashlib
import shutil
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner

from prompt_serve.bundle import SHIPPED, Bundle, open_bundle, shipped_bundle
from tests.drawings import draw_dataset

if TYPE_CHECKING:
    from prompt_serve.training.clip.backbone import Backbone

_ROOT = Path(__file__).parents[1]
_BUILD = _ROOT / "build" / "tests"
GENERATED = "generated requests"  # property of a test: how many it has sent


@pytest.hookimpl(trylast=True)  # what `-m` leaves out does not count
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with long tests first, then slow ones: short ones fill the end evenly."""
    ranks: dict[Path, int] = {}
    for item in items:
        ranks[item.path] = max(ranks.get(item.path, 0), _rank(item))
    items.sort(key=lambda item: -ranks[item.path])  # stable: a file's tests stay in order


def _rank(item: pytest.Item) -> int:
    names = {mark.name for mark in item.iter_markers()}
    return 2 if "long" in names else 1 if names & {"slow", "serve"} else 0


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many generated requests were answered; see ``tests/service/contract``."""
    counts = [
        value
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == GENERATED
    ]
    if counts:
        total = sum(counts)
        terminalreporter.write_line(f"{total:,} generated requests were answered, none with 5xx")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer backbone on disk."""
    from tests.backbones import write_tiny_backbone

    return write_tiny_backbone(tmp_path_factory.mktemp("backbones") / "tiny")


@pytest.fixture(scope="session")
def tiny_backbone(tiny_folder: Path) -> "Backbone":
    from prompt_serve.training.clip.backbone import load_backbone

    return load_backbone(str(tiny_folder))


@pytest.fixture(scope="session")
def tiny_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random two-layer backbone, exported in fp32; without torch, the one that is shipped."""
    if find_spec("torch") is None:
        return shipped_bundle(SHIPPED[0])
    folder, _ = request.getfixturevalue("exported")
    return Path(folder)


@pytest.fixture(scope="session")
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The bundle that ``prompt-serve export`` makes of the tiny backbone, and what it printed."""
    from filelock import FileLock  # comes with torch

    # An export takes 13 s of a core: processes that test the same code share it.
    made = _BUILD / f"tiny-bundle-{_code_digest()}"
    printed = made / "printed.txt"
    _BUILD.mkdir(parents=True, exist_ok=True)
    with FileLock(_BUILD / "tiny-bundle.lock"):
        if not printed.exists():
            for old in _BUILD.glob("tiny-bundle-*"):
                shutil.rmtree(old)
            from prompt_serve.cli.main import main  # imports torch for seconds

            folder = request.getfixturevalue("tiny_folder")
            command = ["export", str(folder), "-o", str(made / "bundle")]
            result = CliRunner().invoke(main, command)
            assert result.exit_code == 0, result.output
            printed.write_text(result.output)
        copy = tmp_path_factory.mktemp("bundles") / "tiny"
        return Path(shutil.copytree(made / "bundle", copy)), printed.read_text()


def _code_digest() -> str:
    """Return a digest of all code of the package and of the packages that an export uses."""
    digest = hashlib.sha256((_ROOT / "tests" / "backbones.py").read_bytes())
    for file in sorted((_ROOT / "prompt_serve").rglob("*.py")):
        digest.update(str(file.relative_to(_ROOT)).encode() + b"\0" + file.read_bytes() + b"\0")
    for name in (
        "torch",
        "onnx",
        "onnxscript",
        "onnxruntime-gpu",
        "onnxruntime",
        "open_clip_torch",
    ):
        with suppress(PackageNotFoundError):
            digest.update(f"{name} {version(name)}".encode())
    return digest.hexdigest()[:16]


@pytest.fixture(scope="session")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four colors, 20 training and 10 test images each."""
    return draw_dataset(tmp_path_factory.mktemp("colors"), train=20, test=10)


@pytest.fixture(scope="session")
def bundle(tiny_bundle: Path) -> Bundle:
    """The same, opened."""
    return open_bundle(tiny_bundle)


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``--method auto`` learn its prompt in a fraction of the steps that users get."""
    from prompt_serve.training.selection import by_cross_validation  # imports torch

    few = {**by_cross_validation.PROMPT_STEPS, "min_steps": 40}
    monkeypatch.setattr(by_cross_validation, "PROMPT_STEPS", few)
