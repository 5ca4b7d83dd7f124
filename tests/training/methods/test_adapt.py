"""ADAPT: what rows of keys and values do, which are pruned and when, and what the file keeps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor

from prompt_serve.errors import BackboneUnsupported, ConfigInvalid
from prompt_serve.prompts.encodings import PrunedKeyValues
from prompt_serve.prompts.folding import fold_image, fold_text
from prompt_serve.prompts.prompt_file import Prompt, from_bytes, to_bytes
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.prompts.quantized_tensor import QuantizedTensor
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import make_config
from prompt_serve.training.data.feature_provider import image_data
from prompt_serve.training.data.few_shot import few_shot
from prompt_serve.training.data.image_batches import image_batches
from prompt_serve.training.data.loading import read_dataset
from prompt_serve.training.data.pixels import PixelSet
from prompt_serve.training.evaluate import evaluate_prompt
from prompt_serve.training.loop import Fitted, Run, fit
from prompt_serve.training.methods.adapt import (
    Adapt,
    AdaptSettings,
    PruneScore,
    TowerRows,
    make_schedule,
    prune,
)
from prompt_serve.training.methods.base import Encodings, LearnerInputs, StepInfo
from prompt_serve.training.select_tokens import (
    TokenCandidate,
    fewest_within_one_standard_error,
    token_counts,
)
from prompt_serve.training.train import train_prompt
from prompt_serve.training.without_torch.outcome import EpochRecord
from tests.training.by_hand import block
from tests.training.learners import inputs_of
from tests.training.trained import numbers_of

NAMES = ("blue", "green", "red", "yellow")
VIT_B_16 = {"text_layers": 12, "image_layers": 12, "image_width": 768}


def start(
    *,
    width: int = 512,
    text_layers: int = 2,
    image_layers: int = 2,
    image_width: int | None = 64,
    **settings: Any,
) -> tuple[LearnerInputs, AdaptSettings]:
    config = make_config(method="adapt", **settings)
    assert isinstance(config.settings, AdaptSettings)
    inputs = inputs_of(
        config,
        torch.zeros(4, width),
        text_layers=text_layers,
        image_layers=image_layers,
        image_width=image_width,
    )
    return inputs, config.settings


def made_up_pixels(n: int = 12, views: int = 2, seed: int = 0) -> PixelSet:
    """Noisy patches of four colors, of the size that the tiny backbone reads."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 4
    colors = np.array([[30, 30, 220], [30, 200, 30], [220, 30, 30], [220, 220, 30]])
    noise = rng.normal(0, 25, size=(n, views, 32, 32, 3))
    pixels = np.clip(noise + colors[labels][:, None, None, None], 0, 255).astype(np.uint8)
    return PixelSet(pixels=pixels, labels=labels)


def run(backbone: Backbone, **settings: Any) -> Fitted:
    config = make_config(
        **{"method": "adapt", "epochs": 6, "batch_size": 4, "tokens": 8, **settings}
    )
    return fit(backbone, NAMES, made_up_pixels(), None, config, learning_rate=0.1)


def lengths_of(encodings: Encodings) -> list[int]:
    branches = (encodings.text, encodings.image)
    return [int(n) for e in branches if isinstance(e, PrunedKeyValues) for n in e.lengths]


# What rows do.


def some_rows(backbone: Backbone, width: int, *counts: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(4)
    return tuple(torch.randn(n, width, generator=generator) for n in counts)


def image_features(backbone: Backbone, *rows: Tensor) -> Tensor:
    pixels = torch.from_numpy(made_up_pixels(2).plain(0, 2))
    with torch.no_grad():
        features: Tensor = backbone.image_tower(
            backbone.normalize(pixels), PromptVectors(keys_values=rows)
        )
    return features


def text_features(backbone: Backbone, *rows: Tensor) -> Tensor:
    words = backbone.token_embedding
    suffix = words[torch.tensor([[5, 6, 7], [8, 9, 10]])]
    with torch.no_grad():
        features: Tensor = backbone.text_tower(
            words[:3], suffix, torch.tensor([1, 2]), (), tuple(rows)
        )
    return features


FEATURES = [(image_features, 64), (text_features, 32)]


@pytest.mark.parametrize(("features", "width"), FEATURES, ids=["image", "text"])
def test_a_removed_row_is_a_masked_row_and_not_a_row_times_zero(
    tiny_backbone: Backbone, features: Any, width: int
) -> None:
    """A block written out, with a row masked by -inf; the tower without, and with a zero row."""
    vision = tiny_backbone.clip.visual
    assert isinstance(vision, VisionTransformer)
    blocks = vision.transformer.resblocks if width == 64 else tiny_backbone.text_tower.blocks
    layer: Any = blocks[0]
    # A norm whose bias is zero, as in a new tower, would hide what a zero row does.
    bias, before = layer.ln_1.bias, layer.ln_1.bias.detach().clone()
    try:
        with torch.no_grad():
            bias += torch.linspace(-1, 1, width)
            rows = some_rows(tiny_backbone, width, 3)[0]
            x = torch.randn(5, width, generator=torch.Generator().manual_seed(2))
            seen = torch.ones(5, 8, dtype=torch.bool)
            seen[:, 1] = False
            masked = block(layer, x, rows, seen)
            removed = block(layer, x, rows[[0, 2]])
            zeroed = block(layer, x, rows * torch.tensor([[1.0], [0.0], [1.0]]))
            # Two orders of float32 sums; a row that is seen changes hundredths and more.
            assert float((masked - removed).abs().max()) < 1e-5
            assert float((zeroed - removed).abs().max()) > 1e-3

            none = rows[:0]
            two, three = (features(tiny_backbone, r, none) for r in (rows[[0, 2]], rows))
            zero = features(tiny_backbone, rows * torch.tensor([[1.0], [0.0], [1.0]]), none)
            assert float((two - three).abs().max()) > 1e-6
            assert float((two - zero).abs().max()) > 1e-6
    finally:
        with torch.no_grad():
            bias.copy_(before)


@pytest.mark.parametrize(("features", "width"), FEATURES, ids=["image", "text"])
def test_the_length_of_a_row_does_not_matter(
    tiny_backbone: Backbone, features: Any, width: int
) -> None:
    first, second = some_rows(tiny_backbone, width, 3, 2)
    plain, twice = (features(tiny_backbone, f * first, second) for f in (1.0, 2.0))
    other = features(tiny_backbone, first + 1.0 * torch.arange(width), second)
    # The layer norm adds 1e-5 to the variance.
    assert float((plain - twice).abs().max()) < 1e-5
    assert float((plain - other).abs().max()) > 1e-5


def test_rows_join_no_sequence_and_do_not_reach_the_next_block(tiny_backbone: Backbone) -> None:
    lengths: list[int] = []
    blocks = tiny_backbone.image_tower.visual.transformer.resblocks
    hooks = [
        b.mlp.register_forward_pre_hook(lambda m, x: lengths.append(x[0].shape[1])) for b in blocks
    ]
    rows = some_rows(tiny_backbone, 64, 7, 3)
    image_features(tiny_backbone, *rows)
    with_rows = lengths.copy()
    lengths.clear()
    image_features(tiny_backbone)
    for hook in hooks:
        hook.remove()
    assert with_rows == lengths == [17, 17]  # 16 patches and one


# How many there are, and where they end.


def test_the_counts_are_the_papers() -> None:
    learner = Adapt(*start(**VIT_B_16, tokens=32))
    assert sum(p.numel() for p in learner.parameters()) == 245_760
    step_info = StepInfo(step=0, steps=100, epoch=0, epochs=10)
    learner.text.importance += torch.rand(12, 16, generator=torch.Generator().manual_seed(0))
    learner.image.importance += torch.rand(12, 16, generator=torch.Generator().manual_seed(1))
    prune((learner.text, learner.image), learner.tokens - 32)
    n_text, n_image = sum(learner.text.lengths()), sum(learner.image.lengths())
    assert n_text + n_image == 32
    encodings = learner.encodings()
    assert encodings.text is not None
    assert encodings.image is not None
    stored = [t for e in (encodings.text, encodings.image) for t in e.tensors().values()]
    assert sum(t.nbytes for t in stored) == 2 * (768 * n_image + 512 * n_text) + 24
    learner.after_update(step_info)
    assert learner.tokens == 32


@pytest.mark.parametrize("tokens", [1, 2, 4, 8, 16, 32, 64, 128, 256, 383, 384])
@pytest.mark.parametrize("steps", [1, 3, 40, 400, 4_000, 100_000])
def test_the_target_is_reached_in_time_on_small_data_too(tokens: int, steps: int) -> None:
    """4,000 steps are EuroSAT's: 40 per epoch, 100 epochs."""
    settings, surplus = AdaptSettings(), 384 - tokens
    schedule = make_schedule(settings, steps=steps, surplus=surplus)
    left, last = 384, 0
    for step in range(steps):
        if left > tokens and schedule.is_due(step):
            assert step >= schedule.first
            left, last = max(tokens, left - schedule.at_a_time), step + 1
    assert left == tokens
    assert last <= max(schedule.first + (steps - schedule.first) / 2, 1) or steps == 1
    assert 1 <= schedule.interval <= 80


def test_the_schedule_is_the_papers_where_there_is_time() -> None:
    paper = make_schedule(AdaptSettings(), steps=100_000, surplus=384 - 64)
    assert (paper.first, paper.interval, paper.at_a_time) == (5_000, 80, 4)
    eurosat = make_schedule(AdaptSettings(), steps=4_000, surplus=384 - 64)
    assert (eurosat.first, eurosat.interval, eurosat.at_a_time) == (200, 23, 4)


# Which rows go.


def tower(importance: list[list[float]]) -> TowerRows:
    made = TowerRows(len(importance), 8, *start(tokens_per_block=len(importance[0]), tokens=1))
    made.importance.copy_(torch.tensor(importance))
    return made


def test_one_ranking_holds_both_towers() -> None:
    text, image = tower([[5.0, 1.0], [4.0, 9.0]]), tower([[2.0, 8.0], [3.0, 0.5]])
    prune((text, image), 3)
    assert text.kept.tolist() == [[True, False], [True, True]]
    assert image.kept.tolist() == [[False, True], [True, False]]
    assert not text.importance.any()
    assert not image.importance.any()


def test_of_equal_rows_that_of_the_lower_block_goes_first() -> None:
    text, image = tower([[1.0, 1.0], [1.0, 1.0]]), tower([[1.0, 1.0], [1.0, 0.0]])
    prune((text, image), 4)
    assert text.kept.tolist() == [[False, False], [True, True]]
    assert image.kept.tolist() == [[False, True], [True, False]]


def test_a_block_may_lose_all_rows_and_pruned_rows_are_not_ranked_again() -> None:
    text, image = tower([[0.0, 0.0], [7.0, 7.0]]), tower([[8.0, 8.0], [0.1, 0.1]])
    prune((text, image), 4)
    prune((text, image), 1)
    # The second time all worths are zero again, and block 0 is left in the image tower alone.
    assert text.lengths() == [0, 2]
    assert image.lengths() == [1, 0]


@pytest.mark.parametrize("score", ["snip", "gradient", "l2"])
def test_worth_is_added_up_before_each_update(score: PruneScore) -> None:
    learner = Adapt(*start(width=6, image_width=10, tokens=2, prune_score=score, prune_after=0.0))
    generator = torch.Generator().manual_seed(8)
    expected = torch.zeros(2, 16)
    for step in range(2):
        rows = learner.image.rows.detach().clone()
        gradient = torch.randn(rows.shape, generator=generator)
        learner.image.rows.grad = gradient
        learner.text.rows.grad = torch.zeros_like(learner.text.rows)
        learner.before_update(StepInfo(step=step, steps=100, epoch=0, epochs=1))
        with torch.no_grad():
            learner.image.rows.sub_(0.1 * gradient)
        for b in range(2):
            for n in range(16):
                g, p = gradient[b, n].tolist(), rows[b, n].tolist()
                pairs = list(zip(g, p, strict=True))
                expected[b, n] += {
                    "snip": sum(abs(x * y) for x, y in pairs),
                    "gradient": sum(x * x for x in g) ** 0.5,
                    "l2": sum(y * y for y in p) ** 0.5,
                }[score]
    assert torch.allclose(learner.image.importance, expected, rtol=1e-5)


def test_snip_foretells_what_the_loss_would_change(tiny_backbone: Backbone) -> None:
    """Gradient times number is the change of the loss to first order when a number shrinks."""
    config = make_config(method="adapt", prune_after=0.0, batch_size=4)
    trial = Run(tiny_backbone, NAMES, config, learning_rate=0.1)
    assert isinstance(trial.learner, Adapt)
    images = image_batches(made_up_pixels(4, 1), trial.towers)
    everything, views = torch.arange(4), torch.zeros(4, dtype=torch.int64)

    def loss() -> Tensor:
        contexts = trial.learner.contexts()
        features = images.features(everything, views, contexts.image)
        _, logits = trial.scores(features, contexts.text)
        return torch.nn.functional.cross_entropy(logits, images.labels)

    (gradient,) = torch.autograd.grad(loss(), [trial.learner.image.rows])
    rows, h = trial.learner.image.rows, 2e-3
    index = tuple(int(i) for i in np.unravel_index(int(gradient.abs().argmax()), gradient.shape))
    with torch.no_grad():
        rows[index] += h
        above = float(loss())
        rows[index] -= 2 * h
        slope = (above - float(loss())) / (2 * h)
    assert float(gradient[index]) == pytest.approx(slope, rel=0.05)


# Learning.


def test_the_loss_falls_and_the_target_is_kept(tiny_backbone: Backbone) -> None:
    fitted = run(tiny_backbone, epochs=15, tokens=6)
    assert fitted.history[-1].loss < fitted.history[0].loss - 0.05
    tokens = [record.facts["tokens"] for record in fitted.history]
    assert tokens == sorted(tokens, reverse=True)
    assert tokens[8:] == [6] * 7  # steps 2 to 45 after the warm-up; half of them for pruning
    assert sum(lengths_of(fitted.encodings)) == 6
    assert fitted.template == "a photo of a {}."


@pytest.mark.parametrize("tokens", [1, 5, 63, 64])
def test_any_target_is_reached_in_three_steps(tiny_backbone: Backbone, tokens: int) -> None:
    fitted = run(tiny_backbone, epochs=1, tokens=tokens)
    assert sum(lengths_of(fitted.encodings)) == tokens
    # A tower without rows is stored as one that nothing was learned of.
    for stored in (fitted.encodings.text, fitted.encodings.image):
        assert stored is None or (isinstance(stored, PrunedKeyValues) and sum(stored.lengths) > 0)


def test_pruned_rows_have_no_part_in_anything(tiny_backbone: Backbone) -> None:
    config = make_config(method="adapt", tokens=8, bits=2, batch_size=4)
    trial = Run(tiny_backbone, NAMES, config, learning_rate=0.1)
    assert isinstance(trial.learner, Adapt)
    prune((trial.learner.text, trial.learner.image), 56)
    before = trial.learner.encodings()
    with torch.no_grad():
        for rows in (trial.learner.text, trial.learner.image):
            rows.rows[~rows.kept] = 1e6
    after = trial.learner.encodings()
    for one, other in ((before.text, after.text), (before.image, after.image)):
        assert (one is None) == (other is None)
        if isinstance(one, PrunedKeyValues) and isinstance(other, PrunedKeyValues):
            assert isinstance(one.rows, QuantizedTensor)
            assert isinstance(other.rows, QuantizedTensor)
            assert (one.rows.dequantize() == other.rows.dequantize()).all()
    sums = [rows.sum() for rows in trial.learner.contexts().text.keys_values]
    torch.stack(sums).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    gradient = trial.learner.text.rows.grad
    assert gradient is not None
    assert not gradient[~trial.learner.text.kept].any()


@pytest.mark.parametrize("settings", [{}, {"bits": 4}, {"bits": 4, "quantization": "ptq"}])
def test_a_run_stopped_while_pruning_ends_with_the_same_bytes(
    tiny_backbone: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
) -> None:
    config = make_config(
        method="adapt", tokens=8, epochs=6, batch_size=4, prune_step=1, recluster_interval=3,
        recluster_above=0.0, **settings,
    )  # fmt: skip
    seen: list[EpochRecord] = []

    def stop(record: EpochRecord) -> None:
        seen.append(record)
        if record.epoch == 1:
            raise KeyboardInterrupt

    def go(**kw: Any) -> Fitted:
        return fit(tiny_backbone, NAMES, made_up_pixels(), None, config, learning_rate=0.1, **kw)

    whole, path = go(), tmp_path / "run.checkpoint"
    with pytest.raises(KeyboardInterrupt):
        go(on_epoch=stop, checkpoint=path)
    assert 8 < seen[-1].facts["tokens"] < 64
    resumed = go(checkpoint=path)
    assert lengths_of(whole.encodings) == lengths_of(resumed.encodings)
    assert numbers_of(whole).tobytes() == numbers_of(resumed).tobytes()


# The file.


@pytest.mark.parametrize("settings", [{}, {"bits": 1}, {"bits": 8, "quantization": "ptq"}])
def test_lengths_with_zeros_come_back_from_the_file_bit_for_bit(
    tiny_backbone: Backbone, settings: dict[str, Any]
) -> None:
    config = make_config(method="adapt", tokens=29, **settings)
    learner = Run(tiny_backbone, NAMES, config, learning_rate=0.1).learner
    assert isinstance(learner, Adapt)
    learner.image.importance[1] += 1.0
    learner.text.importance[1, 3:] += 2.0
    prune((learner.text, learner.image), 64 - 29)
    encodings = learner.encodings()
    assert lengths_of(encodings) == [0, 13, 0, 16]
    prompt = Prompt(
        name="zeros",
        method="adapt",
        class_names=NAMES,
        templates=("a photo of a {}.",),
        backbone=tiny_backbone.ref,
        probe=np.zeros(4, dtype=np.float16),
        text=encodings.text,
        image=encodings.image,
    )
    stored = from_bytes(to_bytes(prompt))
    assert to_bytes(stored) == to_bytes(prompt)
    words = np.zeros((4, 32), dtype=np.float32)
    first, second = (
        [*fold_text(p.text, words).keys_values, *fold_image(p.image, PromptVectors()).keys_values]
        for p in (prompt, stored)
    )
    assert [len(rows) for rows in second] == [0, 13, 0, 16]
    assert [a.tobytes() for a in first] == [b.tobytes() for b in second]
    seen = learner.contexts()
    own = [*seen.text.keys_values, *seen.image.keys_values]
    for mine, theirs in zip(own, second, strict=True):
        # Learned through a codebook: the very numbers of the file. Else float16 rounds, or a
        # codebook of 256 numbers, whose last cells are wide.
        tolerance = {None: 2e-5, 1: 0.0, 8: 1e-2}[settings.get("bits")]
        assert np.abs(mine.detach().numpy() - theirs).max(initial=0.0) <= tolerance


def test_accuracy_while_learning_is_that_of_the_file(tiny_backbone: Backbone, colors: Path) -> None:
    config = make_config(
        method="adapt", learning_rate=0.1, epochs=2, views=1, shots=4, tokens=6, bits=1
    )
    dataset = read_dataset(colors)
    result = train_prompt(tiny_backbone, dataset, config)
    measured = result.comparisons["val"].prompt
    assert measured.accuracy == pytest.approx(result.history[-1].val_accuracy, abs=1e-6)
    stored, val = from_bytes(to_bytes(result.prompt)), few_shot(dataset, shots=4, seed=1).val
    assert val is not None
    images = image_data(val, tiny_backbone, as_pixels=True)
    assert evaluate_prompt(stored, tiny_backbone, images) == measured


# How many to keep.


def candidates(**accuracies: float) -> list[TokenCandidate]:
    def fitted(accuracy: float) -> Fitted:
        record = EpochRecord(
            epoch=0,
            learning_rate=0.1,
            loss=1.0,
            val_accuracy=accuracy,
            val_loss=1.0,
            idk=(),
            seconds=0.0,
        )
        return Fitted(encodings=Encodings(), template="a {}.", learning_rate=0.1, history=(record,))

    return [TokenCandidate(tokens=int(t[1:]), fitted=fitted(a)) for t, a in accuracies.items()]


def test_the_fewest_tokens_within_one_standard_error_are_taken() -> None:
    tried = candidates(t2=0.70, t4=0.76, t8=0.75, t16=0.80)
    # sqrt(0.8 x 0.2 / 100) = 0.04; / 400: 0.02; / 10: 0.13
    assert fewest_within_one_standard_error(tried, 99).tokens == 4
    assert fewest_within_one_standard_error(tried, 400).tokens == 16
    assert fewest_within_one_standard_error(tried, 10).tokens == 2


def test_the_number_of_tokens_is_chosen_by_validation_and_kept_in_the_file(
    tiny_backbone: Backbone, colors: Path
) -> None:
    config = make_config(
        method="adapt", tokens="auto", learning_rate=0.1, epochs=1, views=1, shots=2,
        tokens_per_block=2,
    )  # fmt: skip
    assert token_counts(config, tiny_backbone) == (2, 4)
    records: list[EpochRecord] = []
    split = read_dataset(colors)
    result = train_prompt(tiny_backbone, split, config, on_epoch=records.append)
    kept = result.prompt.training["tokens"]
    assert [r.facts["tokens"] for r in records] == [2, 4]
    assert kept in (2, 4)
    assert sum(lengths_of(Encodings(text=result.prompt.text, image=result.prompt.image))) == kept
    assert result.notes[-1].startswith(f"Kept {kept} tokens, the fewest within one standard error")


def test_what_cannot_be_learned_is_refused_with_the_way_out(tiny_backbone: Backbone) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"tokens": 65}, "tokens is 65; expected 1 to 64"),
        ({"tokens": 0}, "tokens is 0; expected 1 to 64"),
        ({"tokens": "auto"}, "a single fit chooses nothing"),
        ({"n_ctx": 4}, "ADAPT keeps the template's words"),
    ]
    for settings, reason in refused:
        with pytest.raises(ConfigInvalid, match=reason):
            Adapt(*start(**settings))
    with pytest.raises(BackboneUnsupported, match="must be a vision transformer"):
        Adapt(*start(image_width=None))
    tiny = make_config(method="adapt", tokens="auto", tokens_per_block=1)
    assert token_counts(tiny, tiny_backbone) == (2,)
