"""The papers' settings: the ones they print, and every entry is a valid configuration."""

from typing import Any

import pytest

from prompt_serve.errors import ConfigInvalid
from prompt_serve.research.protocols.rows import row_sets
from prompt_serve.research.protocols.schedules import paper_schedule, paper_settings
from prompt_serve.research.protocols.summary import (
    BASE_TO_NEW,
    CROSS_DATASET,
    DOMAIN_GENERALIZATION,
    FEW_SHOT,
)
from prompt_serve.training.config import make_config
from prompt_serve.training.methods import METHODS

PROTOCOLS = (BASE_TO_NEW, FEW_SHOT, CROSS_DATASET, DOMAIN_GENERALIZATION)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("method", METHODS)
def test_every_entry_is_a_valid_configuration(protocol: str, method: str) -> None:
    for dataset in ("imagenet", "dtd"):
        for shots in (1, 2, 4, 8, 16):
            found = paper_settings(protocol, method, dataset, shots)
            config = make_config({"method": method, **found.settings})
            # "a photo of a" has four words to start from; VPT has none in the image tower.
            assert (
                (config.n_ctx or 4) <= 4 or config.own().get("init") == "random" or method == "vpt"
            )
            assert found.source


@pytest.mark.parametrize(
    ("protocol", "method", "dataset", "shots", "printed"),
    [
        (BASE_TO_NEW, "coop", "dtd", 16, {"epochs": 200, "batch_size": 32, "n_ctx": 4}),
        (BASE_TO_NEW, "coop", "imagenet", 16, {"epochs": 50}),
        (BASE_TO_NEW, "cocoop", "dtd", 16, {"epochs": 10, "batch_size": 1}),
        (BASE_TO_NEW, "maple", "dtd", 16, {"epochs": 5, "batch_size": 4, "learning_rate": 0.0035}),
        (CROSS_DATASET, "maple", "imagenet", 16, {"epochs": 2, "depth": 3, "learning_rate": 26e-4}),
        (FEW_SHOT, "coop", "dtd", 1, {"epochs": 50, "n_ctx": 16, "init": "random"}),
        (FEW_SHOT, "coop", "dtd", 2, {"epochs": 100}),
        (FEW_SHOT, "coop", "dtd", 4, {"epochs": 100}),
        (FEW_SHOT, "coop", "dtd", 8, {"epochs": 200}),
        (FEW_SHOT, "coop", "imagenet", 16, {"epochs": 50}),
        (FEW_SHOT, "adapt", "dtd", 16, {"epochs": 100, "batch_size": 4, "learning_rate": 0.0025}),
        (FEW_SHOT, "promptsrc", "dtd", 16, {"average_mean": 0.9, "average_std": 0.1}),
        (FEW_SHOT, "promptsrc", "food101", 16, {"average_mean": 0.6, "average_std": 0.6}),
    ],
)
def test_what_papers_print(
    protocol: str, method: str, dataset: str, shots: int, printed: dict[str, Any]
) -> None:
    settings = paper_settings(protocol, method, dataset, shots).settings

    assert {name: settings[name] for name in printed} == printed


def test_what_a_paper_leaves_open_is_coops_and_says_so() -> None:
    ours = paper_settings(BASE_TO_NEW, "qcoop", "imagenet")
    coop = paper_settings(BASE_TO_NEW, "coop", "imagenet")

    assert (coop.open, bool(ours.open)) == ((), True)
    assert ours.settings == coop.settings
    assert {"epochs", "learning_rate", "batch_size"} <= set(ours.open)
    assert "states no epochs" in ours.source


def test_what_a_paper_states_beside_what_it_leaves_open() -> None:
    dip = paper_settings(BASE_TO_NEW, "dip", "dtd")
    adapt = paper_settings(FEW_SHOT, "adapt", "dtd")

    assert "batch_size" not in dip.open
    assert {"epochs", "learning_rate", "dropout"} == set(dip.open)
    assert adapt.open == ("weight_decay",)


def test_both_transfers_learn_the_same_prompt() -> None:
    for method in METHODS:
        across = paper_settings(CROSS_DATASET, method, "imagenet")
        assert paper_settings(DOMAIN_GENERALIZATION, method, "imagenet") == across


def test_the_rows_that_come_with_the_package_can_be_learned_so() -> None:
    for rows in row_sets().values():
        for row in rows:
            config = row.config(paper_schedule(BASE_TO_NEW, row, "dtd", 16))
            assert config.method == row.method


def test_zero_shot_learns_nothing() -> None:
    assert paper_settings(BASE_TO_NEW, "zero-shot").settings == {}


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigInvalid, match="Unknown protocol 'base-to-old'; expected base-to-new"):
        paper_settings("base-to-old", "coop")
    with pytest.raises(ConfigInvalid, match="Unknown method 'clip-adapter'"):
        paper_settings(BASE_TO_NEW, "clip-adapter")
