"""Methods that prompt the image tower, alone or with the text tower: VPT, IVLP, MaPLe and its kin,
DIP of the image branch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prompt_serve.errors import ConfigInvalid
from prompt_serve.prompts.encodings import Deep, Dense, Encoding, LowRank, Projected
from prompt_serve.prompts.folding import fold_image, fold_text
from prompt_serve.prompts.prompt_file import from_bytes, to_bytes
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.prompts.quantized_tensor import QuantizedTensor
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import make_config
from prompt_serve.training.data.features import FeatureSet
from prompt_serve.training.data.few_shot import few_shot
from prompt_serve.training.data.image_batches import image_batches
from prompt_serve.training.data.loading import read_dataset
from prompt_serve.training.data.pixels import PixelSet, image_pixels
from prompt_serve.training.evaluate import evaluate_prompt, prompt_logits
from prompt_serve.training.loop import Run, fit
from prompt_serve.training.methods.base import PromptLearner
from prompt_serve.training.methods.dip import LowRankVectors
from prompt_serve.training.methods.maple import Coupled
from prompt_serve.training.train import train_prompt
from prompt_serve.training.without_torch.outcome import TrainingResult
from tests.training.learners import learner_of

WORDS = torch.randn(4, 512, generator=torch.Generator().manual_seed(5))
SMALL_WORDS = torch.randn(4, 32, generator=torch.Generator().manual_seed(5))
NAMES = ("cat", "horse", "zebra crossing")
IMAGE_METHODS: list[dict[str, Any]] = [
    {"method": "vpt"},
    {"method": "ivlp"},
    {"method": "maple"},
    {"method": "maple", "store_projections": True},
    {"method": "dip-maple", "projection_rank": 8},
    {"method": "dip-maple", "projection_rank": 8, "store_projections": True},
    {"method": "qmaple"},
    {"method": "qmaple", "store_projections": True},
    {"method": "dip", "branch": "image"},
    {"method": "dip", "branch": "image", "depth": 2, "bits": 4},
]


def named(settings: dict[str, Any]) -> str:
    return " ".join(str(v) for v in settings.values())


def vit_b_16(**settings: Any) -> PromptLearner:
    """A learner in the geometry of ViT-B/16, without its weights."""
    return learner_of(
        settings, WORDS, text_layers=12, embed_dim=512, image_width=768, image_layers=12
    )


def small(**settings: Any) -> PromptLearner:
    return learner_of(
        settings, SMALL_WORDS, text_layers=3, embed_dim=24, image_width=64, image_layers=2
    )


def parameters(learner: PromptLearner) -> int:
    return sum(p.numel() for p in learner.parameters())


def stored(learner: PromptLearner) -> list[Any]:
    encodings = learner.encodings()
    return [
        tensor
        for encoding in (encodings.text, encodings.image)
        if encoding is not None
        for tensor in encoding.tensors().values()
    ]


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"method": "vpt"}, 12 * 8 * 768),
        ({"method": "vpt"}, 73_728),
        ({"method": "vpt", "depth": 1}, 8 * 768),
        ({"method": "ivlp"}, 9 * 2 * (512 + 768)),
        ({"method": "maple", "store_projections": True}, 3_555_072),
        ({"method": "dip-maple", "store_projections": True}, 741_924),
        ({"method": "dip", "branch": "image"}, 772),
        ({"method": "dip", "branch": "image", "depth": 3}, 3 * 772),
        *[({"method": "dip", "depth": depth}, 516 * depth) for depth in (1, 2, 6, 12)],
    ],
    ids=str,
)
def test_the_counts_are_the_papers(settings: dict[str, Any], count: int) -> None:
    learner = vit_b_16(**settings)
    assert parameters(learner) == count
    assert sum(t.size for t in stored(learner)) == count
    assert sum(t.nbytes for t in stored(learner)) == 2 * count


def test_maple_without_its_biases_has_the_count_of_the_tables() -> None:
    image = vit_b_16(method="maple", store_projections=True).encodings().image
    assert isinstance(image, Projected)
    biases = sum(layer.bias.size for layer in image.layers if layer.bias is not None)
    assert 3_555_072 - biases == 3_548_160


def test_qmaple_takes_the_papers_bytes() -> None:
    """The paper counts the indices; here with the codebooks, and biases in float16."""
    tensors = stored(vit_b_16(method="qmaple", store_projections=True))
    coded = [t for t in tensors if isinstance(t, QuantizedTensor)]
    codebooks = sum(t.codebook.nbytes for t in coded)
    assert {t.bits for t in coded} == {4}
    assert codebooks == 2 * 9 * 32 == 576
    assert sum(t.nbytes for t in coded) - codebooks == 1_774_080
    assert sum(t.nbytes for t in tensors if not isinstance(t, QuantizedTensor)) == 13_824


def test_folded_maple_keeps_vectors_instead_of_projections() -> None:
    encodings = vit_b_16(method="maple").encodings()
    assert isinstance(encodings.text, Deep)
    assert isinstance(encodings.image, Deep)
    assert sum(t.nbytes for t in encodings.text.tensors().values()) == 9 * 2 * 512 * 2
    assert sum(t.nbytes for t in encodings.image.tensors().values()) == 9 * 2 * 768 * 2 == 27_648


def test_maple_starts_from_two_words_random_vectors_and_linear_layers() -> None:
    learner = vit_b_16(method="maple")
    assert isinstance(learner, Coupled)
    text = learner.contexts().text
    assert text.context is not None
    assert torch.equal(text.context, WORDS[:2])
    deeper = torch.stack(text.deeper).detach()
    assert float(deeper.std()) == pytest.approx(0.02, rel=0.05)
    bias, weight = (t.detach() for t in learner.projections[4].parameters())
    reference = torch.nn.Linear(512, 768)
    for own, theirs in ((weight, reference.weight), (bias, reference.bias)):
        bound = 512**-0.5
        assert float(own.abs().max()) <= bound
        assert float(own.std()) == pytest.approx(float(theirs.detach().std()), rel=0.1)
    others = [next(p.parameters()) for p in learner.projections]
    assert not torch.equal(others[0], others[1])


def test_maple_projects_each_block_by_its_own_layer() -> None:
    learner = small(method="maple").eval()
    assert isinstance(learner, Coupled)
    contexts = learner.contexts()
    assert contexts.text.context is not None
    sources = (contexts.text.context, *contexts.text.deeper)
    images = (contexts.image.context, *contexts.image.deeper)
    assert len(sources) == len(images) == 2
    for source, image, layer in zip(sources, images, learner.projections, strict=True):
        bias, weight = layer.parameters()
        expected = torch.stack(
            [(row[:, None] * weight).sum(0) + bias for row in source]  # F_j(P_j), row by row
        )
        torch.testing.assert_close(image, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("settings", IMAGE_METHODS, ids=named)
def test_what_the_file_folds_to_is_what_was_trained_with(settings: dict[str, Any]) -> None:
    learner = small(**settings, init_std=0.5).eval()
    encodings, contexts = learner.encodings(), learner.contexts()
    text = fold_text(encodings.text, SMALL_WORDS.numpy())
    image = fold_image(encodings.image, text)
    # float16 keeps three digits of numbers up to 4, and sums of 32 of them lose a little more.
    tolerance = 2e-2
    if settings == {"method": "qmaple"}:
        # Image vectors are put in a codebook once they are made.
        tolerance = 1.0
        assert all(len(np.unique(vectors)) <= 16 for vectors in _blocks(image))
    for folded, trained in ((text, contexts.text), (image, contexts.image)):
        assert len(folded.deeper) == len(trained.deeper)
        for a, b in zip(_blocks(folded), _blocks(trained), strict=True):
            assert np.abs(np.asarray(a) - b.detach().numpy()).max() < tolerance


def _blocks(branch: PromptVectors[Any]) -> list[Any]:
    return [] if branch.context is None else [branch.context, *branch.deeper]


def test_encodings_are_the_same_while_learning_and_after() -> None:
    learner = small(method="dip-maple", projection_rank=8, dropout=0.5)
    image = [e.train().encodings().image for e in (learner, learner)]
    after = learner.eval().encodings().image
    for encoding in image:
        assert isinstance(encoding, Deep)
        assert isinstance(after, Deep)
        assert _same_numbers(encoding, after)


def _same_numbers(one: Encoding, other: Encoding) -> bool:
    pairs = zip(one.tensors().values(), other.tensors().values(), strict=True)
    return all(isinstance(a, np.ndarray) and np.array_equal(a, np.asarray(b)) for a, b in pairs)


def test_both_branches_see_the_same_dropout() -> None:
    learner = small(method="dip-maple", projection_rank=8, dropout=0.5, init_std=1.0)
    assert isinstance(learner, Coupled)
    contexts = learner.train().contexts()
    assert contexts.text.context is not None
    assert contexts.image.context is not None
    projected = learner.projections[0](contexts.text.context)
    assert torch.equal(projected, contexts.image.context)


def test_dip_maple_with_a_zero_product_is_the_templates_words() -> None:
    learner = small(method="dip-maple", projection_rank=8, dropout=0.0)
    assert isinstance(learner, Coupled)
    for block in learner.blocks:
        assert isinstance(block, LowRankVectors)
        torch.nn.init.zeros_(block.p_b.values)
    contexts, encodings = learner.contexts(), learner.encodings()
    assert contexts.text.context is not None
    assert torch.equal(contexts.text.context, SMALL_WORDS)
    assert all(not vectors.any() for vectors in contexts.text.deeper)
    folded = fold_text(encodings.text, SMALL_WORDS.numpy())
    assert folded.context is not None
    assert np.array_equal(folded.context, SMALL_WORDS.numpy())
    w_a, w_b = learner.projections[0].parameters()
    assert contexts.image.context is not None
    torch.testing.assert_close(contexts.image.context, SMALL_WORDS @ w_a @ w_b)


def test_image_dip_builds_on_nothing() -> None:
    learner = small(method="dip", branch="image", rank=2).eval()
    image = learner.encodings().image
    assert isinstance(image, LowRank)
    assert image.base == "none"
    context = learner.contexts().image.context
    assert context is not None
    a, b = (p.detach() for p in learner.parameters())
    assert torch.equal(context.detach(), a @ b)
    assert learner.encodings().text is None


@pytest.mark.parametrize("method", ["maple", "ivlp", "dip-maple"])
def test_the_depth_is_nine_or_what_both_towers_have(method: str) -> None:
    rank = {"projection_rank": 8} if method == "dip-maple" else {}
    assert len(small(method=method, **rank).contexts().image.deeper) == 1
    deep = vit_b_16(method=method, **rank).contexts()
    assert len(deep.image.deeper) == len(deep.text.deeper) == 8
    with pytest.raises(ConfigInvalid, match="depth is 3, but the tower has 2 blocks"):
        small(method=method, **rank, depth=3)


def test_a_depth_of_one_leaves_deeper_blocks_alone() -> None:
    for method in ("vpt", "ivlp", "maple"):
        encodings = small(method=method, depth=1).encodings()
        assert isinstance(encodings.image, Dense)


def run_of(backbone: Backbone, **settings: Any) -> Run:
    return Run(backbone, NAMES, make_config(**settings), learning_rate=0.1)


@pytest.fixture
def noise(rng: np.random.Generator) -> PixelSet:
    pixels = rng.integers(0, 256, (8, 2, 32, 32, 3), dtype=np.uint8)
    return PixelSet(pixels=pixels, labels=np.arange(8) % 3)


@pytest.mark.parametrize("settings", IMAGE_METHODS, ids=named)
def test_gradients_reach_every_number(
    tiny_backbone: Backbone, noise: PixelSet, settings: dict[str, Any]
) -> None:
    run = run_of(tiny_backbone, **settings, batch_size=4, epochs=3)
    before = [p.detach().clone() for p in run.learner.parameters()]
    record = run.epoch(1, image_batches(noise, run.towers), None)
    for name, parameter in run.learner.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name
    for parameter, old in zip(run.learner.parameters(), before, strict=True):
        assert not torch.equal(parameter.detach(), old)
    assert record.idk[-1] == pytest.approx(1.0, abs=1e-5)
    assert list(record.idk) == sorted(record.idk)


def test_two_vectors_keep_of_a_behind_them(tiny_backbone: Backbone) -> None:
    run = run_of(tiny_backbone, method="maple")
    words = tiny_backbone.tokenizer.encode("of a")
    assert run.template == "a photo of a {}."
    assert run.plan.prefix[1:].tolist() == [~0, ~1, *words]


def test_features_are_no_pixels(tiny_backbone: Backbone, noise: PixelSet) -> None:
    features = FeatureSet(features=np.ones((8, 1, 24), dtype=np.float32), labels=noise.labels)
    config = make_config(method="maple", epochs=1)
    with pytest.raises(TypeError, match="need pixels to learn from, not features"):
        fit(tiny_backbone, NAMES, features, None, config, learning_rate=0.1)


def test_class_features_that_never_change_are_those_of_the_template(
    tiny_backbone: Backbone,
) -> None:
    run = run_of(tiny_backbone, method="vpt")
    expected = run._frozen_features(["a photo of a {}."])
    torch.testing.assert_close(run.class_features(PromptVectors()), expected)
    assert run.class_features(PromptVectors()) is run.class_features(PromptVectors())


LEARNING: dict[str, Any] = {
    "shots": 8,
    "epochs": 6,
    "batch_size": 8,
    "views": 2,
    "weight_decay": 0.0,
}


def learned(backbone: Backbone, folder: Path, **settings: Any) -> TrainingResult:
    config = make_config(**{**LEARNING, **settings})
    return train_prompt(backbone, read_dataset(folder), config, name="colors")


def held_out(backbone: Backbone, folder: Path) -> PixelSet:
    split = few_shot(read_dataset(folder), shots=8, seed=1)
    assert split.test is not None
    return image_pixels(split.test, backbone.preprocessing)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "vpt", "learning_rate": 2.0},
        {"method": "ivlp", "learning_rate": 2.0},
        {"method": "maple", "learning_rate": 0.2},
        {"method": "dip-maple", "projection_rank": 8, "learning_rate": 0.5},
        {"method": "qmaple", "learning_rate": 0.2},
        {"method": "dip", "branch": "image", "init_std": 0.3, "learning_rate": 2.0},
    ],
    ids=named,
)
def test_learning_from_pixels_is_the_same_in_memory_and_from_the_file(
    tiny_backbone: Backbone, colors: Path, settings: dict[str, Any]
) -> None:
    result = learned(tiny_backbone, colors, **settings)
    losses = [record.loss for record in result.history]
    assert losses[-1] < losses[0] - 0.02
    data = to_bytes(result.prompt)
    again = from_bytes(data)
    assert to_bytes(again) == data
    evaluation = evaluate_prompt(again, tiny_backbone, held_out(tiny_backbone, colors))
    assert evaluation.accuracy == result.comparisons["test"].prompt.accuracy
    assert result.prompt.image is not None


def test_with_or_without_its_projections_a_prompt_classifies_the_same(
    tiny_backbone: Backbone, colors: Path
) -> None:
    settings: dict[str, Any] = {"method": "maple", "learning_rate": 0.2, "epochs": 3}
    folded, kept = (
        learned(tiny_backbone, colors, **settings, store_projections=store).prompt
        for store in (False, True)
    )
    assert isinstance(kept.image, Projected)
    assert isinstance(folded.image, Deep)
    assert folded.payload_bytes < kept.payload_bytes / 10
    images = held_out(tiny_backbone, colors)
    logits = [prompt_logits(prompt, tiny_backbone, images) for prompt in (folded, kept)]
    # One rounding of the image vectors to float16 lies between them.
    assert np.abs(logits[0] - logits[1]).max() < 1e-2
    assert (logits[0].argmax(-1) == logits[1].argmax(-1)).mean() >= 0.95


def test_the_same_seed_gives_the_same_file(tiny_backbone: Backbone, colors: Path) -> None:
    settings: dict[str, Any] = {
        "method": "dip-maple",
        "projection_rank": 4,
        "dropout": 0.3,
        "epochs": 2,
    }
    first, second = (
        learned(tiny_backbone, colors, learning_rate=0.2, **settings).prompt for _ in range(2)
    )
    assert to_bytes(first) == to_bytes(second)


def test_pixels_on_demand_learn_the_same_numbers(tiny_backbone: Backbone, colors: Path) -> None:
    split = few_shot(read_dataset(colors), shots=4, seed=1)
    config = make_config(method="vpt", epochs=2, batch_size=8)
    results = []
    for memory_bytes in (2**30, 0):
        images = image_pixels(
            split.train, tiny_backbone.preprocessing, views=2, memory_bytes=memory_bytes
        )
        fitted = fit(tiny_backbone, split.class_names, images, None, config, learning_rate=0.1)
        assert fitted.encodings.image is not None
        results.append(fitted.encodings.image)
    assert _same_numbers(*results)
