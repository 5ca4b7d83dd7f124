"""Differences between runs that should be equal are reported."""

from prompt_serve.research.protocols.fairness import fairness_notes
from tests.research.protocols.made_up import base_new


def test_equal_rows_give_no_notes() -> None:
    results = [
        base_new(dataset, label, seed, 0.9, 0.8)
        for label in ("CoOp", "DIP")
        for dataset in "ab"
        for seed in (1, 2)
    ]
    assert fairness_notes(results) == ()


def test_rows_that_learned_for_other_epochs() -> None:
    (note,) = fairness_notes(
        [
            base_new("a", "CoOp", 1, 0.9, 0.8, config={"seed": 1, "epochs": 200}),
            base_new("a", "DIP", 1, 0.9, 0.8, config={"seed": 1, "epochs": 50}),
        ]
    )
    assert note == "base-to-new, 16 shots: rows differ in epochs: 200 (CoOp); 50 (DIP)."


def test_a_row_whose_settings_change_between_datasets() -> None:
    (note,) = fairness_notes(
        [
            base_new("a", "CoOp", 1, 0.9, 0.8, config={"seed": 1, "epochs": 200, "n_ctx": 4}),
            base_new("b", "CoOp", 1, 0.9, 0.8, config={"seed": 1, "epochs": 200, "n_ctx": 16}),
        ]
    )
    assert "runs of CoOp differ in n_ctx: 4 (a); 16 (b)" in note


def test_what_changes_alike_in_all_rows_is_said_once() -> None:
    """A wide dataset that every row learns for fewer epochs, as ImageNet in the papers."""
    (note,) = fairness_notes(
        [
            base_new(name, label, seed, 0.9, 0.8, config={"seed": seed, "epochs": epochs})
            for label in ("CoOp", "DIP")
            for name, epochs in (("a", 25), ("b", 25), ("wide", 10))
            for seed in (1, 2)
        ]
    )
    assert note == "base-to-new, 16 shots: runs of all rows differ in epochs: 25 (a, b); 10 (wide)."


def test_a_seed_that_was_learned_otherwise() -> None:
    (note,) = fairness_notes(
        [
            base_new("a", "CoOp", seed, 0.9, 0.8, config={"seed": seed, "epochs": epochs})
            for seed, epochs in ((1, 25), (2, 10))
        ]
    )
    assert "runs of CoOp differ in epochs: 25 (a, seed 1); 10 (a, seed 2)" in note


def test_zero_shot_may_have_the_sentence_of_each_dataset() -> None:
    results = [
        base_new(name, "CLIP", 1, 0.9, 0.8, method="zero-shot", config={"template": f"{name} {{}}"})
        for name in "ab"
    ]
    assert fairness_notes(results) == ()


def test_a_searched_learning_rate_beside_a_set_one() -> None:
    (note,) = fairness_notes(
        [
            base_new("a", "CoOp", 1, 0.9, 0.8, config={"learning_rate": 0.002}),
            base_new("a", "DIP", 1, 0.9, 0.8, config={"learning_rate": "auto"}),
        ]
    )
    assert "set beforehand (CoOp); searched on validation images (DIP)" in note


def test_test_sets_of_other_sizes_and_absent_runs() -> None:
    notes = fairness_notes(
        [
            base_new("a", "CoOp", 1, 0.9, 0.8),
            base_new("a", "CoOp", 2, 0.9, 0.8),
            base_new("b", "CoOp", 1, 0.9, 0.8),
            base_new("b", "CoOp", 2, 0.9, 0.8),
            base_new("a", "DIP", 1, 0.9, 0.8, images=99),
        ]
    )
    assert any("a: the images of 'new' differ in number: 100 (CoOp" in note for note in notes)
    assert any("DIP has no results for b." in note for note in notes)
    assert any("DIP has no seed 2 of a." in note for note in notes)


def test_runs_of_other_versions() -> None:
    (note,) = fairness_notes(
        [
            base_new("a", "CoOp", 1, 0.9, 0.8, environment={"torch": "2.9"}),
            base_new("a", "DIP", 1, 0.9, 0.8, environment={"torch": "2.10"}),
        ]
    )
    assert "runs were made with different torch: 2.9 (CoOp, a, 1); 2.10 (DIP, a, 1)" in note
