"""Methods with codebooks, DIP's losses and the noise baseline: sizes, gradients, learning, and the
same numbers in memory as from the file."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prompt_serve.prompts.encodings import Dense, LowRank, describe
from prompt_serve.prompts.folding import fold
from prompt_serve.prompts.prompt_file import Prompt, from_bytes, to_bytes
from prompt_serve.prompts.quantized_tensor import QuantizedTensor
from prompt_serve.scoring import unit
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import make_config
from prompt_serve.training.data.features import FeatureSet
from prompt_serve.training.loop import Fitted, fit
from prompt_serve.training.methods.base import PromptLearner, StepInfo, StepOutput
from prompt_serve.training.methods.dip_losses import density, tail
from prompt_serve.training.methods.information_density import information_density
from prompt_serve.types import BackboneRef
from tests.training.learners import learner_of

NAMES = ("cat", "dog", "horse", "zebra crossing")
WORDS = torch.randn(4, 512, generator=torch.Generator().manual_seed(5))


def learner(words: Tensor = WORDS, **settings: Any) -> PromptLearner:
    return learner_of(settings, words, n_classes=4)


def context_of(made: PromptLearner) -> Tensor:
    context = made.contexts().text.context
    assert context is not None
    return context


def through_a_file(made: PromptLearner) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The folded context of what a file of ``made`` holds."""
    prompt = Prompt(
        name="task",
        method="qcoop",
        class_names=NAMES,
        templates=("a photo of a {}.",),
        backbone=BackboneRef(
            id="b", fingerprint="0" * 64, text_width=512, embed_dim=8, context_length=77
        ),
        probe=np.zeros(4, np.float16),
        text=made.encodings().text,
    )
    text = from_bytes(to_bytes(prompt)).text
    assert isinstance(text, Dense | LowRank)
    return fold(text, WORDS.numpy())


def moved(made: PromptLearner, steps: int = 60, rate: float = 0.1) -> PromptLearner:
    """After some updates towards another context."""
    target = torch.randn(WORDS.shape, generator=torch.Generator().manual_seed(6)).exp()
    optimizer = torch.optim.SGD(made.parameters(), lr=rate)
    for step in range(steps):
        optimizer.zero_grad()
        (context_of(made) - target).square().sum().backward()  # type: ignore[no-untyped-call]  # torch
        optimizer.step()
        made.after_update(StepInfo(step=step, steps=steps, epoch=0, epochs=1))
    return made


# --- codebooks ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "payload_bytes"),
    [
        ({"method": "qcoop"}, 260),
        ({"method": "qcoop", "bits": 2}, 520),
        ({"method": "qcoop", "bits": 4}, 1_056),
        ({"method": "qcoop", "bits": 8}, 2_560),
        ({"method": "qcoop", "quantization": "ptq", "bits": 4}, 1_056),
        # 516 numbers: p_a in one byte, p_b in 64, and a codebook of two numbers for each.
        ({"method": "dip", "bits": 1}, 1 + 4 + 64 + 4),
        # At more bits p_a's four numbers are smaller in float16 than with a codebook.
        ({"method": "dip", "bits": 2}, 8 + 128 + 8),
        ({"method": "dip", "bits": 4}, 8 + 256 + 32),
        ({"method": "dip", "bits": 8}, 1_032),
    ],
)
def test_sizes_are_the_papers(settings: dict[str, Any], payload_bytes: int) -> None:
    encoding = learner(**settings).encodings().text
    assert encoding is not None
    assert sum(tensor.nbytes for tensor in encoding.tensors().values()) == payload_bytes


def test_qcoop_has_one_bit_unless_told_otherwise() -> None:
    encoding = learner(method="qcoop").encodings().text
    assert isinstance(encoding, Dense)
    assert isinstance(encoding.context, QuantizedTensor)
    assert encoding.context.bits == 1
    assert describe(encoding) == "codebook"


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_qat_trains_on_what_its_file_folds_to(bits: int) -> None:
    made = moved(learner(method="qcoop", bits=bits))
    assert (context_of(made).detach().numpy() == through_a_file(made)).all()


def test_factors_of_one_bit_fold_to_what_they_were_trained_as() -> None:
    made = moved(learner(method="dip", bits=1, init_std=0.3), rate=1e-4)
    # The same float32 product and sum, by torch and by numpy.
    np.testing.assert_allclose(context_of(made).detach(), through_a_file(made), atol=1e-6)


def test_ptq_trains_on_plain_numbers_and_quantizes_them_at_the_end() -> None:
    plain, ptq = moved(learner(method="coop")), moved(learner(method="qcoop", quantization="ptq"))
    assert torch.equal(context_of(plain), context_of(ptq))
    assert len(np.unique(through_a_file(ptq))) == 2


def test_the_log_counts_new_codebooks() -> None:
    made = moved(learner(method="qcoop", bits=2, recluster_interval=10))
    metrics = made.log_metrics()
    assert metrics["reclusterings"] >= 1
    assert metrics["code_divergence"] >= 0.0
    assert learner(method="coop").log_metrics() == {}
    fresh = learner(method="qcoop", bits=2, recluster_interval=10)
    fresh.load_state_dict(made.state_dict())
    assert fresh.log_metrics() == metrics
    assert torch.equal(context_of(fresh), context_of(made))


# --- DIP's losses ---------------------------------------------------------------------------


def test_density_and_tail_are_sums_of_singular_values() -> None:
    u, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    v, _ = torch.linalg.qr(torch.randn(9, 4, generator=torch.Generator().manual_seed(1)))
    vectors = u @ torch.diag(torch.tensor([5.0, 3.0, 1.5, 0.5])) @ v.T
    for k, share in enumerate(information_density(vectors), start=1):
        assert float(density(vectors, k)) == pytest.approx(share, abs=1e-5)
    assert float(tail(vectors)) == pytest.approx(2 * 3 + 3 * 1.5 + 4 * 0.5, abs=1e-4)
    assert float(tail(vectors, 2)) == pytest.approx(3 * 1.5 + 4 * 0.5, abs=1e-4)
    both = torch.stack([vectors, 2 * vectors])
    assert float(tail(both, 1)) == pytest.approx((2.0 + 4.0) / 2, abs=1e-4)


def step_of(context: Tensor) -> StepOutput:
    logits = (context @ torch.linspace(-1, 1, context.shape[-1], dtype=context.dtype))[None]
    return StepOutput(
        logits=logits,
        labels=torch.tensor([1]),
        class_features=context,
        image_features=context,
        logit_scale=1.0,
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "dip-alg1", "id_weight": 3.0},
        {"method": "dip-alg1", "id_weight": 3.0, "id_k": 2},
        {"method": "dip-alg2", "tail_weight": 0.5},
        {"method": "dip-alg2", "tail_weight": 0.5, "tail_k": 1},
    ],
)
def test_gradients_of_the_losses_are_finite_differences(settings: dict[str, Any]) -> None:
    words = WORDS[:, :6].double()
    made = learner(words=words, **settings).double()
    (vectors,) = made.parameters()
    made.backward(step_of(context_of(made)))
    assert vectors.grad is not None
    for place in np.ndindex(4, 6):
        losses = []
        for change in (1e-6, -1e-6):
            with torch.no_grad():
                vectors[place] += change
                losses.append(float(made.loss(step_of(context_of(made)))))
                vectors[place] -= change
        expected = (losses[0] - losses[1]) / 2e-6
        assert float(vectors.grad[place]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("method", ["dip-alg1", "dip-alg2"])
@pytest.mark.parametrize(
    "words",
    [WORDS[[0, 1, 2, 0]], torch.eye(4, 8), torch.zeros(4, 8)],
    ids=["a word twice", "equal singular values", "nothing"],
)
def test_gradients_are_finite_where_singular_values_meet_or_vanish(
    method: str, words: Tensor
) -> None:
    made = learner(words=words, method=method)
    made.backward(step_of(context_of(made)))
    assert all(torch.isfinite(p.grad).all() for p in made.parameters() if p.grad is not None)


def test_a_singular_value_of_zero_is_left_at_zero() -> None:
    """A word twice: no gradient may tear the two apart, whichever way rounding points."""
    vectors = WORDS[[0, 1, 2, 0]].clone().requires_grad_()
    tail(vectors).backward()  # type: ignore[no-untyped-call]  # torch
    assert vectors.grad is not None
    # Gradients are of the order of one; a subgradient at zero would differ by 4 / sqrt(2).
    assert float((vectors.grad[0] - vectors.grad[3]).norm()) < 1e-3


def test_weights_are_the_methods_own_unless_given() -> None:
    assert make_config(method="dip-alg1").own()["id_weight"] == 1.0
    assert make_config(method="dip-alg2").own()["tail_weight"] == 0.01
    assert make_config(method="dip-alg1", id_weight=0.0).own()["id_weight"] == 0.0


# --- noise ----------------------------------------------------------------------------------


def test_noise_has_the_spread_asked_for_and_falls_on_training_only() -> None:
    made = learner(method="coop", noise_std=0.25)
    noise = torch.stack([context_of(made.train()).detach() - WORDS for _ in range(50)])
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.25 * 4 / noise.numel() ** 0.5)
    assert float(noise.std()) == pytest.approx(0.25, rel=0.01)
    assert not torch.equal(noise[0], noise[1])
    assert torch.equal(context_of(made.eval()), WORDS)
    assert (through_a_file(made) == WORDS.numpy().astype(np.float16)).all()


def test_noise_repeats_with_the_seed_and_leaves_the_gradient_alone() -> None:
    draws = {
        seed: context_of(learner(method="coop", noise_std=0.1, seed=seed).train()).detach()
        for seed in (1, 2)
    }
    again = learner(method="coop", noise_std=0.1, seed=1).train()
    torch.rand(100)
    context = context_of(again)
    assert torch.equal(context, draws[1])
    assert not torch.equal(draws[1], draws[2])
    context.sum().backward()  # type: ignore[no-untyped-call]  # torch
    assert all((p.grad == 1.0).all() for p in again.parameters() if p.grad is not None)


# --- learning -------------------------------------------------------------------------------


def made_up_features(rng: np.random.Generator, n: int, e: int) -> FeatureSet:
    labels = np.arange(n) % 4
    features = rng.normal(size=(4, 1, e))[labels] + 0.3 * rng.normal(size=(n, 1, e))
    return FeatureSet(features=unit(features.astype(np.float32)), labels=labels)


def learned(backbone: Backbone, train: FeatureSet, val: FeatureSet | None, **kw: Any) -> Fitted:
    rate = kw.pop("rate", 1.0)
    config = make_config(epochs=8, **kw)
    return fit(backbone, NAMES, train, val, config, learning_rate=rate)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "qcoop", "bits": 1},
        {"method": "qcoop", "bits": 4, "recluster_interval": 2},
        {"method": "qcoop", "quantization": "ptq", "bits": 4},
        {"method": "dip", "bits": 1, "init_std": 0.3, "rate": 10.0},
        {"method": "dip-alg1"},
        {"method": "dip-alg2"},
        {"method": "coop", "noise_std": 0.01},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_the_loss_falls_and_does_so_again(
    tiny_backbone: Backbone, rng: np.random.Generator, settings: dict[str, Any]
) -> None:
    train = made_up_features(rng, 32, 24)
    fitted = learned(tiny_backbone, train, None, **settings)
    losses = [record.loss for record in fitted.history]
    assert min(losses[-3:]) < losses[0] - 0.01
    again = learned(tiny_backbone, train, train, **settings)
    for a, b in zip(fitted.history, again.history, strict=True):
        assert (a.loss, a.facts) == (b.loss, b.facts)
