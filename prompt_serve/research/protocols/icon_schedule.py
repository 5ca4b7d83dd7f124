"""Training settings for IconBench, equal for all rows that prompt the same tower."""

from collections.abc import Mapping
from typing import Any

from prompt_serve.research.protocols.rows import Row
from prompt_serve.training.methods import METHODS

TEXT = {"epochs": 25, "batch_size": 32, "learning_rate": "auto", "views": 4}
# The image tower runs at every step: smaller batches, fewer epochs and the method's default rate,
# as in MaPLe and ADAPT.
IMAGE = {"epochs": 10, "batch_size": 8, "views": 4}
# The wide task has ten times the images and gets a fifth of the epochs, as the papers do with
# ImageNet: about as many steps as the other tasks.
WIDE = "kinds"
WIDE_SHARE = 0.2


def icon_schedule(protocol: str, row: Row, dataset: str, shots: int) -> Mapping[str, Any]:
    """``Experiment.schedule`` of the suite "icon"."""
    prompts_images = METHODS[row.method].prompts_images(row.config().settings)
    common: dict[str, Any] = dict(IMAGE if prompts_images else TEXT)
    if dataset == WIDE:
        common["epochs"] = round(WIDE_SHARE * common["epochs"])
    return common
