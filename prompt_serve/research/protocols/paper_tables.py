"""The papers' tables as data (``paper_tables.toml``), matched with our rows."""

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

from prompt_serve.research.datasets.spec import imagenet_domains, paper_datasets
from prompt_serve.research.protocols.summary import (
    BASE,
    HARMONIC,
    NEW,
    harmonic_mean,
)
from prompt_serve.training.config import make_config

BACKBONE = "ViT-B/16"  # OpenAI's; default of all tables
DATASETS = tuple(paper_datasets())
DOMAINS = tuple(imagenet_domains())
# Settings that identify a row. Others (epochs, learning rates, dropout) may differ within it.
IDENTITY = (
    "method",
    "rank",
    "projection_rank",
    "frozen_init",
    "bits",
    "quantization",
    "branch",
    "depth",
    "class_specific",
    "class_position",
    "tokens",
    "prune_score",
    "noise_std",
)
# The papers set the depth of these methods by protocol (MaPLe: 9 blocks, 3 in transfer).
DEEP = ("vpt", "ivlp", "maple", "dip-maple", "qmaple", "promptsrc")


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """Figures of one method on one dataset, or averaged over datasets, in one table."""

    label: str  # as in the paper: "DIP+CoOp"
    protocol: str  # as in results, or "cost"
    dataset: str  # training dataset, or AVERAGE
    shots: int
    figures: Mapping[str, float]  # by test set, in ``unit``; figures missing in the text are absent
    paper: str  # "DIP (arXiv 2312.10813)"
    where: str  # "Table 9"
    backbone: str = BACKBONE
    unit: str = "percent"
    ablation: bool = False  # trained with other settings than the paper's main table
    from_memory: bool = False  # not read in the paper
    settings: Mapping[str, Any] | None = None  # of our method; None: not implemented here

    @property
    def source(self) -> str:
        """Paper and table of the figures, as text."""
        return f"{self.paper}, {self.where}{' (from memory)' if self.from_memory else ''}"

    def at(self, test_set: str, name: str) -> "PaperRow | None":
        """Return the row with only one test set, renamed; None if it has no such figure."""
        found = self.figures.get(test_set)
        return None if found is None else replace(self, figures={name: found})


def paper_rows(
    protocol: str | None = None, *, dataset: str | None = None, ablations: bool = True
) -> tuple[PaperRow, ...]:
    """Return the rows of all tables in file order, optionally of one protocol or dataset."""
    return tuple(
        row
        for row in _tables()
        if protocol in (None, row.protocol)
        and dataset in (None, row.dataset)
        and (ablations or not row.ablation)
    )


def paper_row_for(
    config: Mapping[str, Any],
    protocol: str,
    dataset: str,
    *,
    shots: int = 16,
    ablations: bool = False,
) -> PaperRow | None:
    """Return the papers' row for the method of ``config``; None if there is none.

    Figures read in a paper are preferred to figures from memory.

    Args:
        config: settings as stored in a result (``TrainConfig.to_dict``).
        protocol: as in results.
        dataset: training dataset, or AVERAGE.
        shots: training images per class.
        ablations: fall back to rows of ablations.
    """
    expected = identity(config)
    found = [
        row
        for row in paper_rows(protocol, dataset=dataset, ablations=ablations)
        if row.settings is not None
        and row.shots == shots
        and row.backbone == BACKBONE
        and identity(row.settings) == expected
    ]
    found.sort(key=lambda row: (row.ablation, row.from_memory))  # stable
    return found[0] if found else None


def mean_of(rows: Sequence[PaperRow | None]) -> PaperRow | None:
    """Return the mean of several rows, with H of the mean base and new; None if one is None."""
    known = [row for row in rows if row is not None]
    if not known or len(known) < len(rows):
        return None
    shared = [name for name in known[0].figures if all(name in row.figures for row in known)]
    means = {name: math.fsum(row.figures[name] for row in known) / len(known) for name in shared}
    if BASE in means and NEW in means:
        means[HARMONIC] = harmonic_mean(means[BASE], means[NEW])
    return replace(
        known[0],
        figures=means,
        ablation=any(row.ablation for row in known),
        from_memory=any(row.from_memory for row in known),
    )


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings that make it another row of a table, defaults filled in."""
    given = {name: value for name, value in config.items() if name in IDENTITY}
    saved = make_config(given).to_dict()
    values = {name: saved[name] for name in IDENTITY if name in saved}
    deep = values["method"] in DEEP
    return {**values, "depth": None if deep else saved.get("depth") or 1}


@cache
def _tables() -> tuple[PaperRow, ...]:
    text = resources.files(__package__).joinpath("paper_tables.toml").read_text(encoding="utf-8")
    content = tomllib.loads(text)
    return tuple(row for table in content["tables"] for row in _rows(table, content))


def _rows(table: Mapping[str, Any], content: Mapping[str, Any]) -> Iterator[PaperRow]:
    for label, values in table["rows"].items():
        for dataset, figures in _by_dataset(table, values).items():
            known = {name: value for name, value in figures.items() if not math.isnan(value)}
            yield PaperRow(
                label=label,
                protocol=table["protocol"],
                dataset=dataset,
                shots=table.get("shots", 16),
                figures=known,
                paper=content["papers"][table["paper"]],
                where=table["where"],
                backbone=table.get("backbone", BACKBONE),
                unit=table.get("unit", "percent"),
                ablation=table.get("ablation", False),
                from_memory=table.get("from_memory", False),
                settings=content["methods"].get(label),
            )


def _by_dataset(table: Mapping[str, Any], values: Any) -> dict[str, dict[str, float]]:
    columns = table["columns"]
    if "test_set" in table:  # the columns are datasets
        pairs = zip(columns, values, strict=True)
        return {dataset: {table["test_set"]: value} for dataset, value in pairs}
    rows = {table["dataset"]: values} if "dataset" in table else values
    return {name: dict(zip(columns, row, strict=True)) for name, row in rows.items()}
