"""Selection by a byte budget: within it, by validation images, never by test images."""

from dataclasses import replace
from pathlib import Path

import pytest

from prompt_serve.errors import ConfigInvalid, DependencyMissing, PromptServeError
from prompt_serve.prompts.prompt_file import to_bytes
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import make_config
from prompt_serve.training.data.dataset import ImageSet, LabeledImage, Split
from prompt_serve.training.data.features import FeatureCache
from prompt_serve.training.data.loading import read_dataset
from prompt_serve.training.selection.by_validation import (
    Candidate,
    candidate_configs,
    mark_frontier,
    select_method,
)
from prompt_serve.training.selection.pareto import check_frontier_path, write_frontier
from prompt_serve.training.train import train_prompt, train_prompts

CONFIG = make_config(method="zero-shot", shots=4, epochs=3, views=1)
TRIED = [
    CONFIG.replace(method="dip", rank=1),
    CONFIG.replace(method="dip", rank=2),
    CONFIG.replace(method="coop", learning_rate=5.0),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    return FeatureCache(tmp_path_factory.mktemp("features"))


def with_test(split: Split, items: tuple[LabeledImage, ...]) -> Split:
    assert split.test is not None
    return replace(split, test=split.test.with_items(items))


def test_the_selected_prompt_fits_and_validates_best(
    tiny_backbone: Backbone, colors: Path, cache: FeatureCache
) -> None:
    split = read_dataset(colors)
    chosen = select_method(
        tiny_backbone, split, CONFIG, max_bytes=150, candidates=TRIED, cache=cache
    )
    rows = {row.label: row for row in chosen.candidates}
    # R (M + D) and M D numbers of two bytes, with M = 4 and D = 32.
    assert {label: row.size_bytes for label, row in rows.items()} == {
        "zero-shot": 0, "dip rank=1": 72, "dip rank=2": 144, "coop": 256,
    }  # fmt: skip
    assert rows["coop"].skipped == "larger than the budget"
    assert rows["coop"].val_accuracy is None
    measured = [row for row in chosen.candidates if not row.skipped]
    best = min(measured, key=lambda r: (-(r.val_accuracy or 0), r.val_loss or 0, r.size_bytes or 0))
    assert best.chosen
    assert [row.chosen for row in chosen.candidates].count(True) == 1
    result = chosen.result
    assert result.prompt.method == best.method
    assert result.prompt.payload_bytes == best.size_bytes
    assert result.comparisons["val"].prompt.accuracy == pytest.approx(best.val_accuracy)
    assert result.comparisons["test"].prompt.images == 40


def test_test_images_play_no_part(
    tiny_backbone: Backbone, colors: Path, cache: FeatureCache
) -> None:
    """Wrong labels change no selection; unreadable test images raise after it."""
    split = read_dataset(colors)
    assert isinstance(split.test, ImageSet)
    wrong = tuple(LabeledImage(item.path, (item.label + 1) % 4) for item in split.test.items)
    missing = (LabeledImage(Path("nowhere.png"), 0),)

    def rows(dataset: Split) -> tuple[tuple[Candidate, ...], bytes]:
        chosen = select_method(
            tiny_backbone, dataset, CONFIG, max_bytes=300, candidates=TRIED, cache=cache
        )
        same = [replace(row, seconds=0.0) for row in chosen.candidates]
        return tuple(same), to_bytes(replace(chosen.result.prompt, metrics={}))

    assert rows(split) == rows(with_test(split, wrong))
    seen: list[Candidate] = []
    with pytest.raises((PromptServeError, OSError)):
        select_method(
            tiny_backbone,
            with_test(split, missing),
            CONFIG,
            max_bytes=300,
            candidates=TRIED,
            cache=cache,
            on_candidate=seen.append,
        )
    assert len(seen) == 4


def test_a_budget_that_nothing_fits_gives_zero_shot(
    tiny_backbone: Backbone, colors: Path, cache: FeatureCache
) -> None:
    split = read_dataset(colors)
    chosen = select_method(
        tiny_backbone, split, CONFIG, max_bytes=10, candidates=TRIED, cache=cache
    )
    assert chosen.result.prompt.method == "zero-shot"
    assert chosen.result.prompt.payload_bytes == 0
    assert "the smallest candidate takes 72" in chosen.result.notes[-1]
    with pytest.raises(ConfigInvalid, match="max_bytes is -1"):
        select_method(tiny_backbone, split, CONFIG, max_bytes=-1)
    alone = Split(train=split.train.with_items(split.train.items[:4]))
    with pytest.raises(ConfigInvalid, match="there are none"):
        select_method(tiny_backbone, alone, CONFIG, max_bytes=10)


def test_the_frontier_is_what_nothing_smaller_matches(tmp_path: Path) -> None:
    sizes = [(0, 0.3), (100, 0.5), (200, 0.4), (100, 0.45), (300, 0.5), (400, 0.6)]
    rows = mark_frontier(
        [Candidate(method="coop", settings={}, size_bytes=b, val_accuracy=a) for b, a in sizes]
    )
    for row in rows:
        dominated = any(
            (other.size_bytes or 0) <= (row.size_bytes or 0)
            and (other.val_accuracy or 0) >= (row.val_accuracy or 0)
            and other != row
            for other in rows
        )
        assert row.on_frontier == (not dominated)
    files = write_frontier(rows, tmp_path / "out")
    assert [file.name for file in files] == ["frontier.tsv", "frontier.json", "frontier.svg"]
    assert len(files[0].read_text().splitlines()) == 1 + len(rows)
    assert "bytes of learned numbers" in files[2].read_text() or files[2].stat().st_size > 5_000
    with pytest.raises(ConfigInvalid, match=r"ends in '\.docx'"):
        write_frontier(rows, tmp_path / "a.docx")


def test_a_plot_without_matplotlib_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    check_frontier_path(tmp_path / "frontier.tsv")
    for path in (tmp_path / "frontier.svg", tmp_path):
        with pytest.raises(DependencyMissing, match=r"prompt-serve\[research\]"):
            check_frontier_path(path)


def test_candidates_share_the_settings_that_all_methods_have() -> None:
    configs = candidate_configs(CONFIG.replace(seed=7, epochs=9), "all")
    assert {(config.seed, config.epochs) for config in configs} == {(7, 9)}
    assert [config.method for config in configs].count("zero-shot") == 1


def test_several_seeds_give_the_prompts_of_single_runs(
    tiny_backbone: Backbone, colors: Path, cache: FeatureCache
) -> None:
    split = read_dataset(colors)
    configs = [*(TRIED[1].replace(seed=seed) for seed in (1, 2)), CONFIG]
    results = train_prompts(tiny_backbone, split, configs, cache=cache)
    for config, result in zip(configs, results, strict=True):
        alone = train_prompt(tiny_backbone, split, config, cache=cache)
        assert to_bytes(replace(result.prompt, metrics={})) == to_bytes(
            replace(alone.prompt, metrics={})
        )
