"""Notation of table rows on the command line."""

import pytest

from prompt_serve.errors import ConfigInvalid
from prompt_serve.research.protocols.rows import parse_rows, parse_settings, row_sets
from prompt_serve.training.config import TrainConfig, make_config
from prompt_serve.training.methods import METHODS


def test_methods_and_settings_are_read_with_their_types() -> None:
    coop, dip, ptq = parse_rows("coop, dip:rank=4:dropout=0.2, qcoop:bits=1:quantization=ptq")

    assert (coop.label, coop.config().method) == ("coop", "coop")
    assert dip.config() == make_config(method="dip", rank=4, dropout=0.2)
    assert ptq.config() == make_config(method="qcoop", bits=1, quantization="ptq")
    assert ptq.label == "qcoop bits=1 quantization=ptq"


def test_settings_for_all_rows_skip_those_that_a_method_does_not_have() -> None:
    coop, dip = parse_rows("coop,dip:rank=4")

    common = {"epochs": 7, "rank": 2, "dropout": 0.1}
    assert coop.config(common) == make_config(method="coop", epochs=7)
    # The row's own rank wins.
    assert dip.config(common) == make_config(method="dip", epochs=7, rank=4, dropout=0.1)


def test_all_that_is_wrong_comes_out_at_once() -> None:
    with pytest.raises(
        ConfigInvalid,
        match=r"(?s)unknown method 'cop'.*'rank' is not NAME=VALUE.*bits is 3.*'coop' is requested",
    ):
        parse_rows("cop,dip:rank,qcoop:bits=3,coop,coop")


def test_words_need_no_quotes() -> None:
    assert parse_settings(["learning-rate=auto", "epochs=5", "calibrate=false"]) == {
        "learning_rate": "auto",
        "epochs": 5,
        "calibrate": False,
    }


@pytest.mark.parametrize("name", row_sets())
def test_every_row_of_the_sets_is_valid(name: str) -> None:
    for row in row_sets()[name]:
        assert row.config({"epochs": 3}).epochs == 3


def test_the_set_of_text_methods_has_all_of_them() -> None:
    methods = {row.method for row in row_sets()["text"]}
    of_text = {
        name
        for name, method in METHODS.items()
        if method.closed_form is None
        and not method.prompts_images(row_config(name).settings)
        and name != "adapt"
    }
    assert methods == of_text


def row_config(name: str) -> TrainConfig:
    (row,) = parse_rows(name)
    return row.config()


def test_class_vectors_are_no_row_of_a_protocol() -> None:
    with pytest.raises(ConfigInvalid, match="'class-vectors' takes no new classes"):
        parse_rows("coop,class-vectors")
