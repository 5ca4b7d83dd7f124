"""Training settings of the papers (``schedules.toml``) as settings of ``TrainConfig``."""

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

# For methods without an entry.
_AS_COOP = {"like": "coop", "open": "all", "source": "CoOp's settings"}
# Both protocols test the same prompt.
_LEARNED_AS = {DOMAIN_GENERALIZATION: CROSS_DATASET}


@dataclass(frozen=True, kw_only=True)
class PaperSettings:
    """Training settings of one paper."""

    settings: Mapping[str, Any]  # of TrainConfig
    open: tuple[str, ...]  # settings that the paper does not state
    source: str  # section of the paper, and the origin of values it does not state


def paper_settings(protocol: str, method: str, dataset: str = "", shots: int = 16) -> PaperSettings:
    """Return the papers' training settings for ``method``.

    Args:
        protocol: as in results.
        method: a name in METHODS.
        dataset: training dataset; a few of the suite "papers" have their own epochs.
        shots: training images per class.

    Raises:
        ConfigInvalid: the protocol or method is unknown.
    """
    tables = _schedules()
    name = _LEARNED_AS.get(protocol, protocol)
    if name not in tables:
        known = ", ".join((BASE_TO_NEW, FEW_SHOT, CROSS_DATASET, DOMAIN_GENERALIZATION))
        raise ConfigInvalid(f"Unknown protocol {protocol!r}; expected {known}.")
    if method not in METHODS:
        raise ConfigInvalid(f"Unknown method {method!r}; expected {', '.join(METHODS)}.")
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
    """Return the settings of ``paper_settings``; an ``Experiment.schedule``."""
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
