"""Differences between runs that make the rows of one table hard to compare."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from prompt_serve.errors import counted
from prompt_serve.research.protocols.results import Result
from prompt_serve.research.protocols.summary import comparison_of, latest

# Settings that may differ between the runs of one row.
FREE = ("seed",)
# Zero-shot rows also use the sentence of each dataset.
WORDS = ("template", "templates")
ZERO_SHOT = "zero-shot"
# Settings that should be equal across the rows of a table.
EQUAL = ("epochs", "batch_size", "views", "template", "precision", "momentum", "weight_decay")


def fairness_notes(results: Iterable[Result]) -> tuple[str, ...]:
    """Return one sentence per difference that should not be there; empty if there is none.

    Compared are: the settings of one row across datasets and seeds; the settings that should be
    equal across rows (epochs, batch size, views, ...); how learning rates were chosen; numbers of
    images; datasets and seeds of each row; backbone and versions.
    """
    groups: dict[tuple[tuple[str, str, str], int], list[Result]] = {}
    for one in latest(results):
        groups.setdefault((comparison_of(one), one.shots), []).append(one)
    notes: dict[str, None] = {}
    for ((protocol, _, _), shots), own in groups.items():
        where = f"{protocol}, {counted(shots, 'shot')}" if shots else f"{protocol}, all images"
        notes |= {f"{where}: {note}.": None for note in _notes(own)}
    return tuple(notes)


def _notes(results: Sequence[Result]) -> Iterator[str]:
    by_label = _split(results, lambda one: one.label)
    learned = {label: own for label, own in by_label.items() if own[0].method != ZERO_SHOT}
    yield from _within(by_label, len(learned))
    by_dataset = _split((one for own in learned.values() for one in own), lambda one: one.dataset)
    for name in EQUAL:
        yield from dict.fromkeys(
            note
            for own in by_dataset.values()
            for note in _differing(
                f"rows differ in {name}", {one.label: one.config.get(name) for one in own}
            )
        )
    searched = {label: _rate(own[0].config.get("learning_rate")) for label, own in learned.items()}
    yield from _differing("learning rates were found in different ways", searched)
    yield from _images(results)
    yield from _absent(by_label)
    prints = {one.label: one.backbone.get("fingerprint") for one in results}
    yield from _differing("backbones differ", prints)
    versions = {f"{one.label}, {one.dataset}, {one.seed}": dict(one.environment) for one in results}
    yield from _versions(versions)


def _rate(value: object) -> str:
    return "searched on validation images" if value == "auto" else "set beforehand"


def _within(by_label: Mapping[str, Sequence[Result]], learned: int) -> Iterator[str]:
    """Yield settings that vary between the datasets or seeds of a row, once for similar rows."""
    found: dict[str, list[str]] = {}
    for label, group in by_label.items():
        for difference in _changing(group):
            found.setdefault(difference, []).append(label)
    for difference, labels in found.items():
        rows = "all rows" if 1 < learned <= len(labels) else "; ".join(labels)
        yield f"runs of {rows} differ in {difference}"


def _changing(results: Sequence[Result]) -> Iterator[str]:
    free = (*FREE, *WORDS) if results[0].method == ZERO_SHOT else FREE
    runs = [_run(one, results) for one in results]
    for name in dict.fromkeys(name for one in results for name in one.config):
        if name in free:
            continue
        values = {run: one.config.get(name) for run, one in zip(runs, results, strict=True)}
        yield from _differing(name, values)


def _run(one: Result, results: Sequence[Result]) -> str:
    """Name a run by its dataset, and by its seed if its settings depend on the seed."""
    configs = [other.config for other in results if other.dataset == one.dataset]
    same = all({**config, "seed": 0} == {**one.config, "seed": 0} for config in configs)
    return one.dataset if same else f"{one.dataset}, seed {one.seed}"


def _images(results: Sequence[Result]) -> Iterator[str]:
    """Yield test sets of one name that differ in size, so they cannot be the same images."""
    by_set: dict[tuple[str, str], dict[str, object]] = {}
    for one in results:
        for name, count in one.images.items():
            if name in one.accuracy:
                key = (one.dataset, name)
                by_set.setdefault(key, {})[f"{one.label}, seed {one.seed}"] = count
    for (dataset, name), counts in by_set.items():
        yield from _differing(f"{dataset}: the images of {name!r} differ in number", counts)


def _absent(by_label: Mapping[str, Sequence[Result]]) -> Iterator[str]:
    """Yield runs that only some rows have; zero-shot rows need no seeds."""
    datasets = {one.dataset for own in by_label.values() for one in own}
    for label, own in by_label.items():
        absent = [name for name in datasets if name not in {one.dataset for one in own}]
        if absent:
            yield f"{label} has no results for {', '.join(sorted(absent))}"
    learned = [one for own in by_label.values() for one in own if one.method != ZERO_SHOT]
    seeds = {one.seed for one in learned}
    for (label, dataset), own_runs in _split(learned, lambda one: (one.label, one.dataset)).items():
        absent_seeds = sorted(seeds - {one.seed for one in own_runs})
        if absent_seeds:
            yield f"{label} has no seed {', '.join(map(str, absent_seeds))} of {dataset}"


def _versions(environments: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    names = dict.fromkeys(name for one in environments.values() for name in one)
    for name in names:
        values = {run: one.get(name) for run, one in environments.items()}
        yield from _differing(f"runs were made with different {name}", values)


def _differing(what: str, values: Mapping[str, object]) -> Iterator[str]:
    """Yield one sentence that lists the values and their owners if the values differ."""
    owners: dict[str, list[str]] = {}
    for owner, value in values.items():
        owners.setdefault(str(value), []).append(owner)
    if len(owners) > 1:
        listed = "; ".join(f"{value} ({_some(names)})" for value, names in owners.items())
        yield f"{what}: {listed}"


def _some(names: Sequence[str], most: int = 3) -> str:
    shown = "; ".join(names[:most]) if any("," in n for n in names) else ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _split(results: Iterable[Result], key: Callable[[Result], Any]) -> dict[Any, list[Result]]:
    found: dict[Any, list[Result]] = {}
    for one in results:
        found.setdefault(key(one), []).append(one)
    return found
