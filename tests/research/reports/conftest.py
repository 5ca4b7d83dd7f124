"""A run folder as the protocols write it: two small datasets with names that want escaping, a
random backbone, four rows, two seeds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from prompt_serve.research.datasets.suite import BenchDataset, Suite
from prompt_serve.research.protocols.experiment import Experiment
from prompt_serve.research.protocols.protocols import base_to_new
from prompt_serve.research.protocols.rows import Row
from prompt_serve.research.reports.report import write_report
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.data.dataset import ImageSet, LabeledImage, Split
from tests.drawings import COLORS, draw_image

HOSTILE = "<script>alert(1)</script>"
CLASSES = (HOSTILE, "a & 'b' $x^2$", '" onload="evil()', "plain")  # base: the first two
COOP = "CoOp <img src=x>"
ROWS: Mapping[str, Mapping[str, Any]] = {
    "zero-shot": {"method": "zero-shot"},
    COOP: {"method": "coop"},
    "QCoOp, 1 bit": {"method": "qcoop", "bits": 1, "recluster_interval": 1, "recluster_above": 0.0},
    "ADAPT, T = 8": {"method": "adapt", "tokens": 8, "tokens_per_block": 4},
}
SEEDS = (1, 2)


def drawn_dataset(folder: Path, name: str, seed: int) -> BenchDataset:
    """Four noisy colors under hostile names."""
    parts = {}
    for part, count in {"train": 6, "test": 5}.items():
        items = []
        for label, color in enumerate(COLORS.values()):
            for n in range(count):
                number = seed + 100 * label + 10_000 * (part == "test") + n
                path = draw_image(folder / part / f"{label}-{n} & <b>.png", color, number)
                items.append(LabeledImage(path, label))
        parts[part] = ImageSet(class_names=CLASSES, items=tuple(items))
    split = Split(train=parts["train"], test=parts["test"])
    return BenchDataset(name=name, split=split, template="a photo of a {}.")


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Backbone) -> Path:
    """Base to new, everything kept."""
    images, out = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("runs") / "run"
    first, second = (drawn_dataset(images / name, name, i) for i, name in enumerate(("ink", "oil")))
    suite = Suite(name="user", datasets={"ink": lambda: first, "oil": lambda: second}, source="ink")
    experiment = Experiment(
        backbone=tiny_backbone,
        rows=tuple(Row(label=label, settings=settings) for label, settings in ROWS.items()),
        seeds=SEEDS,
        settings={"epochs": 4, "views": 0, "batch_size": 4, "learning_rate": 0.1},
        out=out,
    )
    base_to_new(suite, experiment, shots=4)
    return out


@pytest.fixture(scope="session")
def page_file(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of it."""
    out = tmp_path_factory.mktemp("pages") / "report.html"
    write_report([run_folder], out)
    return out


@pytest.fixture(scope="session")
def page(page_file: Path) -> str:
    return page_file.read_text(encoding="utf-8")
