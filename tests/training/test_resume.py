"""A resumed run ends with the same bytes as an uninterrupted one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prompt_serve.errors import ConfigInvalid
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import TrainConfig, make_config
from prompt_serve.training.data.image_batches import ImageData
from prompt_serve.training.data.pixels import PixelSet
from prompt_serve.training.loop import Fitted, fit
from prompt_serve.training.methods import METHODS
from prompt_serve.training.without_torch.outcome import EpochRecord
from tests.training.test_batched_loop import NAMES, features_of
from tests.training.trained import numbers_of

EPOCHS, INTERRUPTED_AFTER = 4, 1
EXTRA: dict[str, dict[str, Any]] = {
    "dip": {"dropout": 0.3, "init_std": 0.3},
    "adapt": {"tokens": 16, "tokens_per_block": 8, "prune_interval": 1},
    "coop": {"noise_std": 0.05},
    "qcoop": {"bits": 2, "recluster_above": 0.0, "recluster_interval": 1},
}
IMAGE_DIP = {"method": "dip", "branch": "image", "init_std": 0.3, "depth": 2}
CASES = [
    *({"method": name, **EXTRA.get(name, {})} for name, m in METHODS.items() if m.learner),
    IMAGE_DIP,
]


class Interrupted(Exception):
    """Ends a run early, as Ctrl-C does."""


def images_for(config: TrainConfig) -> ImageData:
    if not METHODS[config.method].prompts_images(config.settings):
        return features_of(1, 16)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, size=(8, 2, 32, 32, 3), dtype=np.uint8)
    return PixelSet(pixels=pixels, labels=np.arange(8) % 4)


def learn(backbone: Backbone, config: TrainConfig, **more: Any) -> Fitted:
    return fit(backbone, NAMES, images_for(config), None, config, learning_rate=0.1, **more)


def config_of(settings: dict[str, Any]) -> TrainConfig:
    return make_config(**{"epochs": EPOCHS, "batch_size": 4, **settings})


def interrupt_after_epoch(record: EpochRecord) -> None:
    if record.epoch == INTERRUPTED_AFTER:
        raise Interrupted


@pytest.mark.parametrize("settings", CASES, ids=lambda s: "-".join(map(str, s.values()))[:30])
def test_a_resumed_run_equals_an_uninterrupted_one(
    tiny_backbone: Backbone, tmp_path: Path, settings: dict[str, Any]
) -> None:
    config, path = config_of(settings), tmp_path / "run.checkpoint"
    whole = learn(tiny_backbone, config)
    with pytest.raises(Interrupted):
        learn(tiny_backbone, config, checkpoint=path, on_epoch=interrupt_after_epoch)
    seen: list[int] = []

    resumed = learn(
        tiny_backbone, config, checkpoint=path, on_epoch=lambda record: seen.append(record.epoch)
    )

    assert seen == [2, 3]  # the remaining epochs
    assert numbers_of(resumed).tobytes() == numbers_of(whole).tobytes()
    assert [r.loss for r in resumed.history] == [r.loss for r in whole.history]
    assert [r.idk for r in resumed.history] == [r.idk for r in whole.history]
    assert [p.name for p in tmp_path.iterdir()] == ["run.checkpoint"]  # nothing half-written


def test_the_checkpoint_of_a_whole_run_gives_its_result(
    tiny_backbone: Backbone, tmp_path: Path
) -> None:
    config, path = config_of({"method": "coop"}), tmp_path / "checkpoint"
    first = learn(tiny_backbone, config, checkpoint=path)
    again = learn(tiny_backbone, config, checkpoint=path, on_epoch=interrupt_after_epoch)
    assert numbers_of(again).tobytes() == numbers_of(first).tobytes()
    assert again.history == first.history


def test_a_checkpoint_of_another_run_is_refused_with_the_differences(
    tiny_backbone: Backbone, tmp_path: Path
) -> None:
    config, path = config_of({"method": "dip", "rank": 2}), tmp_path / "checkpoint"
    learn(tiny_backbone, config, checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(ConfigInvalid, match="the checkpoint of another run") as caught:
        learn(tiny_backbone, config.replace(rank=1, seed=2), checkpoint=path)
    assert caught.value.faults == ("rank: 2 there, 1 here", "seed: 1 there, 2 here")
    other = features_of(2, 16)
    with pytest.raises(ConfigInvalid, match="images: "):
        fit(tiny_backbone, NAMES, other, None, config, learning_rate=0.1, checkpoint=path)
    with pytest.raises(ConfigInvalid, match=r"learning_rate: 0\.1 there, 0\.2 here"):
        fit(
            tiny_backbone,
            NAMES,
            images_for(config),
            None,
            config,
            learning_rate=0.2,
            checkpoint=path,
        )
    assert path.read_bytes() == before


def test_a_damaged_checkpoint_is_refused(tiny_backbone: Backbone, tmp_path: Path) -> None:
    config, path = config_of({"method": "coop", "epochs": 1}), tmp_path / "checkpoint"
    learn(tiny_backbone, config, checkpoint=path)
    whole = path.read_bytes()
    torch.save([1, 2], tmp_path / "list")
    for damaged in (
        b"",
        b"no checkpoint",
        whole[: len(whole) // 2],
        (tmp_path / "list").read_bytes(),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ConfigInvalid, match="cannot be read as a checkpoint"):
            learn(tiny_backbone, config, checkpoint=path)
        assert path.read_bytes() == damaged


@pytest.mark.parametrize("place", ["file/a", "file/a/b", "/proc/none/a", "link/a", "later"])
def test_a_checkpoint_that_cannot_be_written_is_one_warning(
    tiny_backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    path, config = tmp_path / place, config_of({"method": "coop", "epochs": 3})
    done: list[int] = []

    def on_epoch(record: EpochRecord) -> None:
        done.append(record.epoch)
        if place == "later" and record.epoch == 0:
            path.unlink(missing_ok=True)
            (path / "in the way").mkdir(parents=True)

    learn(tiny_backbone, config, checkpoint=path, on_epoch=on_epoch)

    assert done == [0, 1, 2]
    (record,) = caplog.records
    assert record.getMessage().startswith(f"Warning: {path} cannot be written: ")
