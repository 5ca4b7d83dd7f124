"""What keeps rows of one table from being held against each other."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from prompt_serve.research.protocols.results import Result
from prompt_serve.research.protocols.summary import comparison_of, latest

# What may differ between the runs of one row: each draws with its own seed.
FREE = ("seed",)
# Of rows without learning, the sentence is the dataset's own.
WORDS = ("template", "templates")
ZERO_SHOT = "zero-shot"
# What a table of methods has to hold equal between its rows.
EQUAL = ("epochs", "batch_size", "views", "template", "precision", "momentum", "weight_decay")


def fairness_notes(results: Iterable[Result]) -> tuple[str, ...]:
    """Sentences on what should be equal and is not; none where all is.

    Looked at are: the settings of one row over datasets and seeds; what a table holds equal between
    rows (epochs, batches, views, ...); how learning rates were found; the count of images; which
    datasets and seeds each row has; backbone and versions.
    """
    groups: dict[tuple[tuple[str, str, str], int], list[Result]] = {}
    for one in latest(results):
        groups.setdefault((comparison_of(one), one.shots), []).append(one)
    notes: dict[str, None] = {}
    for ((protocol, _, _), shots), own in groups.items():
        where = f"{protocol}, {shots} shots" if shots else f"{protocol}, all images"
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
    yield from _differing("the backbone is not the same", prints)
    versions = {f"{one.label}, {one.dataset}, {one.seed}": dict(one.environment) for one in results}
    yield from _versions(versions)


def _rate(value: object) -> str:
    return "searched on validation images" if value == "auto" else "set beforehand"


def _within(by_label: Mapping[str, Sequence[Result]], learned: int) -> Iterator[str]:
    """Settings that change between the datasets or seeds of a row; said once for rows alike."""
    found: dict[str, list[str]] = {}
    for label, own in by_label.items():
        for told in _changing(own):
            found.setdefault(told, []).append(label)
    for told, labels in found.items():
        rows = "all rows" if 1 < learned <= len(labels) else "; ".join(labels)
        yield f"runs of {rows} differ in {told}"


def _changing(results: Sequence[Result]) -> Iterator[str]:
    free = (*FREE, *WORDS) if results[0].method == ZERO_SHOT else FREE
    runs = [_run(one, results) for one in results]
    for name in dict.fromkeys(name for one in results for name in one.config):
        if name in free:
            continue
        values = {run: one.config.get(name) for run, one in zip(runs, results, strict=True)}
        yield from _differing(name, values)


def _run(one: Result, results: Sequence[Result]) -> str:
    """The dataset, and the seed where it is what differs."""
    alike = [other.config for other in results if other.dataset == one.dataset]
    same = all(
        {**config, "seed": 0} == {**one.config, "seed": 0} for config in alike
    )  # then the seed tells nothing
    return one.dataset if same else f"{one.dataset}, seed {one.seed}"


def _images(results: Sequence[Result]) -> Iterator[str]:
    """Test sets of one name that are not of one size: then they are not the same images."""
    by_set: dict[tuple[str, str], dict[str, object]] = {}
    for one in results:
        for name, count in one.images.items():
            if name in one.accuracy:
                key = (one.dataset, name)
                by_set.setdefault(key, {})[f"{one.label}, seed {one.seed}"] = count
    for (dataset, name), counts in by_set.items():
        yield from _differing(f"{dataset}: the images of {name!r} differ in number", counts)


def _absent(by_label: Mapping[str, Sequence[Result]]) -> Iterator[str]:
    """Runs that some rows have and others have not; what learns nothing needs no seeds."""
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
    """One sentence that says who has which value, where they are not one."""
    owners: dict[str, list[str]] = {}
    for owner, value in values.items():
        owners.setdefault(str(value), []).append(owner)
    if len(owners) > 1:
        told = "; ".join(f"{value} ({_some(names)})" for value, names in owners.items())
        yield f"{what}: {told}"


def _some(names: Sequence[str], most: int = 3) -> str:
    shown = "; ".join(names[:most]) if any("," in n for n in names) else ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _split(results: Iterable[Result], key: Callable[[Result], Any]) -> dict[Any, list[Result]]:
    found: dict[Any, list[Result]] = {}
    for one in results:
        found.setdefault(key(one), []).append(one)
    return found
