"""Settings: checked when made, all faults at once; the schedule is the closed formula."""

import json
import math
from pathlib import Path

import pytest

from prompt_serve.errors import ConfigInvalid
from prompt_serve.training.config import TrainConfig, make_config, read_config_file
from prompt_serve.training.methods import METHODS
from prompt_serve.training.schedule import learning_rate_at


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
        "color is no setting",
        "rank is no setting of method 'coop', but of dip",
        "shots is -1; wanted a whole number from 0",
        "epochs is 0",
        "batch_size is 'many'",
        "learning_rate is 'fast'; wanted a number from 1e-09 to 10,000, or 'auto'",
        "weight_decay is 11; wanted a number from 0 to 10",
        "momentum is nan",
        "seed is True",
        "init is 'zeros'",
        "class_position is 'nowhere'",
        "must hold '{}' once",
    ):
        assert expected in text
    assert len(caught.value.faults) == 12


def test_an_unknown_method_is_named_beside_the_known_ones() -> None:
    with pytest.raises(ConfigInvalid, match="method is 'magic'; wanted one of 'zero-shot', 'coop'"):
        TrainConfig(method="magic")


def test_what_the_user_leaves_open_the_method_decides() -> None:
    assert TrainConfig(method="coop").resolved() == TrainConfig(method="coop")
    for name, method in METHODS.items():
        resolved = TrainConfig(method=name).resolved()
        assert all(getattr(resolved, key) == value for key, value in method.defaults.items())
        assert resolved.resolved() == resolved


def test_only_settings_of_the_method_are_saved() -> None:
    saved = TrainConfig(method="dip", rank=2).to_dict()
    assert saved["rank"] == 2
    assert "class_specific" not in saved
    assert "tokens" not in saved
    assert make_config(saved) == TrainConfig(method="dip", rank=2)


def test_a_toml_file_sets_what_python_sets(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    lines = 'method = "coop"\nlearning_rate = 0.1\nn_ctx = 4\nclass_specific = true\n'
    path.write_text(lines)
    expected = TrainConfig(method="coop", learning_rate=0.1, n_ctx=4, class_specific=True)
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
    with pytest.raises(ConfigInvalid, match="train is no setting"):
        make_config(read_config_file(path))


def test_a_saved_configuration_is_json_and_comes_back() -> None:
    config = TrainConfig(method="zero-shot", templates=("a {}", "the {}"))
    assert make_config(json.loads(json.dumps(config.to_dict()))) == config


def test_an_ensemble_is_for_zero_shot() -> None:
    with pytest.raises(ConfigInvalid, match="give one template"):
        TrainConfig(method="dip", templates=("a {}", "the {}"))


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


def test_every_method_that_learns_has_learning_rates() -> None:
    for name, method in METHODS.items():
        assert method.name == name
        if method.learner:
            assert method.learning_rate in method.learning_rates
