"""The loop: exact gradients, falling loss, CoOp's batches, the same seed the same prompt."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.coop_reference import CoopReference
from prompt_serve.errors import ConfigInvalid, PromptTooLong
from prompt_serve.prompts.encodings import Dense
from prompt_serve.prompts.quantized_tensor import dequantize
from prompt_serve.prompts.sequences import plan_sequences
from prompt_serve.scoring import unit
from prompt_serve.training.clip.backbone import Backbone, load_backbone
from prompt_serve.training.clip.text_tower import PlanVectors
from prompt_serve.training.config import make_config
from prompt_serve.training.data.features import FeatureSet
from prompt_serve.training.data.image_batches import image_batches
from prompt_serve.training.loop import Fitted, Run, fit, learned_template
from prompt_serve.training.methods import METHODS
from prompt_serve.training.methods.base import StepInfo, StepOutput
from prompt_serve.training.methods.coop import Coop
from prompt_serve.training.methods.information_density import information_density
from prompt_serve.types import FloatArray
from tests.backbones import write_tiny_backbone

NAMES = ("cat", "a_very_long_name of-a-dog", "horse", "zebra crossing")


def made_up_features(rng: np.random.Generator, n: int, k: int, e: int = 24) -> FeatureSet:
    """Four clusters of features."""
    labels = np.arange(n) % 4
    centers = rng.normal(size=(4, 1, e))
    features = centers[labels] + 0.3 * rng.normal(size=(n, k, e))
    return FeatureSet(features=unit(features.astype(np.float32)), labels=labels)


def run(backbone: Backbone, train: FeatureSet, val: FeatureSet | None = None, **kw: Any) -> Fitted:
    settings = {"method": "coop", "epochs": 6, "learning_rate": 1.0, **kw}
    config = make_config(**settings)
    return fit(backbone, NAMES, train, val, config, learning_rate=float(settings["learning_rate"]))


def bytes_of(fitted: Fitted) -> bytes:
    assert fitted.encodings.text is not None
    return b"".join(dequantize(t).tobytes() for t in fitted.encodings.text.tensors().values())  # type: ignore[arg-type]  # no bytes among them


@pytest.mark.parametrize("prompt_prefix", ["a photo of a", "X X X X X X X X"])
def test_the_gradient_is_that_of_coops_own_loop(
    tiny_backbone: Backbone, rng: np.random.Generator, prompt_prefix: str
) -> None:
    template, n_ctx = f"{prompt_prefix} {{}}.", len(prompt_prefix.split())
    reference = CoopReference(tiny_backbone.clip, NAMES, template, n_ctx)
    features = made_up_features(rng, 32, 1)
    images, labels = torch.from_numpy(features.plain), torch.from_numpy(features.labels)
    plan = plan_sequences(tiny_backbone.tokenizer, NAMES, template, context_length=32, n_ctx=n_ctx)
    vectors = PlanVectors(plan, tiny_backbone.token_embedding)

    def ours(context: Tensor) -> Tensor:
        class_features = tiny_backbone.text_tower(*vectors(context))
        logits = tiny_backbone.logit_scale * images @ class_features.T
        return torch.nn.functional.cross_entropy(logits, labels)

    def gradient(loss_of: Any) -> tuple[float, Tensor]:
        context = reference.words.clone().requires_grad_()
        loss = loss_of(context)
        loss.backward()
        assert context.grad is not None
        return float(loss.detach()), context.grad

    loss, grad = gradient(ours)
    expected_loss, expected = gradient(lambda c: reference.loss_of_features(c, images, labels))
    difference = float((grad - expected).abs().max())
    print(f"largest gradient {float(expected.abs().max()):.2e}, difference {difference:.2e}")
    assert float(expected.abs().max()) > 1e-4
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    assert difference < 1e-5


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_curve_is_that_of_coops_own_loop(tiny_backbone: Backbone, seed: int) -> None:
    """Forty steps on the same views, with every class name padded and encoded at every step."""
    names = [*NAMES, "zebra", "zebra crossing sign", "cat", "horse cart"]
    rng = np.random.default_rng(seed)
    features = made_up_features(rng, 40, 3)
    template, epochs, rate = "a photo of a {}.", 20, 1.0
    config = make_config(method="coop", epochs=epochs, batch_size=20, seed=seed, template=template)
    ours = Run(tiny_backbone, names, config, learning_rate=rate)
    images = image_batches(features, ours.towers)
    reference = CoopReference(tiny_backbone.clip, names, template, 4)
    context = reference.words.clone().requires_grad_()
    optimizer = torch.optim.SGD([context], lr=rate, momentum=0.9, weight_decay=5e-4)
    curves = []
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = ours.rate_at(epoch)
        for chosen, views, step_info in ours.begin_epoch(epoch, images):
            loss = ours.step(images, chosen, views, step_info)
            drawn = torch.from_numpy(features.features[chosen, views])
            expected = reference.loss_of_features(context, drawn, images.labels[chosen])
            optimizer.zero_grad()
            expected.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            curves.append((float(loss), float(expected.detach())))
    fast, slow = np.array(curves).T
    assert len(fast) == 40
    assert slow[-1] < slow[0] - 0.05  # there is something to learn
    # float32, sums in another order, over forty steps that build on each other.
    assert np.abs(fast - slow).max() < 1e-4


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "coop"},
        {"method": "coop", "class_specific": True},
        {"method": "coop", "class_position": "front"},
        {"method": "coop", "class_position": "middle", "init": "random", "n_ctx": 6},
        {"method": "dip", "init_std": 0.3, "learning_rate": 10.0},
        {"method": "dip", "init_std": 0.3, "learning_rate": 10.0, "dropout": 0.2, "rank": 3},
        {"method": "dip", "init_std": 0.3, "learning_rate": 1.0, "frozen_init": False},
    ],
)
def test_the_loss_falls(
    tiny_backbone: Backbone, rng: np.random.Generator, settings: dict[str, Any]
) -> None:
    fitted = run(tiny_backbone, made_up_features(rng, 32, 3), epochs=12, **settings)
    losses = [record.loss for record in fitted.history]
    assert losses[-1] < losses[0] - 0.01
    assert len(losses) == 12


def test_the_same_seed_gives_the_same_numbers(
    tiny_backbone: Backbone, rng: np.random.Generator
) -> None:
    train = made_up_features(rng, 40, 3)
    settings: dict[str, Any] = {"method": "dip", "init_std": 0.3, "dropout": 0.3}
    first = run(tiny_backbone, train, seed=3, **settings)
    torch.rand(10)  # the global generator plays no part
    assert bytes_of(run(tiny_backbone, train, seed=3, **settings)) == bytes_of(first)
    assert bytes_of(run(tiny_backbone, train, seed=4, **settings)) != bytes_of(first)


def test_validation_images_change_nothing_that_is_learned(
    tiny_backbone: Backbone, rng: np.random.Generator
) -> None:
    train, val = made_up_features(rng, 40, 3), made_up_features(rng, 12, 1)
    without, with_val = run(tiny_backbone, train), run(tiny_backbone, train, val)
    assert bytes_of(without) == bytes_of(with_val)
    assert without.history[0].val_accuracy is None
    assert with_val.history[0].val_accuracy is not None


@pytest.mark.parametrize(
    ("n", "batch", "steps"), [(80, 32, 2), (64, 32, 2), (20, 32, 1), (5, 1, 5)]
)
def test_an_epoch_has_as_many_steps_as_coops(
    tiny_backbone: Backbone, n: int, batch: int, steps: int
) -> None:
    config = make_config(method="coop", batch_size=batch)
    stream = Run(tiny_backbone, NAMES, config, learning_rate=0.5)
    batches = list(stream.batches(n, 3))
    images = torch.cat([images for images, _ in batches])
    views = torch.cat([views for _, views in batches])
    assert len(batches) == steps
    assert all(len(images) == min(batch, n) for images, _ in batches)
    assert len(set(images.tolist())) == len(images)  # none twice
    assert set(views.tolist()) <= {0, 1, 2}
    again = torch.cat([images for images, _ in stream.batches(n, 3)])
    assert not torch.equal(images, again)  # shuffled anew


def test_a_step_is_sgd_with_momentum_and_weight_decay(
    tiny_backbone: Backbone, rng: np.random.Generator
) -> None:
    """Two epochs of one full batch, against the update written out."""
    train = made_up_features(rng, 8, 1)
    fitted = run(tiny_backbone, train, epochs=2, learning_rate=0.5, weight_decay=0.1)
    config = make_config(method="coop")
    same = Run(tiny_backbone, NAMES, config, learning_rate=0.5)
    (context,) = same.learner.parameters()
    images, labels = torch.from_numpy(train.plain), torch.from_numpy(train.labels)
    momentum = torch.zeros_like(context)
    for rate in (1e-5, 0.5):
        _, logits = same.scores(images, same.learner.contexts().text)
        (grad,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, labels), [context])
        momentum = 0.9 * momentum + grad + 0.1 * context.detach()
        context.data.sub_(rate * momentum)
    learned = context_of(fitted)
    # The images come in another order, so sums differ in the last bits, and float16 rounds.
    assert np.abs(learned - context.detach().numpy()).max() < 5e-3
    assert np.abs(learned - same.backbone.token_embedding[:4].numpy()).max() > 1e-2


def test_hooks_of_a_method_are_called_in_order(
    tiny_backbone: Backbone, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int, int]] = []

    class Pulled(Coop):
        def loss(self, step: StepOutput) -> Tensor:
            (context,) = self.parameters()
            return step.cross_entropy + 10 * context.square().mean()

        def before_update(self, step_info: StepInfo) -> None:
            assert next(self.parameters()).grad is not None
            seen.append(("before", step_info.step, step_info.epoch))

        def after_update(self, step_info: StepInfo) -> None:
            seen.append(("after", step_info.step, step_info.epoch))

        def after_epoch(self, step_info: StepInfo) -> None:
            seen.append(("epoch", step_info.step, step_info.epoch))
            assert (step_info.steps, step_info.epochs) == (8, 4)

        def log_metrics(self) -> dict[str, int | float]:
            return {"calls": len(seen)}

    train = made_up_features(rng, 64, 1)
    plain = run(tiny_backbone, train, epochs=4)
    monkeypatch.setitem(METHODS._loaded, "coop", replace(METHODS["coop"], learner=Pulled))
    pulled = run(tiny_backbone, train, epochs=4)
    expected = []
    for epoch in range(4):
        for step in (2 * epoch, 2 * epoch + 1):
            expected += [("before", step, epoch), ("after", step, epoch)]
        expected.append(("epoch", 2 * epoch + 1, epoch))
    assert seen == expected
    assert [record.facts["calls"] for record in pulled.history] == [5, 10, 15, 20]
    norm = [np.abs(context_of(fitted)).mean() for fitted in (plain, pulled)]
    assert norm[1] < 0.9 * norm[0]


def context_of(fitted: Fitted) -> FloatArray:
    assert isinstance(fitted.encodings.text, Dense)
    return dequantize(fitted.encodings.text.context).astype(np.float32)


def test_towers_without_a_causal_mask_learn_too(tmp_path: Path, rng: np.random.Generator) -> None:
    backbone = load_backbone(str(write_tiny_backbone(tmp_path / "open", no_causal_mask=True)))
    assert not backbone.text_tower.causal
    fitted = run(backbone, made_up_features(rng, 64, 1), epochs=8)
    assert fitted.history[-1].loss < fitted.history[0].loss


def test_the_template_of_the_file_has_a_token_for_each_vector() -> None:
    def template(given: str, words: int, **settings: Any) -> str:
        return learned_template(given, words, make_config(method="coop", **settings))

    assert template("a photo of a {}.", 4) == "a photo of a {}."
    assert template("a photo of a {}.", 4, init="random") == "a photo of a {}."
    # Two vectors that start from words leave the others standing (MaPLe).
    assert template("a photo of a {}.", 4, n_ctx=2) == "a photo of a {}."
    assert template("a photo of a {}.", 4, n_ctx=2, init="random") == "X X {}."
    assert template("{} texture.", 0, n_ctx=3) == "X X X {} texture."


def test_words_behind_the_vectors_stay_in_the_sentence(
    tiny_backbone: Backbone, rng: np.random.Generator
) -> None:
    """Vectors that are the words they replace change nothing."""
    config = make_config(method="coop", n_ctx=2)
    same = Run(tiny_backbone, NAMES, config, learning_rate=0.1)
    context = same.learner.contexts().text
    assert context.context is not None
    assert context.context.shape[0] == 2
    frozen = same._frozen_features(["a photo of a {}."])
    assert (same.class_features(context) - frozen).abs().max() < 1e-5


def test_a_template_without_words_wants_a_number_of_vectors(
    tiny_backbone: Backbone, rng: np.random.Generator
) -> None:
    train = made_up_features(rng, 8, 1)
    with pytest.raises(ConfigInvalid, match="no words before the class name"):
        run(tiny_backbone, train, template="{} texture.")
    fitted = run(tiny_backbone, train, template="{} texture.", n_ctx=2, init="random", epochs=1)
    assert fitted.template == "X X {} texture."


def test_names_that_do_not_fit_are_all_listed(
    tiny_backbone: Backbone, rng: np.random.Generator
) -> None:
    config = make_config(method="coop")
    names = ["cat", "one " * 40, "two " * 50, "dog"]
    with pytest.raises(PromptTooLong) as caught:
        fit(tiny_backbone, names, made_up_features(rng, 8, 1), None, config, learning_rate=0.1)
    assert len(caught.value.faults) == 2


def test_information_density_is_the_share_of_singular_values() -> None:
    u, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    v, _ = torch.linalg.qr(torch.randn(9, 4, generator=torch.Generator().manual_seed(1)))
    context = u @ torch.diag(torch.tensor([5.0, 3.0, 1.5, 0.5])) @ v.T
    assert information_density(context) == pytest.approx((0.5, 0.8, 0.95, 1.0), abs=1e-5)
    twice = torch.stack([context, u @ torch.diag(torch.tensor([1.0, 1, 1, 1])) @ v.T])
    assert information_density(twice) == pytest.approx((0.375, 0.65, 0.85, 1.0), abs=1e-5)
