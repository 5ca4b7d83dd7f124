"""What the papers learn with (``schedules.toml``), as settings of ``TrainConfig``."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from prompt_serve.errors import ConfigInvalid
from prompt_serve.research.protocols.rows import Row
from prompt_serve.research.protocols.summary import (
    BASE_TO_NEW,
    CROSS_DATASET,
    DOMAIN_GENERALIZATION,
    FEW_SHOT,
)
from prompt_serve.training.methods import METHODS

# Of methods that have no entry.
_AS_COOP = {"like": "coop", "open": "all", "source": "CoOp's settings"}
# One prompt is learned for both.
_LEARNED_AS = {DOMAIN_GENERALIZATION: CROSS_DATASET}


@dataclass(frozen=True, kw_only=True)
class PaperSettings:
    """How a paper learns."""

    settings: Mapping[str, Any]  # of TrainConfig
    open: tuple[str, ...]  # names that the paper does not state; some have no value here either
    source: str  # where it says so, and what stands for what it leaves open

    @property
    def stated(self) -> bool:
        """Whether the paper states all of it."""
        return not self.open


def paper_settings(protocol: str, method: str, dataset: str = "", shots: int = 16) -> PaperSettings:
    """What the papers learn ``method`` with.

    Args:
        protocol: as in results.
        method: a name in METHODS.
        dataset: that is learned on; of the suite "papers" a few have their own epochs.
        shots: images a class.

    Raises:
        ConfigInvalid: there is no such protocol or method.
    """
    tables = _schedules()
    name = _LEARNED_AS.get(protocol, protocol)
    if name not in tables:
        known = ", ".join((BASE_TO_NEW, FEW_SHOT, CROSS_DATASET, DOMAIN_GENERALIZATION))
        raise ConfigInvalid(f"There is no protocol {protocol!r}; there are {known}.")
    if method not in METHODS:
        raise ConfigInvalid(f"There is no method {method!r}; there are {', '.join(METHODS)}.")
    if METHODS[method].learner is None:
        return PaperSettings(settings={}, open=(), source="nothing is learned")
    entry = tables[name].get(method, _AS_COOP)
    settings = _settings(entry, tables[name], dataset, shots)
    left_open = entry.get("open", ())
    return PaperSettings(
        settings=settings,
        open=tuple(settings) if left_open == "all" else tuple(left_open),
        source=entry["source"],
    )


def paper_schedule(protocol: str, row: Row, dataset: str, shots: int) -> Mapping[str, Any]:
    """The settings of ``paper_settings`` as ``Experiment.schedule`` asks for them."""
    return paper_settings(protocol, row.method, dataset, shots).settings


def _settings(
    entry: Mapping[str, Any], table: Mapping[str, Mapping[str, Any]], dataset: str, shots: int
) -> dict[str, Any]:
    first = _settings(table[entry["like"]], table, dataset, shots) if "like" in entry else {}
    return {
        **first,
        **entry.get("settings", {}),
        **entry.get("at_shots", {}).get(str(shots), {}),
        **entry.get("on", {}).get(dataset, {}),
    }


@cache
def _schedules() -> dict[str, dict[str, dict[str, Any]]]:
    text = resources.files(__package__).joinpath("schedules.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
