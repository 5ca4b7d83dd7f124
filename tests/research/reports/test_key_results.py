"""The summary of a page: its table, and the claims that the runs cannot test."""

from typing import Any

from prompt_serve.research.protocols.summary import FEW_SHOT, summarize
from prompt_serve.research.reports.key_results import limitations, summary_section
from prompt_serve.research.reports.page import Cell, ReportTable
from tests.research.protocols.made_up import base_new, made_up

SHORT: dict[str, Any] = {"epochs": 25, "batch_size": 8, "recluster_interval": 50}


def test_the_table_has_the_best_learned_row_and_its_gain_over_zero_shot() -> None:
    results = [
        base_new("pets", "CLIP", 1, 0.5, 0.5, method="zero-shot"),
        base_new("pets", "CoOp", 1, 0.8, 0.4),
        base_new("pets", "DIP", 1, 0.6, 0.6),
    ]
    table, *_ = summary_section([], summarize(results)).blocks
    assert isinstance(table, ReportTable)
    ((protocol, backbone, shots, reference, label, best, better, measure),) = table.rows
    assert (protocol, backbone, shots, label) == ("base to new", "vit", "16", "DIP")
    assert measure == "H, one dataset"
    assert isinstance(reference, Cell)
    assert isinstance(best, Cell)
    assert (reference.text, best.text, best.detail) == ("50.0", "60.0", "+10.0")
    assert better == "2 of 2 rows"


def test_pooled_methods_do_not_test_the_claim_on_density() -> None:
    one = base_new("pets", "CoOp", 1, 0.8, 0.6, idk=(0.4, 1.0))
    other = base_new("pets", "DIP", 1, 0.8, 0.6, idk=(0.9, 1.0))
    (text,) = limitations([one, other])
    assert "the paper follows one run over training" in text
    assert limitations([one]) == []


def test_short_runs_do_not_test_quantization_during_training() -> None:
    rows = [
        base_new("pets", label, 1, 0.8, 0.6, config={**SHORT, "bits": 1, "quantization": kind})
        for label, kind in (("QCoOp", "qat"), ("CoOp, afterwards", "ptq"))
    ]
    (text,) = limitations(rows)
    # 16 images, 8 per step, 25 epochs.
    assert "trained for 50 steps with 1 checks of the codebook" in text
    assert limitations(rows[:1]) == []


def test_short_runs_do_not_test_adapt() -> None:
    row = made_up(
        "pets", "ADAPT", 1, {"test": 0.5}, protocol=FEW_SHOT, method="adapt", config=SHORT
    )
    (text,) = limitations([row])
    assert "trained for 50 steps; the paper trains for 100 epochs" in text
