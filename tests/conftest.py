"""Fixtures shared by all tests.

torch is imported by the fixtures that need it: ``make pythons`` runs tests where it is missing.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from prompt_serve.bundle import SHIPPED, Bundle, open_bundle, shipped_bundle
from tests.drawings import draw_dataset

if TYPE_CHECKING:
    from prompt_serve.training.clip.backbone import Backbone


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
    from prompt_serve.export.build import export_bundle

    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    export_bundle(request.getfixturevalue("tiny_backbone"), folder)
    return folder


@pytest.fixture(scope="session")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four colors, 20 training and 10 test images each."""
    return draw_dataset(tmp_path_factory.mktemp("colors"), train=20, test=10)


@pytest.fixture(scope="session")
def bundle(tiny_bundle: Path) -> Bundle:
    """The same, opened."""
    return open_bundle(tiny_bundle)
