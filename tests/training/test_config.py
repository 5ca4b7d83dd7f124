"""Configurations: checked when made, all faults at once; the schedule is the closed formula."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from prompt_serve.errors import ConfigInvalid
from prompt_serve.training.config import (
    SHARED,
    TrainConfig,
    make_config,
    read_config_file,
    with_user_settings,
)
from prompt_serve.training.loop import learning_rate_at
from prompt_serve.training.methods import METHODS
from prompt_serve.training.methods.coop import CoopSettings
from prompt_serve.training.methods.dip import DipSettings
from prompt_serve.training.methods.qcoop import QcoopSettings
from prompt_serve.training.settings import defaults_of, settings_of


def test_all_faults_come_at_once() -> None:
    with pytest.raises(ConfigInvalid) as caught:
        make_config(
            {
                "shots": -1,
                "epochs": 0,
                "batch_size": "many",
                "learning_rate": "fast",
                "weight_decay": 11,
                "momentum": float("nan"),
                "seed": True,
                "method": "coop",
                "init": "zeros",
                "class_position": "nowhere",
                "rank": 2,
                "template": "no place",
                "color": "red",
            }
        )
    text = str(caught.value)
    for expected in (
        "color is not a setting",
        "rank is not a setting of method 'coop'; it belongs to: dip, dip-maple",
        "shots is -1; expected a whole number from 0",
        "epochs is 0",
        "batch_size is 'many'",
        "learning_rate is 'fast'; expected a number from 1e-09 to 10,000, or 'auto'",
        "weight_decay is 11; expected a number from 0 to 10",
        "momentum is nan",
        "seed is True",
        "init is 'zeros'",
        "class_position is 'nowhere'",
        "must hold '{}' once",
    ):
        assert expected in text
    assert len(caught.value.faults) == 12


def test_an_unknown_method_is_named_beside_the_known_ones() -> None:
    expected = "method is 'magic'; expected one of 'zero-shot', 'class-vectors', 'coop'"
    with pytest.raises(ConfigInvalid, match=expected) as caught:
        make_config(method="magic", rank=2, shots=-1)
    assert len(caught.value.faults) == 2
    with pytest.raises(ConfigInvalid, match="method is 3"):
        make_config(method=3)


def test_a_method_has_defaults_of_its_own() -> None:
    bits = {name: make_config(method=name).to_dict().get("bits") for name in METHODS}
    assert (bits["qcoop"], bits["qmaple"], bits["coop"]) == (1, 4, None)
    vectors = {name: make_config(method=name).to_dict()["n_ctx"] for name in METHODS}
    assert {name: n for name, n in vectors.items() if n} == {
        "vpt": 8, "ivlp": 2, "maple": 2, "qmaple": 2,
    }  # fmt: skip
    # A default of one method does not follow the configuration to another.
    assert make_config(method="vpt").replace(method="ivlp").to_dict()["n_ctx"] == 2
    assert make_config(method="vpt", n_ctx=3).replace(method="ivlp").to_dict()["n_ctx"] == 3
    assert make_config(method="qcoop", bits=None) == make_config(method="qcoop")


def test_every_method_describes_all_its_settings() -> None:
    for name, method in METHODS.items():
        described, defaults = settings_of(method.settings), defaults_of(method.settings)
        fields = {field.name for field in dataclasses.fields(method.settings)}
        assert set(described) == fields, name
        assert not fields & set(SHARED), name
        for key, setting in described.items():
            assert setting.help.endswith("."), (name, key)
            assert setting.fault(key, defaults[key]) is None, (name, key)
            assert defaults[key] is not None or setting.unset, (name, key)


def test_settings_of_another_method_are_refused() -> None:
    config = TrainConfig(method="dip", settings=DipSettings(rank=2))
    assert config == make_config(rank=2)
    with pytest.raises(ConfigInvalid, match="settings are CoopSettings; method 'dip' takes Dip"):
        TrainConfig(method="dip", settings=CoopSettings())
    with pytest.raises(ConfigInvalid, match=r"(?s)dropout is 1.5") as caught:
        DipSettings(rank=0, dropout=1.5)
    assert len(caught.value.faults) == 2


def test_changes_go_to_the_settings_they_name() -> None:
    config = make_config(method="dip", rank=2, epochs=3)
    assert config.replace(rank=4, seed=5) == make_config(method="dip", rank=4, epochs=3, seed=5)
    with pytest.raises(ConfigInvalid, match="init is not a setting of method 'dip'"):
        config.replace(init="random")


def test_only_settings_of_the_method_are_saved() -> None:
    saved = make_config(method="dip", rank=2).to_dict()
    assert saved["rank"] == 2
    assert "class_specific" not in saved
    assert "tokens" not in saved
    assert make_config(saved) == make_config(method="dip", rank=2)


def test_a_toml_file_sets_what_python_sets(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    lines = 'method = "coop"\nlearning_rate = 0.1\nn_ctx = 4\nclass_specific = true\n'
    path.write_text(lines)
    expected = make_config(method="coop", learning_rate=0.1, n_ctx=4, class_specific=True)
    assert make_config(read_config_file(path)) == expected
    path.write_text("[train]\n" + lines)
    assert make_config(read_config_file(path)) == expected


def test_a_bad_settings_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        read_config_file(path)
    path.write_text("shots = \n")
    with pytest.raises(ConfigInvalid, match="is not TOML"):
        read_config_file(path)
    path.write_text("train = 3\n")
    with pytest.raises(ConfigInvalid, match="train is not a setting"):
        make_config(read_config_file(path))


def test_a_saved_configuration_is_json_and_comes_back() -> None:
    config = make_config(method="zero-shot", templates=("a {}", "the {}"))
    assert make_config(json.loads(json.dumps(config.to_dict()))) == config


def test_an_ensemble_is_for_zero_shot() -> None:
    with pytest.raises(ConfigInvalid, match="give one template"):
        make_config(method="dip", templates=("a {}", "the {}"))


@pytest.mark.parametrize("epochs", [1, 5, 10, 50, 100, 200])
def test_the_learning_rate_is_the_closed_form(epochs: int) -> None:
    rates = [learning_rate_at(e, base=0.002, epochs=epochs) for e in range(epochs)]
    assert rates[0] == 1e-5
    for e in range(1, epochs):
        expected = 0.002 * math.cos(math.pi * (e - 1) / (2 * epochs)) ** 2  # half-angle identity
        assert rates[e] == pytest.approx(expected, abs=1e-15)
    assert all(rate > 0 for rate in rates)
    assert rates[1:] == sorted(rates[1:], reverse=True)


def test_the_warm_up_never_exceeds_the_rate_asked_for() -> None:
    assert learning_rate_at(0, base=1e-6, epochs=5) == 1e-6


def test_settings_of_the_papers_are_stored_as_before_there_were_others() -> None:
    stored = make_config(method="coop").to_dict()
    assert not {"augmentation", "min_steps", "step_unit"} & set(stored)
    changed = make_config(method="coop", min_steps=7, step_unit="relative")
    assert changed.to_dict() == stored | {"min_steps": 7, "step_unit": "relative"}
    assert make_config(changed.to_dict()) == changed


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"step_unit": "relative", "augmentation": "none", "min_steps": 3_000, "shots": 0}),
        ({"epochs": 3}, {"epochs": 3, "min_steps": 0}),
        ({"epochs": 3, "min_steps": 9}, {"epochs": 3, "min_steps": 9}),
        ({"views": 4}, {"views": 4, "augmentation": "crops"}),
        ({"views": 4, "augmentation": "light"}, {"augmentation": "light"}),
        ({"shots": 2, "step_unit": "absolute"}, {"shots": 2, "step_unit": "absolute"}),
        ({"method": "qcoop"}, {"n_ctx": 16, "settings": QcoopSettings(bits=4, init="random")}),
        ({"method": "qcoop", "bits": 1, "n_ctx": 4}, {"n_ctx": 4}),
        ({"method": "qcoop", "init": "template"}, {"n_ctx": None}),
        (
            {"method": "qcoop", "template": "{} it is"},
            {"n_ctx": None, "settings": QcoopSettings(bits=4)},
        ),
        ({"method": "maple"}, {"batch_size": 8, "step_unit": "relative"}),
        ({"method": "dip", "branch": "text"}, {"batch_size": 32}),
        ({"method": "class-vectors"}, {"shots": 0, "min_steps": 0, "step_unit": "absolute"}),
    ],
)
def test_the_defaults_for_users_give_way(given: dict[str, Any], expected: dict[str, Any]) -> None:
    config = make_config(with_user_settings({"method": "coop"} | given))
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("images", "epochs"), [(5, 100), (32, 100), (63, 100), (64, 50), (100, 34), (10_000, 20)]
)
def test_epochs_are_added_until_there_are_enough_steps(images: int, epochs: int) -> None:
    config = make_config(method="coop", epochs=20, min_steps=100, batch_size=32)
    assert config.with_min_steps(images).epochs == epochs


def test_every_method_that_learns_has_learning_rates() -> None:
    for name, method in METHODS.items():
        assert method.name == name
        if method.learner:
            assert method.learning_rate in method.learning_rates
