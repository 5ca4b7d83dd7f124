"""KgCoOp, ProGrad, PromptSRC and CoCoOp against their equations."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from prompt_serve.errors import PromptUnsupported
from prompt_serve.prompts.class_features import class_features
from prompt_serve.prompts.encodings import Conditional, Deep, Dense
from prompt_serve.prompts.prompt_file import Prompt, from_bytes, to_bytes
from prompt_serve.research.cocoop import Cocoop
from prompt_serve.scoring import unit
from prompt_serve.training.baselines.kgcoop import KgCoop, mean_distance
from prompt_serve.training.baselines.prograd import ProGrad, without_opposition
from prompt_serve.training.baselines.promptsrc import PromptSrc, epoch_weights
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import make_config
from prompt_serve.training.data.features import FeatureSet
from prompt_serve.training.evaluate import prompt_logits
from prompt_serve.training.loop import Fitted, Run, fit
from prompt_serve.training.methods.base import PromptLearner, StepInfo, StepOutput
from tests.backbones import EMBED_DIM
from tests.training.learners import learner_of

NAMES = ("cat", "a_very_long_name of-a-dog", "horse", "zebra crossing")
BASELINES = ("kgcoop", "prograd", "promptsrc", "cocoop")


def made_up_features(rng: np.random.Generator, n: int, k: int = 1) -> FeatureSet:
    """Four clusters of features."""
    labels = np.arange(n) % 4
    centers = rng.normal(size=(4, 1, EMBED_DIM))
    features = centers[labels] + 0.3 * rng.normal(size=(n, k, EMBED_DIM))
    return FeatureSet(features=unit(features.astype(np.float32)), labels=labels)


def make_run(backbone: Backbone, method: str, **settings: Any) -> Run:
    return Run(backbone, NAMES, make_config(method=method, **settings), learning_rate=0.1)


def step_of(run: Run, images: FeatureSet) -> StepOutput:
    features = torch.from_numpy(images.plain)
    classes, logits = run.scores(features, run.learner.contexts().text)
    return StepOutput(
        logits=logits,
        labels=torch.from_numpy(images.labels),
        class_features=classes,
        image_features=features,
        logit_scale=run.backbone.logit_scale,
    )


def moved(run: Run, by: float = 0.3) -> None:
    """Take the numbers away from where they started."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in run.learner.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))


def gradients(loss: Tensor, learner: PromptLearner) -> Tensor:
    parts = torch.autograd.grad(loss, list(learner.parameters()), retain_graph=True)
    return torch.cat([part.flatten() for part in parts])


def test_kgcoop_adds_the_mean_squared_distance_to_the_template(
    tiny_backbone: Backbone, rng: np.random.Generator
) -> None:
    run = make_run(tiny_backbone, "kgcoop", guidance=3.0)
    assert isinstance(run.learner, KgCoop)
    moved(run)
    step = step_of(run, made_up_features(rng, 8))
    ours, frozen = step.class_features.detach().numpy(), run.learner.frozen.numpy()
    distance = sum(
        sum((float(a) - float(b)) ** 2 for a, b in zip(x, y, strict=True))
        for x, y in zip(ours, frozen, strict=True)
    ) / len(NAMES)
    assert distance > 1e-3
    excess = float(run.learner.loss(step).detach() - step.cross_entropy.detach())
    assert excess == pytest.approx(3.0 * distance, rel=1e-3)


def test_kgcoop_pulls_nowhere_at_the_template(
    tiny_backbone: Backbone, rng: np.random.Generator
) -> None:
    run = make_run(tiny_backbone, "kgcoop")
    assert isinstance(run.learner, KgCoop)
    assert run.config.own()["guidance"] == 8.0
    step = step_of(run, made_up_features(rng, 8))
    # The same sentences by the same tower; only the order of sums may differ.
    distance = mean_distance(step.class_features, run.learner.frozen).detach()
    assert float(distance) < 1e-10


@pytest.mark.parametrize("depth", [1, 2])
def test_prograd_takes_out_what_opposes_the_zero_shot_model(
    tiny_backbone: Backbone, rng: np.random.Generator, depth: int
) -> None:
    run = make_run(tiny_backbone, "prograd", depth=depth)
    assert isinstance(run.learner, ProGrad)
    seen = set()
    for attempt in range(12):
        moved(run, 0.1)
        step = step_of(run, made_up_features(rng, 4 + attempt))
        zero_shot = step.logit_scale * step.image_features @ run.learner.frozen.T
        p, q = zero_shot.softmax(-1), step.logits.softmax(-1)
        divergence = (p * (p.log() - q.log())).sum(-1).mean()
        general = gradients(divergence, run.learner)
        own = gradients(step.cross_entropy, run.learner)
        run.optimizer.zero_grad()
        run.learner.backward(step)
        grads = [x.grad for x in run.learner.parameters() if x.grad is not None]
        assert len(grads) == depth
        taken = torch.cat([grad.flatten() for grad in grads])
        product = float(own @ general)
        scale = float(taken.norm() * general.norm())
        assert float(taken @ general) >= -1e-3 * scale
        if product >= 0:
            assert torch.allclose(taken, own, atol=1e-6)
        else:
            expected = own - product / float(general @ general) * general
            assert torch.allclose(taken, expected, atol=1e-4 * float(own.norm()))
        seen.add(product >= 0)
    print("agreed and opposed:", seen)


def test_the_projection_is_that_of_one_whole_vector() -> None:
    own = [torch.tensor([1.0, 0.0]), torch.tensor([[-3.0]])]
    general = [torch.tensor([1.0, 0.0]), torch.tensor([[1.0]])]
    # (1, 0, -3) . (1, 0, 1) = -2, over 2: one (1, 0, 1) is added.
    whole = without_opposition(own, general, 1.0)
    assert whole[0].tolist() == [2.0, 0.0]
    assert whole[1].tolist() == [[-2.0]]
    half = without_opposition(own, general, 0.5)
    assert half[0].tolist() == [1.5, 0.0]
    agreeing = without_opposition(own, [-g for g in general], 1.0)
    assert all(torch.equal(a, b) for a, b in zip(agreeing, own, strict=True))
    nothing = without_opposition(own, [torch.zeros(2), torch.zeros(1, 1)], 1.0)
    assert all(torch.equal(a, b) for a, b in zip(nothing, own, strict=True))


def test_promptsrc_adds_both_regularizers(
    tiny_backbone: Backbone, rng: np.random.Generator
) -> None:
    run = make_run(tiny_backbone, "promptsrc", guidance=5.0, logit_guidance=2.0)
    assert isinstance(run.learner, PromptSrc)
    moved(run)
    step = step_of(run, made_up_features(rng, 8))
    frozen = run.learner.frozen.numpy().astype(np.float64)
    features = np.abs(step.class_features.detach().numpy() - frozen).mean()
    zero_shot = step.logit_scale * step.image_features.numpy() @ frozen.T
    p = np.exp(zero_shot - zero_shot.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    q = step.logits.detach().double().softmax(-1).numpy()
    scores = (p * (np.log(p) - np.log(q))).mean()
    excess = float(run.learner.loss(step).detach() - step.cross_entropy.detach())
    assert excess == pytest.approx(5.0 * features + 2.0 * scores, rel=1e-3)


def test_the_weights_of_the_epochs_are_a_gaussian_that_sums_to_one() -> None:
    weights = epoch_weights(20, 0.75, 0.05)
    by_hand = [math.exp(-((epoch - 15) ** 2) / 2) for epoch in range(1, 21)]
    assert weights == pytest.approx([weight / sum(by_hand) for weight in by_hand])
    for epochs, mean, std in ((1, 0.75, 0.05), (7, 0.0, 0.001), (50, 1.0, 0.3), (3, 0.5, 0.0)):
        assert sum(epoch_weights(epochs, mean, std)) == pytest.approx(1.0)
    assert epoch_weights(3, 0.5, 0.0) == [0.0, 0.0, 1.0]


def test_promptsrc_ends_with_the_average_of_its_epochs() -> None:
    settings = {"method": "promptsrc", "average_mean": 0.5, "average_std": 0.25}
    learner = learner_of(settings, torch.zeros(2, 3), n_classes=2, text_layers=2)
    for epoch, value in enumerate((1.0, 2.0, 10.0, 5.0)):
        with torch.no_grad():
            for parameter in learner.parameters():
                parameter.fill_(value)
        learner.after_epoch(StepInfo(step=epoch, steps=4, epoch=epoch, epochs=4))
    weights = [math.exp(-((epoch - 2) ** 2) / 2) for epoch in (1, 2, 3, 4)]
    weighted = zip(weights, (1.0, 2.0, 10.0, 5.0), strict=True)
    average = sum(w * value for w, value in weighted) / sum(weights)
    encoding = learner.encodings().text
    assert isinstance(encoding, Deep)
    assert len(encoding.layers) == 2
    for layer in encoding.layers:
        assert isinstance(layer, Dense)
        assert np.asarray(layer.context, dtype=float) == pytest.approx(average, rel=1e-3)


def bytes_of(fitted: Fitted) -> bytes:
    assert fitted.encodings.text is not None
    tensors = fitted.encodings.text.tensors().values()
    return b"".join(t.tobytes() if isinstance(t, np.ndarray) else bytes(t.indices) for t in tensors)


@pytest.mark.parametrize("method", BASELINES)
def test_a_stopped_run_goes_on_to_the_same_bytes(
    tiny_backbone: Backbone, rng: np.random.Generator, tmp_path: Path, method: str
) -> None:
    class StoppedError(Exception):
        pass

    def stop(record: Any) -> None:
        if record.epoch == 2:
            raise StoppedError

    train = made_up_features(rng, 16, 2)
    own = {"average_mean": 0.6, "average_std": 0.3} if method == "promptsrc" else {}
    config = make_config(method=method, epochs=5, batch_size=8, **own)
    whole = fit(tiny_backbone, NAMES, train, None, config, learning_rate=0.5)
    path = tmp_path / "run.ckpt"
    with pytest.raises(StoppedError):
        fit(
            tiny_backbone, NAMES, train, None, config,
            learning_rate=0.5, checkpoint=path, on_epoch=stop,
        )  # fmt: skip
    rest = fit(tiny_backbone, NAMES, train, None, config, learning_rate=0.5, checkpoint=path)
    assert bytes_of(rest) == bytes_of(whole)


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("method", BASELINES)
def test_each_learns(
    tiny_backbone: Backbone, rng: np.random.Generator, method: str, bits: int | None
) -> None:
    config = make_config(method=method, epochs=16, batch_size=16, bits=bits)
    fitted = fit(
        tiny_backbone, NAMES, made_up_features(rng, 16, 2), None, config, learning_rate=0.5
    )
    assert fitted.history[-1].loss < fitted.history[0].loss - 0.01


def cocoop_prompt(backbone: Backbone, encoding: Any) -> Prompt:
    draft = Prompt(
        name="c",
        method="cocoop",
        class_names=NAMES,
        templates=("a photo of a {}.",),
        backbone=backbone.ref,
        probe=np.zeros(4, dtype=np.float16),
        text=encoding,
    )
    return from_bytes(to_bytes(draft))


def test_cocoop_has_the_papers_numbers() -> None:
    learner = learner_of({"method": "cocoop"}, torch.zeros(4, 512), embed_dim=512)
    assert isinstance(learner, Cocoop)
    assert sum(parameter.numel() for parameter in learner.parameters()) == 35_360
    encoding = learner.encodings().text
    assert encoding is not None
    assert sum(t.size for t in encoding.tensors().values()) == 35_360


def test_cocoop_without_its_network_is_coop(
    tiny_backbone: Backbone, rng: np.random.Generator
) -> None:
    run, images = make_run(tiny_backbone, "cocoop"), made_up_features(rng, 6)
    encoding = run.learner.encodings().text
    assert isinstance(encoding, Conditional)
    zeros = {
        name: np.zeros(encoding.tensors()[name].shape, dtype=np.float16)
        for name in ("w_1", "b_1", "w_2", "b_2")
    }
    conditional = cocoop_prompt(tiny_backbone, replace(encoding, **zeros))
    coop = replace(conditional, text=Dense(context=encoding.context), method="coop")
    with_zeros, without = (prompt_logits(p, tiny_backbone, images) for p in (conditional, coop))
    # The same contexts; a product of one row sums in another order than one of six.
    assert np.abs(with_zeros - without).max() < 1e-4
    with torch.no_grad():
        for name, parameter in run.learner.named_parameters():
            if not name.startswith("context"):
                parameter.zero_()
    contexts = run.learner.contexts_of_images(torch.from_numpy(images.plain))
    assert contexts is not None
    shared = run.learner.contexts().text.context
    assert shared is not None
    assert all(torch.equal(context, shared) for context in contexts)


def test_cocoops_class_features_are_those_of_padded_sentences(
    tiny_backbone: Backbone, rng: np.random.Generator
) -> None:
    """Each image against open_clip's own tower on 32 tokens, the context put in by hand."""
    run, images = make_run(tiny_backbone, "cocoop"), made_up_features(rng, 3)
    moved(run, 0.1)
    step = step_of(run, images)
    clip, tokenizer = tiny_backbone.clip, tiny_backbone.tokenizer
    state = {name: p.detach() for name, p in run.learner.named_parameters()}
    w_1, b_1, w_2, b_2 = (state[f"{name}.values"] for name in ("w_1", "b_1", "w_2", "b_2"))
    for row, x in zip(step.class_features, torch.from_numpy(images.plain), strict=True):
        shift = w_2 @ torch.clamp(w_1 @ x + b_1, min=0) + b_2
        context = state["context.v.values"] + shift
        for c, name in enumerate(NAMES):
            body = tokenizer.encode(f"a photo of a {name.replace('_', ' ')}.")
            ids = torch.tensor([tokenizer.start_id, *body, tokenizer.end_id])
            words = clip.token_embedding(F.pad(ids, (0, 32 - len(ids))))
            words[1:5] = context
            hidden = (words + clip.positional_embedding).unsqueeze(0)
            hidden = clip.ln_final(clip.transformer(hidden, attn_mask=clip.attn_mask))
            expected = F.normalize(hidden[0, len(ids) - 1] @ clip.text_projection, dim=-1)
            assert float((row[c] - expected).detach().abs().max()) < 1e-5


def test_cocoop_validates_what_its_file_holds_and_cannot_be_served(
    tiny_backbone: Backbone, rng: np.random.Generator
) -> None:
    train, val = made_up_features(rng, 16), made_up_features(rng, 8)
    config = make_config(method="cocoop", epochs=3)
    fitted = fit(tiny_backbone, NAMES, train, val, config, learning_rate=0.5)
    prompt = cocoop_prompt(tiny_backbone, fitted.encodings.text)
    logits = torch.from_numpy(prompt_logits(prompt, tiny_backbone, val))
    loss = float(F.cross_entropy(logits, torch.from_numpy(val.labels)))
    assert fitted.history[-1].val_loss == pytest.approx(loss, abs=1e-5)
    with pytest.raises(PromptUnsupported, match="not served"):
        class_features(prompt, tiny_backbone.text_side, tiny_backbone.encode_text)
