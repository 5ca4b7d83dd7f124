"""Fixtures shared by all tests."""

from pathlib import Path

import numpy as np
import pytest

from prompt_serve.export.build import export_bundle
from prompt_serve.training.clip.backbone import Backbone, load_backbone
from tests.backbones import write_tiny_backbone
from tests.drawings import draw_dataset


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer backbone on disk."""
    return write_tiny_backbone(tmp_path_factory.mktemp("backbones") / "tiny")


@pytest.fixture(scope="session")
def tiny_backbone(tiny_folder: Path) -> Backbone:
    return load_backbone(str(tiny_folder))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random two-layer backbone, exported in fp32."""
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    export_bundle(tiny_backbone, folder)
    return folder


@pytest.fixture(scope="session")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four colors, 20 training and 10 test images each."""
    return draw_dataset(tmp_path_factory.mktemp("colors"), train=20, test=10)
