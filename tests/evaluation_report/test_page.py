"""The page about a task: figures counted by hand, names as text, nothing from elsewhere."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prompt_serve.evaluation_report.facts import EvaluationFacts
from prompt_serve.evaluation_report.page import evaluation_html, write_evaluation_report
from tests.drawings import draw_image
from tests.parsed_page import Element, Page

ROSE, TULIP, EMPTY = "<b>rose</b>", 'tulip & "co"', "empty"
PROBABILITIES = (
    (0.91, 0.05, 0.04),
    (0.81, 0.10, 0.09),
    (0.28, 0.62, 0.10),  # wrong
    (0.10, 0.85, 0.05),  # wrong
    (0.20, 0.72, 0.08),
    (0.03, 0.95, 0.02),  # unlike the training images
    (0.55, 0.35, 0.10),  # wrong
    (0.10, 0.51, 0.39),
)


@pytest.fixture
def facts(tmp_path: Path) -> EvaluationFacts:
    """Eight images of two classes; a third class has none. The file of image 6 is gone."""
    paths = [tmp_path / f"image-{n}<i>.png" for n in range(8)]
    for n, path in enumerate(paths):
        if n != 6:
            draw_image(path, (200, 20 * n, 40), n)
    return EvaluationFacts(
        task="<script>alert(1)</script>",
        method="coop",
        backbone="tiny",
        part="test",
        class_names=(ROSE, TULIP, EMPTY),
        labels=np.array([0, 0, 0, 0, 1, 1, 1, 1]),
        logits=(2 * np.log(PROBABILITIES)).astype(np.float32),
        paths=paths,
        payload_bytes=1_234,
        file_bytes=2_345,
        temperature=2.0,
        unknown_below=0.58,
        similarities=np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.1, 0.4, 0.3], dtype=np.float32),
        unlike_below=0.2,
        zero_shot_accuracy=0.5,
        notes=["Class <u>empty</u> is never predicted."],
        left_out=["3 images of part val."],
    )


def by_class(page: Page, tag: str, name: str) -> list[Element]:
    return [one for one in page.all(tag) if name in one.attributes.get("class", "").split()]


def test_the_summary_has_the_figures_counted_by_hand(facts: EvaluationFacts) -> None:
    page = Page(evaluation_html(facts))
    cards = {re.split(r"\d", card.text)[0]: card for card in by_class(page, "div", "card")}
    assert list(cards) == ["accuracy", "zero-shot accuracy", "calibration error", "unknown"]
    values = {name: float(card.data[0]) for name, card in cards.items()}
    assert values["accuracy"] == 5 / 8
    assert values["zero-shot accuracy"] == 0.5
    # Bins of 1/15: 0.81 and 0.85 share one, with one right; each other image stands alone.
    gaps = 2 * abs(0.83 - 0.5) + 0.09 + 0.62 + 0.28 + 0.05 + 0.55 + 0.49
    assert values["calibration error"] == pytest.approx(gaps / 8, abs=1e-6)
    assert values["unknown"] == 3 / 8  # 0.55, 0.51 and the one that is unlike the others
    assert "62.5 %95 % interval 30.6 to 86.3" in cards["accuracy"].text
    assert "95 % interval 21.5 to 78.5" in cards["zero-shot accuracy"].text
    assert "accuracy of the others 60.0 %" in cards["unknown"].text
    properties = dict(
        zip([one.text for one in page.all("dt")], [one.text for one in page.all("dd")], strict=True)
    )
    assert properties["method"] == "coop"
    assert properties["backbone"] == "tiny"
    assert properties["size"] == "1,234 learned bytes, file 2,345 bytes"
    assert properties["images"] == "8 of part test"
    assert properties["temperature"] == "2"
    assert properties["unknown if"] == "largest probability below 0.58 or similarity below 0.200"
    assert [one.text for one in by_class(page, "ul", "notes")] == [
        "Class <u>empty</u> is never predicted."
    ]


def test_classes_and_confusions_are_counted(facts: EvaluationFacts) -> None:
    page = Page(evaluation_html(facts))
    classes = page.table("Classes, the lowest recall first")
    assert list(classes) == [ROSE, TULIP, EMPTY]
    assert classes[ROSE] == ["0.5", repr(2 / 3), "4", "3", f"{TULIP} (2)"]
    assert classes[TULIP] == ["0.75", "0.6", "4", "5", f"{ROSE} (1)"]
    assert classes[EMPTY] == ["–", "–", "0", "0", ""]
    matrix = page.table("Confusion matrix")
    assert matrix == {ROSE: ["2", "2", ""], TULIP: ["1", "3", ""], EMPTY: ["", "", ""]}
    assert page.table("Most frequent confusions") == {
        ROSE: [TULIP, "2", "50.0"],
        TULIP: [ROSE, "1", "25.0"],
    }


def test_mistakes_are_shown_the_most_confident_first(facts: EvaluationFacts) -> None:
    page = Page(evaluation_html(facts))
    mistakes = [one for one in page.all("li") if one.data]
    assert [float(one.data[0]) for one in mistakes] == pytest.approx([0.85, 0.62, 0.55], abs=1e-6)
    first, second, third = (one.text for one in mistakes)
    assert first == f"predicted {TULIP}, 85.0\N{NO-BREAK SPACE}%true class {ROSE}image-3<i>.png"
    assert "image-2<i>.png" in second
    assert "answered with unknown" not in second
    assert "answered with unknown" in third
    assert "the image file is not there" in third
    assert [one.attributes["alt"] for one in page.all("img")] == [f"{ROSE}, predicted {TULIP}"] * 2


def test_accuracy_and_coverage_by_threshold(facts: EvaluationFacts) -> None:
    page = Page(evaluation_html(facts))
    rows = page.table("Accuracy by threshold")
    found = {at: (row[0], row[1], row[2]) for at, row in rows.items()}
    assert found["0"] == ("7", repr(7 / 8), repr(4 / 7))
    assert found["0.58 (the file’s)"] == ("5", repr(5 / 8), repr(3 / 5))
    assert found["0.7"] == ("4", repr(4 / 8), repr(3 / 4))
    assert found["0.8"] == ("3", repr(3 / 8), repr(2 / 3))
    assert found["0.9"] == ("1", repr(1 / 8), "1.0")
    assert found["0.99"] == ("0", "0.0", "–")
    # The chart has the same shares: 101 thresholds, from 46 to 340 across and 234 to 10 up.
    (answered,) = by_class(page, "polyline", "answered")
    points = [tuple(map(float, p.split(","))) for p in answered.attributes["points"].split()]
    assert len(points) == 101
    assert points[0] == pytest.approx((46, 234 - 224 * 7 / 8), abs=0.06)
    assert points[70] == pytest.approx((46 + 0.7 * 294, 234 - 224 * 4 / 8), abs=0.06)
    assert points[99] == pytest.approx((46 + 0.99 * 294, 234), abs=0.06)


def test_the_bins_and_bars_of_calibration(facts: EvaluationFacts) -> None:
    page = Page(evaluation_html(facts))
    rows = page.table("Bins of confidence")
    assert next(iter(rows)) == "46.7 to 53.3"
    images, confidence, accuracy = rows["80.0 to 86.7"]
    assert (images, float(accuracy)) == ("2", 0.5)
    assert float(confidence) == pytest.approx(0.83, abs=1e-6)
    bars = by_class(page, "rect", "bar")
    assert len(bars) == len(rows) == 7
    assert all("pale" in bar.attributes["class"] for bar in bars)  # fewer than 10 images each
    heights = [float(bar.attributes["height"]) for bar in bars]
    assert heights == [224, 0, 0, 224, 112, 224, 224]  # 0.51, 0.55, 0.62, 0.72, two, 0.91, 0.95


def test_data_says_what_was_left_out(facts: EvaluationFacts) -> None:
    def data(facts: EvaluationFacts) -> str:
        page = Page(evaluation_html(facts))
        return next(one for one in page.all("section") if one.attributes["id"] == "data").text

    text = data(facts)
    assert "Evaluated: 8 images of part test." in text
    assert "Classes without images: empty." in text
    assert "Left out: 3 images of part val." in text
    assert "Left out: nothing." in data(replace(facts, left_out=()))
    assert "Left out: not known." in data(replace(facts, left_out=None))


def test_the_page_is_self_contained_and_names_are_text(facts: EvaluationFacts) -> None:
    html = evaluation_html(facts)
    page = Page(html)  # complains where tags do not match
    assert "<script" not in html
    assert "<b>rose" not in html
    assert page.all("h1")[0].text == "<script>alert(1)</script>: evaluation"
    assert not re.search(r"https?:|url\(|@import", html)
    ids = {one.attributes["id"] for one in page.elements if "id" in one.attributes}
    for one in page.elements:
        assert one.tag not in ("script", "iframe", "object", "embed", "link", "base", "use")
        for name, value in one.attributes.items():
            assert not name.startswith("on")
            if name == "src":
                assert value.startswith("data:image/jpeg;base64,")
            elif name == "href":
                assert value[0] == "#"
                assert value[1:] in ids
    assert all(one.attributes["aria-label"] for one in page.all("svg"))
    assert "prefers-color-scheme: dark" in html


def test_many_classes_give_confusions_without_a_matrix(facts: EvaluationFacts) -> None:
    names = tuple(f"class {n}" for n in range(600))
    logits = np.full((8, 600), -20, dtype=np.float32)
    logits[:, :3] = facts.logits
    page = Page(evaluation_html(replace(facts, class_names=names, logits=logits)))
    captions = [one.text for one in page.all("caption")]
    assert "Confusion matrix" not in captions
    assert page.table("Most frequent confusions")["class 0"] == ["class 1", "2", "50.0"]
    assert len(page.table("Classes, the lowest recall first")) == 500
    assert "100 classes" in page.all("body")[0].text


def test_without_mistakes_thresholds_and_zero_shot(facts: EvaluationFacts) -> None:
    one = replace(
        facts,
        labels=facts.predicted,
        unknown_below=0.0,
        similarities=None,
        zero_shot_accuracy=None,
    )
    page = Page(evaluation_html(one))
    text = page.all("body")[0].text
    assert text.count("Every image was classified correctly.") == 2
    assert "zero-shot" not in text
    assert "unlike the training images" not in text
    assert len(by_class(page, "div", "card")) == 2


def test_the_file_is_replaced_as_a_whole(facts: EvaluationFacts, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "report.html"
    size = write_evaluation_report(path, replace(facts, class_names=("a\ud800", "b\x00", "c")))
    first = path.read_bytes()
    assert size == len(first)
    assert "a\N{REPLACEMENT CHARACTER}" in first.decode()
    with path.open("rb") as before:
        write_evaluation_report(path, facts)
        assert before.read() == first  # a reader keeps the old page
    assert path.read_text() == evaluation_html(facts)
    assert [one.name for one in path.parent.iterdir()] == ["report.html"]


def test_facts_that_do_not_match_are_refused(facts: EvaluationFacts) -> None:
    with pytest.raises(ValueError, match=r"logits of shape \(8, 3\), 7 labels"):
        replace(facts, labels=facts.labels[:7])
