"""Every number of the page against one computed another way."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from prompt_serve.calibration import calibration_error, expected_calibration_error
from prompt_serve.prompts.prompt_file import read_prompt_file
from prompt_serve.research.protocols.results import StoredPredictions
from prompt_serve.research.protocols.summary import summarize
from prompt_serve.research.reports.accuracy import accuracy_section, points
from prompt_serve.research.reports.context_lengths import mean_lengths
from prompt_serve.research.reports.curves import POINTS, Curve, mean_curve, thinned
from prompt_serve.research.reports.density import POOLED, WITHIN, RunPoint, correlations, spearman
from prompt_serve.research.reports.overview import notes
from prompt_serve.research.reports.page import Cell, ReportTable
from prompt_serve.research.reports.payload import frontier
from prompt_serve.research.reports.predictions import (
    confusion_matrix,
    confusions,
    reliability,
)
from prompt_serve.research.reports.stored_runs import (
    StoredRun,
    best_row,
    read_runs,
    without_repeated_prompts,
)
from prompt_serve.research.reports.thumbnails import most_confident_mistakes, typical
from prompt_serve.research.reports.weights import start_numbers, text_numbers
from prompt_serve.training.clip.backbone import load_backbone
from prompt_serve.training.config import make_config
from prompt_serve.training.results import draft_prompt
from tests.parsed_page import Page
from tests.research.reports.conftest import COOP, ROWS, SEEDS

Lines = list[dict[str, Any]]
WHERE = "base to new, suite user, backbone tiny, 4 shots"


@pytest.fixture(scope="module")
def runs(run_folder: Path) -> tuple[StoredRun, ...]:
    return read_runs([run_folder])


@pytest.fixture(scope="module")
def lines(run_folder: Path) -> Lines:
    return [json.loads(line) for line in (run_folder / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def parsed(page: str) -> Page:
    return Page(page)


def test_averages_and_h_are_those_of_the_lines(parsed: Page, lines: Lines) -> None:
    table = parsed.table(f"{WHERE}: averages")
    assert list(table) == list(ROWS)
    for label, (base, new, h, size, *_) in table.items():
        own = [line for line in lines if line["label"] == label]
        mean = {
            part: math.fsum(line["accuracy"][part] for line in own) / len(own)
            for part in ("base", "new")
        }
        assert float(base) == pytest.approx(mean["base"], abs=1e-12)
        assert float(new) == pytest.approx(mean["new"], abs=1e-12)
        # H of the averages, not the average of H.
        assert float(h) == pytest.approx(
            2 * mean["base"] * mean["new"] / (mean["base"] + mean["new"]), abs=1e-12
        )
        assert float(size) == pytest.approx(statistics.fmean(li["payload_bytes"] for li in own))


def test_each_dataset_has_its_mean_spread_and_difference_to_zero_shot(
    page: str, parsed: Page, lines: Lines
) -> None:
    table = parsed.table(f"{WHERE}: base classes")

    def of(label: str, dataset: str) -> list[float]:
        return [
            line["accuracy"]["base"]
            for line in lines
            if (line["label"], line["dataset"]) == (label, dataset)
        ]

    for label in ROWS:
        _, ink, oil = map(float, table[label])
        assert ink == pytest.approx(statistics.fmean(of(label, "ink")), abs=1e-12)
        assert oil == pytest.approx(statistics.fmean(of(label, "oil")), abs=1e-12)
    values = of(COOP, "oil")
    assert len(values) == len(SEEDS)
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    less = points(mean - statistics.fmean(of("zero-shot", "oil")))
    cell = f'<data value="{mean}">{100 * mean:.1f} ± {100 * spread:.1f}</data>'
    best = '<span class="hidden"> (best)</span>'
    shown = page[page.index(f"<caption>{WHERE}: base classes</caption>") :]
    row = next(row for row in shown.split("<tr>") if "CoOp &lt;img src=x&gt;</th>" in row)
    assert f"{cell}<small>{less}</small>" in row.replace(best, "")


def test_differences_have_a_sign_and_zero_has_none() -> None:
    assert [points(x) for x in (0.0123, -0.0123, 1e-9, -1e-9)] == ["+1.2", "−1.2", "0.0", "0.0"]


def test_the_best_of_a_column_is_learned_whole_and_largest(page: str, lines: Lines) -> None:
    rows = page[page.index(f"<caption>{WHERE}: averages</caption>") :]
    rows = rows[: rows.index("</table>")]
    (zero_shot,) = [row for row in rows.split("<tr>") if ">zero-shot<" in row]
    assert 'class="best"' not in zero_shot
    summary = summarize(run.result for run in read_runs_of(lines))[0]
    means = {label: summary.row("average", label).figures["H"].mean for label in ROWS}  # type: ignore[union-attr]  # they are there
    best = max(means[label] for label in ROWS if label != "zero-shot")
    assert f'class="best"><data value="{best}">' in rows


def test_a_row_without_a_target_is_held_back_in_the_average_alone(lines: Lines) -> None:
    transfer = []
    for line in lines:
        shares = {"source": 0.5, "near": 0.4, "far": 0.2 if line["seed"] == 1 else 0.3}
        if line["label"] == COOP:  # better than all others, where it was measured
            shares = {"source": 0.9, "near": 0.8}
        if line["dataset"] == "ink":
            transfer.append({**line, "protocol": "cross-dataset", "accuracy": shares})
    summaries = summarize(run.result for run in read_runs_of(transfer))
    (table,) = accuracy_section(summaries).blocks
    assert isinstance(table, ReportTable)
    assert list(table.headers) == ["", "ink (source)", "average of targets", "near", "far"]
    rows = {str(row[0]): [cell for cell in row[1:] if isinstance(cell, Cell)] for row in table.rows}
    source, average, near, far = rows[COOP]
    assert (source.text, source.best, source.detail) == ("90.0 ± 0.0", True, "+40.0")
    assert (near.best, far.missing) == (True, True)
    assert (average.text, average.best, average.detail) == ("80.0 ± 0.0", False, "without 1")
    assert [cell.text for cell in rows["QCoOp, 1 bit"]][1] == "32.5 ± 3.5"
    assert any("has no results for the targets far" in note for note in notes([], summaries))


def read_runs_of(lines: Lines) -> list[StoredRun]:
    from prompt_serve.research.protocols.results import Result

    return [
        StoredRun(result=Result(**{**line, "idk": tuple(line["idk"])}), folder=Path("nowhere"))
        for line in lines
    ]


def test_nothing_with_as_few_bytes_is_better_than_the_frontier(runs: tuple[StoredRun, ...]) -> None:
    summary = summarize(run.result for run in runs)[0]
    rows = [row for row in summary.rows if row.dataset == "average" and row.payload_bytes]
    leading = frontier(rows, "H")
    for row in rows:
        as_small = [r for r in rows if r.payload_bytes <= row.payload_bytes]
        best = max(r.figures["H"].mean for r in as_small)
        first = row.figures["H"].mean == best and not any(
            r.figures["H"].mean == best and r.payload_bytes < row.payload_bytes for r in as_small
        )
        assert (row in leading) == first


def test_curves_are_means_over_runs_at_the_epochs_that_all_have(
    runs: tuple[StoredRun, ...],
) -> None:
    own = [run for run in runs if run.result.label == COOP]
    curve = mean_curve(own, lambda record: record.loss)
    assert curve.epochs == (1, 2, 3, 4)
    for index in range(4):
        losses = {(run.result.dataset, run.result.seed): run.history[index].loss for run in own}
        assert curve.mean[index] == pytest.approx(statistics.fmean(losses.values()))
        by_seed = [(losses["ink", seed] + losses["oil", seed]) / 2 for seed in SEEDS]
        assert curve.spread[index] == pytest.approx(statistics.stdev(by_seed))
    # ADAPT is validated after the last epoch only.
    adapt = [run for run in runs if run.result.method == "adapt"]
    assert mean_curve(adapt, lambda record: record.val_accuracy).epochs == (4,)


def test_long_curves_keep_their_ends() -> None:
    long = tuple(range(1, 201))
    numbers = tuple(map(float, long))
    curve = thinned(Curve(epochs=long, mean=numbers, spread=numbers))
    assert len(curve.epochs) == POINTS
    assert (curve.epochs[0], curve.epochs[-1], curve.mean[-1]) == (1, 200, 200.0)


def dot(dataset: str, density: float, accuracy: float) -> RunPoint:
    return RunPoint(dataset=dataset, label="x", seed=1, density=density, accuracy=accuracy)


def test_rho_is_scipys_and_right_by_hand() -> None:
    # d = rank differences (0, 1, -1, 0, 0): rho = 1 - 6 * 2 / (5 * 24) = 0.9.
    pairs = [(0.1, 0.2), (0.2, 0.5), (0.3, 0.4), (0.4, 0.6), (0.5, 0.9)]
    found = spearman([dot("a", x, y) for x, y in pairs])
    assert found is not None
    assert found.rho == pytest.approx(0.9)
    assert found.p == spearmanr(*zip(*pairs, strict=True)).pvalue
    assert found.points == 5
    assert spearman([dot("a", 0.5, y) for y in (0.1, 0.2, 0.3, 0.4)]) is None
    assert spearman([dot("a", 0.1, 0.1), dot("a", 0.2, 0.2)]) is None


def test_differences_between_datasets_count_in_the_pooled_rho_alone() -> None:
    """Within either dataset more density means less accuracy; the harder one has less of both."""
    steps = [0.00, 0.01, 0.02, 0.03, 0.04]
    dots = [dot("hard", 0.2 + s, 0.3 - s) for s in steps]
    dots += [dot("easy", 0.7 + s, 0.8 - s) for s in steps]
    found = correlations(dots)
    assert {name: one and round(one.rho, 6) for name, one in found.items()} == {
        POOLED: pytest.approx(0.515152), WITHIN: -1.0, "hard": -1.0, "easy": -1.0
    }  # fmt: skip


def test_the_tables_rho_is_that_of_the_lines(parsed: Page, lines: Lines) -> None:
    table = parsed.table(
        "Spearman's ρ of ID_k and accuracy on new classes: base to new, suite user, backbone tiny"
    )
    learned = [line for line in lines if line["idk"]]
    x, y = [li["idk"][0] for li in learned], [li["accuracy"]["new"] for li in learned]
    count, rho, *_ = table[POOLED]
    assert count == str(len(learned))
    assert float(rho) == float(spearmanr(x, y).statistic)


@pytest.fixture
def predictions() -> StoredPredictions:
    """Six images of three classes."""
    predicted = np.array([[0, 1], [1, 0], [1, 2], [1, 0], [0, 2], [0, 1]])
    return StoredPredictions(
        paths=tuple(f"{n}.png" for n in range(6)),
        labels=np.array([0, 0, 1, 1, 2, 0]),
        probabilities=np.array(
            [[0.9, 0.1], [0.62, 0.3], [0.65, 0.2], [0.95, 0.0], [0.4, 0.3], [0.41, 0.4]],
            dtype=np.float32,
        ),
        predicted=predicted,
        class_names=("a", "b", "c"),
    )


def test_calibration_error_by_hand(predictions: StoredPredictions) -> None:
    # Bins of 1/15: 0.4 and 0.41 share one (one right), 0.62 and 0.65 one (one right), 0.9 and 0.95
    # stand alone (right).
    filled = [one for one in reliability(predictions) if one]
    assert [one.images for one in filled] == [2, 2, 1, 1]
    assert [one.accuracy for one in filled] == [0.5, 0.5, 1.0, 1.0]
    by_hand = (2 * (0.5 - 0.405) + 2 * (0.635 - 0.5) + 0.1 + 0.05) / 6
    assert calibration_error(reliability(predictions)) == pytest.approx(by_hand, abs=1e-6)


def test_calibration_error_is_that_of_the_line(runs: tuple[StoredRun, ...]) -> None:
    run = next(run for run in runs if run.result.label == COOP)
    found = calibration_error(reliability(run.predictions("base")))
    # The kept probabilities are float16: one may fall into the next bin.
    assert found == pytest.approx(run.result.calibration_error["base"], abs=2e-3)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, 7)) * 2
    whole = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = rng.integers(0, 7, 400)
    order = np.argsort(-whole, axis=1)[:, :2]
    kept = StoredPredictions(
        paths=("",) * 400,
        labels=labels,
        probabilities=np.take_along_axis(whole, order, axis=1).astype(np.float32),
        predicted=order,
        class_names=tuple("abcdefg"),
    )
    expected = expected_calibration_error(whole.astype(np.float32), labels)
    assert calibration_error(reliability(kept)) == pytest.approx(expected, abs=1e-6)


def test_confusions_count_images_by_class_and_answer(predictions: StoredPredictions) -> None:
    assert confusion_matrix(predictions).tolist() == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert confusions(predictions) == [(0, 1, 1), (2, 0, 1)]


def test_the_surest_mistakes_stand_beside_what_was_surely_recognized(
    predictions: StoredPredictions,
) -> None:
    assert most_confident_mistakes(predictions) == [1, 4]
    assert typical(predictions, 1) == 3  # 0.95 before 0.65
    assert typical(predictions, 2) == 4  # never recognized: any of it


def test_the_best_row_is_chosen_by_validation_alone(runs: tuple[StoredRun, ...]) -> None:
    validated = {
        label: [r.validation_accuracy for r in (run.result for run in runs) if r.label == label]
        for label in ROWS
    }
    assert validated.pop("zero-shot") == [None] * 4
    best = best_row(runs)
    assert best is not None
    assert sum(validated[best]) == max(map(sum, validated.values()))  # type: ignore[arg-type]  # all were validated


def test_lengths_end_at_those_of_the_prompt_files(runs: tuple[StoredRun, ...]) -> None:
    adapt = [run for run in runs if run.result.method == "adapt" and run.result.dataset == "ink"]
    assert len(adapt) == len(SEEDS)
    found = mean_lengths(adapt)
    assert found.epochs == (1, 2, 3, 4)
    for tower in ("text", "image"):
        kept = [
            getattr(read_prompt_file(run.folder / "prompt.safetensors"), tower) for run in adapt
        ]
        lengths = np.mean(
            [[0, 0] if one is None else one.lengths.astype(float) for one in kept], axis=0
        )
        assert list(found.towers[tower][-1]) == lengths.tolist()
    assert sum(sum(by_epoch[-1]) for by_epoch in found.towers.values()) == 8


def test_numbers_of_a_codebook_are_those_of_its_file(runs: tuple[StoredRun, ...]) -> None:
    run = next(run for run in runs if run.result.method == "qcoop")
    assert run.prompt is not None
    numbers = text_numbers(run.prompt)
    assert numbers is not None
    codebook = run.prompt.text.context.codebook  # type: ignore[union-attr]  # QCoOp has one
    assert set(numbers.tolist()) == set(codebook.astype(np.float32).tolist())
    # The random backbone is not part of the package: nobody knows its words.
    assert start_numbers(run.prompt) is None


def test_learning_starts_from_the_words_of_the_packages_backbone() -> None:
    backbone = load_backbone("embedded")
    config = make_config(method="zero-shot", template="a photo of a {}.")
    prompt = draft_prompt(backbone, ("cat", "dog"), config, None, "pets")
    words = start_numbers(prompt)
    assert words is not None
    ids = backbone.tokenizer.encode("a photo of a")
    expected = backbone.token_embedding[list(ids)].numpy()
    assert words.tolist() == expected.tolist()
    assert text_numbers(prompt) is None


def test_a_prompt_that_two_protocols_test_is_drawn_once(lines: Lines) -> None:
    transfer = [
        {**line, "protocol": protocol, "accuracy": {"source": 0.5, "t": 0.4}}
        for line in lines
        for protocol in ("cross-dataset", "domain-generalization")
    ]
    kept = without_repeated_prompts(read_runs_of(transfer))
    assert {run.result.protocol for run in kept} == {"cross-dataset"}
    assert len(kept) == len(lines)
