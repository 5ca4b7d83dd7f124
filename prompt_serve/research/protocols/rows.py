"""Rows of a table: methods with settings, and their notation on the command line."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from prompt_serve.errors import ConfigInvalid, did_you_mean
from prompt_serve.training.config import SHARED, TrainConfig, make_config, setting_owners
from prompt_serve.training.methods import METHODS
from prompt_serve.training.settings import settings_of


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table, trained anew for each dataset and seed."""

    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # of TrainConfig, method included

    @property
    def method(self) -> str:
        return str(self.settings["method"])

    def config(self, *others: Mapping[str, Any]) -> TrainConfig:
        """Return the training configuration.

        Args:
            others: settings for all rows; later ones override earlier ones, the row's own override
                all. Settings that its method does not have are ignored.

        Raises:
            ConfigInvalid: settings are unknown or out of range.
        """
        known = {*SHARED, *settings_of(METHODS[self.method].settings)}
        common = {
            name: value
            for other in others
            for name, value in other.items()
            if name in known or not setting_owners(name)
        }
        return make_config({**common, **self.settings})


def parse_rows(text: str) -> tuple[Row, ...]:
    """Parse ``coop,dip:rank=4,qcoop:bits=1:quantization=ptq``, or the name of a set of rows.

    Raises:
        ConfigInvalid: a method or setting is unknown; the error lists all faults.
    """
    rows: list[Row] = []
    faults: list[str] = []
    for word in (part.strip() for part in text.split(",")):
        if word in row_sets():
            rows += row_sets()[word]
            continue
        try:
            rows.append(_row(word))
        except ConfigInvalid as error:
            faults += error.faults or [error.message]
    labels = [row.label for row in rows]
    faults += [f"{label!r} is requested twice" for label in sorted(set(labels)) if
               labels.count(label) > 1]  # fmt: skip
    if faults or not rows:
        raise ConfigInvalid(
            f"{text!r} is not a list of methods such as coop,dip:rank=4 (or one of the sets "
            f"{', '.join(row_sets())}):",
            faults,
        )
    return tuple(rows)


def _row(word: str) -> Row:
    method, *pairs = word.split(":")
    if method not in METHODS:
        hint = did_you_mean(method, [*METHODS, *row_sets()])
        raise ConfigInvalid(
            "", [f"unknown method {method!r}; expected {', '.join(METHODS)}.{hint}"]
        )
    if METHODS[method].closed_form is not None:
        raise ConfigInvalid(
            "",
            [
                f"method {method!r} takes no new classes, and the protocols compare prompts; "
                f"compare it on your own images with prompt-serve train"
            ],
        )
    values = parse_settings(pairs)
    row = Row(label=" ".join([method, *pairs]), settings={"method": method, **values})
    row.config()
    return row


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse settings such as ``["epochs=50", "learning_rate=auto"]``, with TOML's types.

    Raises:
        ConfigInvalid: one is not NAME=VALUE.
    """
    values = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigInvalid("", [f"{pair!r} is not NAME=VALUE, as in epochs=50"])
        try:
            values[name.replace("-", "_")] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            values[name.replace("-", "_")] = value
    return values


@cache
def row_sets() -> Mapping[str, tuple[Row, ...]]:
    """Return the sets of rows that ship with the package (``rows.toml``), by name."""
    text = resources.files(__package__).joinpath("rows.toml").read_text(encoding="utf-8")
    return {
        name: tuple(Row(label=label, settings=values) for label, values in rows.items())
        for name, rows in tomllib.loads(text).items()
    }
