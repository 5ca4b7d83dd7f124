"""Sections of the page: summary, classes, confusions, mistakes, threshold, calibration, data."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import NamedTuple

from prompt_serve.calibration import BINS, confidence_bins
from prompt_serve.errors import counted
from prompt_serve.evaluation_report.charts import FEW, coverage_chart, reliability_diagram
from prompt_serve.evaluation_report.facts import EvaluationFacts
from prompt_serve.evaluation_report.markup import (
    Markup,
    joined,
    number,
    percent,
    shortened,
    table,
    tag,
)
from prompt_serve.evaluation_report.thumbnails import thumbnail
from prompt_serve.measures import (
    Answered,
    ClassCounts,
    answered_at,
    class_counts,
    confident_mistakes,
    confusion_matrix,
    confusions,
    wilson_interval,
)

MATRIX_CLASSES = 40  # a larger confusion matrix cannot be read
NARROW_CLASSES = 12  # a smaller matrix leaves room beside it
LISTED_CLASSES = 500
LISTED_CONFUSIONS = 20
SHOWN_MISTAKES = 24
THRESHOLDS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)  # in the table
_STEPS = 100  # thresholds of the chart
_SHORT = 20  # characters of a class name in the matrix
_RIGHT, _WRONG = "57 135 216", "226 106 50"  # red, green and blue of shaded cells


class Section(NamedTuple):
    """A heading and what follows it."""

    anchor: str
    title: str
    content: Markup


def sections(facts: EvaluationFacts) -> list[Section]:
    """Return all sections, the summary first."""
    counts = class_counts(facts.labels, facts.predicted, len(facts.class_names))
    return [
        Section("summary", "Summary", _summary(facts)),
        Section("classes", "Classes", _classes(facts, counts)),
        Section("confusions", "Confusions", _confusions(facts, counts)),
        Section("mistakes", "Most confident mistakes", _mistakes(facts)),
        Section("threshold", "Threshold for unknown images", _threshold(facts)),
        Section("calibration", "Calibration", _calibration(facts)),
        Section("data", "Data", _data(facts, counts)),
    ]


def _summary(facts: EvaluationFacts) -> Markup:
    accuracy = float(facts.right.mean())
    cards = [_card("accuracy", accuracy, _interval(int(facts.right.sum()), facts.images))]
    if facts.zero_shot_accuracy is not None:
        right = round(facts.zero_shot_accuracy * facts.images)
        interval = _interval(right, facts.images)
        cards.append(_card("zero-shot accuracy", facts.zero_shot_accuracy, interval))
    cards.append(
        _card("calibration error", facts.calibration_error, "gap between confidence and accuracy")
    )
    if facts.unknown_below or facts.similarities is not None:
        known = facts.right[~facts.unknown]
        of_known = f"accuracy of the others {percent(known.mean())} %" if len(known) else ""
        cards.append(_card("unknown", float(facts.unknown.mean()), of_known))
    size = f"{facts.payload_bytes:,} learned bytes"
    if facts.file_bytes is not None:
        size += f", file {facts.file_bytes:,} bytes"
    thresholds = [f"largest probability below {facts.unknown_below:.3g}"] * bool(
        facts.unknown_below
    ) + [f"similarity below {facts.unlike_below:.3f}"] * (facts.similarities is not None)
    properties = {
        "task": facts.task,
        "method": facts.method,
        "size": size,
        "backbone": facts.backbone,
        "images": f"{facts.images:,} of part {facts.part}",
        "classes": f"{len(facts.class_names):,}",
        "temperature": f"{facts.temperature:.3g}",
        "unknown if": " or ".join(thresholds) or "never",
    }
    entries = [joined(tag("dt", name), tag("dd", text)) for name, text in properties.items()]
    notes = tag("ul", *(tag("li", note) for note in facts.notes), class_="notes")
    return joined(
        tag("div", *cards, class_="cards"), notes if facts.notes else None, tag("dl", *entries)
    )


def _classes(facts: EvaluationFacts, counts: Sequence[ClassCounts]) -> Markup:
    first: dict[int, str] = {}
    for true, other, images in confusions(facts.labels, facts.predicted):
        first.setdefault(true, f"{facts.class_names[other]} ({images:,})")
    # The worst first; classes without images last.
    order = sorted(
        range(len(counts)),
        key=lambda c: (
            counts[c].recall is None,
            counts[c].recall or 0.0,
            counts[c].precision or 0.0,
        ),
    )
    rows = [
        [
            facts.class_names[c],
            _share_cell(counts[c].recall),
            _share_cell(counts[c].precision),
            f"{counts[c].images:,}",
            f"{counts[c].predicted:,}",
            _words(first.get(c, "")),
        ]
        for c in order[:LISTED_CLASSES]
    ]
    hidden = len(counts) - LISTED_CLASSES
    return table(
        "Classes, the lowest recall first",
        [
            "class",
            "recall (%)",
            "precision (%)",
            "images",
            "predicted",
            _words("most often mistaken for", "th"),
        ],
        rows,
        note="Recall: share of the images of the class that are recognized. Precision: share of "
        "the predictions of the class that are right."
        + (f" {hidden:,} classes with higher recall are not listed." if hidden > 0 else ""),
    )


def _confusions(facts: EvaluationFacts, counts: Sequence[ClassCounts]) -> Markup:
    pairs = confusions(facts.labels, facts.predicted)
    if not pairs:
        return tag("p", "Every image was classified correctly.")
    names = facts.class_names
    frequent = table(
        "Most frequent confusions",
        ["class", _words("predicted", "th"), "images", "of the class (%)"],
        [
            [
                names[true],
                _words(names[other]),
                f"{images:,}",
                percent(images / counts[true].images),
            ]
            for true, other, images in pairs[:LISTED_CONFUSIONS]
        ],
        note=f"{LISTED_CONFUSIONS} of {len(pairs):,} pairs of classes."
        if len(pairs) > LISTED_CONFUSIONS
        else None,
    )
    if len(names) > MATRIX_CLASSES:
        return frequent
    beside = "beside" if len(names) <= NARROW_CLASSES else None
    return tag("div", tag("div", _matrix(facts)), tag("div", frequent), class_=beside)


def _matrix(facts: EvaluationFacts) -> Markup:
    names = facts.class_names
    matrix = confusion_matrix(facts.labels, facts.predicted, len(names))
    rows = []
    for true, row in enumerate(matrix.tolist()):
        cells = [
            _shaded(
                count,
                count / sum(row) if count else 0.0,
                _RIGHT if other == true else _WRONG,
                f"{names[true]} predicted as {names[other]}: {count:,}",
            )
            for other, count in enumerate(row)
        ]
        name = shortened(names[true], _SHORT)
        rows.append([tag("th", name, scope="row", title=names[true]), *cells])
    head = [
        tag("th", tag("span", shortened(name, _SHORT)), scope="col", title=name) for name in names
    ]
    return table(
        "Confusion matrix",
        ["true class", *head],
        rows,
        note="Images by true class (row) and predicted class (column). Blue is right, orange is "
        "wrong; the stronger the color, the larger the share of the class.",
        class_="matrix dense" if len(names) > 2 * NARROW_CLASSES else "matrix",
    )


def _mistakes(facts: EvaluationFacts) -> Markup:
    order = confident_mistakes(facts.labels, facts.predicted, facts.confidence)
    if not order:
        return tag("p", "Every image was classified correctly.")
    shown = order[:SHOWN_MISTAKES]
    which = "" if len(shown) == len(order) else f"The first {len(shown)} of "
    return joined(
        tag("p", f"{which}{counted(len(order), 'misclassified image')}, the most confident first.",
            class_="note"),
        tag("ul", *(_mistake(facts, image) for image in shown), class_="mistakes"),
    )  # fmt: skip


def _mistake(facts: EvaluationFacts, image: int) -> Markup:
    true = facts.class_names[facts.labels[image]]
    predicted = facts.class_names[facts.predicted[image]]
    confidence = float(facts.confidence[image])
    picture = thumbnail(facts.paths[image])
    name = facts.paths[image].name if facts.names is None else PurePath(facts.names[image]).name
    return tag(
        "li",
        tag("img", src=picture.source, alt=f"{true}, predicted {predicted}")
        if picture.source
        else tag("div", picture.fault, class_="nothing"),
        tag("div", "predicted ", tag("b", predicted), ", ",
            number(confidence, f"{percent(confidence)}\N{NO-BREAK SPACE}%")),
        tag("div", "true class ", tag("b", true)),
        tag("small", "answered with unknown") if facts.unknown[image] else None,
        tag("small", shortened(name, 60)),
    )  # fmt: skip


def _threshold(facts: EvaluationFacts) -> Markup:
    own = facts.unknown_below
    steps = [_answered(facts, step / _STEPS) for step in range(_STEPS + 1)]
    rows = [
        _answered_row(point, facts.images, own=own > 0 and point.threshold == own)
        for point in (_answered(facts, at) for at in sorted({*THRESHOLDS, own}))
    ]
    half = _answered(facts, 0.5)
    chart = coverage_chart(
        steps, facts.images, own,
        alt="accuracy on the answered images and their share, by threshold; at 50 %: "
        f"{percent(half.accuracy)} % accuracy, {percent(half.images / facts.images)} % answered",
    )  # fmt: skip
    unlike = int(facts.unlike.sum())
    sketch = (
        f" {counted(unlike, 'image')} {'is' if unlike == 1 else 'are'} unlike the training images "
        "and unknown at every threshold."
        if facts.similarities is not None
        else ""
    )
    mark = f" The dotted line is the threshold of the file, {own:.3g}." if own else ""
    caption = tag(
        "figcaption",
        tag("div", "— accuracy on the answered images", class_="key accuracy"),
        tag("div", "– – share of images answered", class_="key answered"),
        f"Accuracy on fewer than {FEW} images is not drawn.{mark}",
    )
    headers = ["threshold", "answered", "share (%)", "accuracy (%)", "95 % interval"]
    return joined(
        tag("p", "An image is answered with unknown if its largest probability is below the "
            f"threshold (unknown_below).{sketch}"),
        tag("div",
            tag("figure", chart, caption),
            tag("div", table("Accuracy by threshold", headers, rows)),
            class_="beside"),
    )  # fmt: skip


def _answered(facts: EvaluationFacts, threshold: float) -> Answered:
    return answered_at(threshold, facts.confidence, facts.right, facts.unlike)


def _answered_row(point: Answered, images: int, *, own: bool) -> list[str]:
    share, accuracy = point.images / images, point.accuracy
    return [
        f"{point.threshold:.3g}{' (the file’s)' if own else ''}",
        f"{point.images:,}",
        number(share, percent(share)),
        "–" if accuracy is None else number(accuracy, percent(accuracy)),
        "–" if accuracy is None else _interval(point.right, point.images, words=False),
    ]


def _calibration(facts: EvaluationFacts) -> Markup:
    bins = confidence_bins(facts.confidence, facts.right)
    error = percent(facts.calibration_error)
    rows = [
        [
            f"{percent(index / BINS)} to {percent((index + 1) / BINS)}",
            f"{one.images:,}",
            number(one.confidence, percent(one.confidence)),
            number(one.accuracy, percent(one.accuracy)),
        ]
        for index, one in enumerate(bins)
        if one
    ]
    bins_table = table(
        "Bins of confidence",
        ["confidence (%)", "images", "mean (%)", "accuracy (%)"],
        rows,
    )
    diagram = reliability_diagram(
        bins, alt=f"accuracy by confidence; expected calibration error {error} %"
    )
    caption = (
        f"Accuracy in {BINS} equal bins of confidence, the probability of the predicted class. On "
        "the dotted diagonal, confidence equals accuracy; a bar below it is overconfident. Pale "
        f"bars hold fewer than {FEW} images; the thin line is the share of images in each bin. "
        f"Expected calibration error: {error} %."
    )
    return tag(
        "div",
        tag("figure", diagram, tag("figcaption", caption)),
        tag("div", bins_table),
        class_="beside",
    )


def _data(facts: EvaluationFacts, counts: Sequence[ClassCounts]) -> Markup:
    lines = [f"Evaluated: {facts.images:,} images of part {facts.part}."]
    empty = [name for name, own in zip(facts.class_names, counts, strict=True) if not own.images]
    if empty:
        named = ", ".join(empty[:20]) + (", ..." if len(empty) > 20 else "")
        lines.append(f"Classes without images: {named}.")
    if facts.left_out is None:
        lines.append("Left out: not known.")
    else:
        lines += [f"Left out: {line}" for line in facts.left_out or ("nothing.",)]
    return tag("ul", *(tag("li", line) for line in lines))


def _card(name: str, share: float, detail: str) -> Markup:
    value = tag("strong", number(share, f"{percent(share)} %"))
    return tag("div", name, value, detail, class_="card")


def _interval(right: int, images: int, *, words: bool = True) -> str:
    low, high = wilson_interval(right, images)
    return f"{'95 % interval ' if words else ''}{percent(low)} to {percent(high)}"


def _words(text: str, name: str = "td") -> Markup:
    return tag(name, text, scope="col" if name == "th" else None, class_="words")


def _share_cell(share: float | None) -> Markup:
    if share is None:
        return tag("td", "–", class_="share")
    end = f"{100 * share:.1f}%"
    bar = f"background: linear-gradient(90deg, rgb({_RIGHT} / 30%) {end}, transparent {end})"
    return tag("td", number(share, percent(share)), class_="share", style=bar)


def _shaded(count: int, share: float, color: str, title: str) -> Markup:
    """Return a cell of the matrix; text stays readable on its color in light and dark mode."""
    style = f"background: rgb({color} / {15 + round(55 * share)}%)" if count else None
    return tag("td", f"{count:,}" if count else "", title=title, style=style)
