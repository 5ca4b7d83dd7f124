"""Specifications of the public datasets, read from ``papers.toml``."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from prompt_serve.errors import ConfigInvalid

COOP = "coop"  # base set of templates; the other sets list their differences from it


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """Folder layout of a public dataset and the properties of its published split.

    ``papers.toml`` explains the fields. Empty counts and lists are not checked.
    """

    name: str
    title: str
    folders: tuple[str, ...]
    reader: str
    images: tuple[str, ...]
    needs: tuple[str, ...] = ()
    holds: tuple[str, ...] = ()
    classes: int = 0
    sizes: Mapping[str, int] = field(default_factory=dict)
    first_new: str = ""
    published: Mapping[int, str] = field(default_factory=dict)
    names_from: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)
    fetch: tuple[str, ...] = ()
    needs_page: str = ""
    note: str = ""


def paper_datasets() -> Mapping[str, DatasetSpec]:
    """Return the eleven datasets by name, in the order of the papers' tables."""
    return _specs("datasets")


def imagenet_domains() -> Mapping[str, DatasetSpec]:
    """Return the four domains of ImageNet by name."""
    return _specs("domains")


def template_of(dataset: str, templates: str = COOP) -> str:
    """Return the hand-written sentence of a dataset, with ``{}`` for the class name.

    Args:
        dataset: name; datasets without a sentence of their own get the default.
        templates: name of the set of sentences.

    Raises:
        ConfigInvalid: the set of templates is unknown.
    """
    known = _document()["templates"]
    if templates not in known:
        raise ConfigInvalid(
            f"Unknown set of templates {templates!r}; expected one of {', '.join(known)}."
        )
    sentences = {**known[COOP], **known[templates]}
    return str(sentences.get(dataset, sentences["default"]))


@cache
def _document() -> dict[str, Any]:
    text = files("prompt_serve.research.datasets").joinpath("papers.toml").read_text("utf-8")
    return tomllib.loads(text)


@cache
def _specs(kind: str) -> Mapping[str, DatasetSpec]:
    document = _document()
    return {
        name: _spec(name, {"needs_page": _section(document["needs_page"], table), **table})
        for name, table in document[kind].items()
    }


def _section(page: str, table: Mapping[str, Any]) -> str:
    return f"{page}#{table['title'].lower()}"  # as GitHub names the sections of DATASETS.md


def _spec(name: str, table: Mapping[str, Any]) -> DatasetSpec:
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in table.items()
    }
    # TOML keys are strings; these are positions in a list.
    values["published"] = {int(at): file for at, file in table.get("published", {}).items()}
    return DatasetSpec(name=name, **values)
