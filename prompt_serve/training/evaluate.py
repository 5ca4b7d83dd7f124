"""Class features of a prompt and its accuracy: always from what the prompt file holds.

Nothing here sees a learner. What is evaluated went through float16, ``fold`` and ``assemble``, the
same code that serving runs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from prompt_serve.assembly import SequencePlan, assemble, plan_sequences, template_ids
from prompt_serve.errors import BackboneMismatch
from prompt_serve.folding import fold
from prompt_serve.prompt_file import Prompt
from prompt_serve.scoring import class_logits, unit
from prompt_serve.training.backbone import Backbone
from prompt_serve.training.features import FeatureSet
from prompt_serve.types import FloatArray

CLASSES_AT_ONCE = 1024  # bounds the memory that the text tower takes


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Plain top-1 accuracy."""

    images: int
    accuracy: float  # 0..1, over all images
    per_class: tuple[float | None, ...]  # of each label; None where it has no image

    def to_dict(self) -> dict[str, Any]:
        """For a prompt file; four digits, since more would say nothing about a few images."""
        return {
            "images": self.images,
            "accuracy": round(self.accuracy, 4),
            "per_class": [None if a is None else round(a, 4) for a in self.per_class],
        }


def class_features_of(prompt: Prompt, backbone: Backbone) -> FloatArray:
    """Fold, assemble and encode a prompt with PyTorch: (C, E) class features of unit length.

    Several templates (zero-shot) are averaged and scaled to unit length again.

    Raises:
        BackboneMismatch: it was learned on another backbone.
        PromptFileInvalid: it contradicts the backbone's tokenizer.
        PromptTooLong: a class name does not fit.
    """
    if prompt.backbone.fingerprint != backbone.ref.fingerprint:
        raise BackboneMismatch(
            f"Prompt {prompt.name!r} was learned on {prompt.backbone.id!r} "
            f"({prompt.backbone.fingerprint[:12]}), this is {backbone.id!r} "
            f"({backbone.ref.fingerprint[:12]}). Train it again on this backbone."
        )
    embedding = backbone.token_embedding.cpu().numpy()
    if prompt.text is None:
        per_template = [
            _encode(backbone, _plan(prompt, template, backbone, None), embedding, None)
            for template in prompt.templates
        ]
        mean: FloatArray = np.mean(per_template, axis=0, dtype=np.float32)
        return unit(mean) if len(per_template) > 1 else per_template[0]
    words = embedding[template_ids(backbone.tokenizer, prompt.templates[0])]
    context = fold(prompt.text, words)
    plan = _plan(prompt, prompt.templates[0], backbone, context)
    return _encode(backbone, plan, embedding, context)


def evaluate(class_features: FloatArray, images: FeatureSet) -> Evaluation:
    """Accuracy of class features (C, E) on plain views (N, 1, E); equal scores: the first class."""
    predicted = class_logits(images.plain, class_features, 1.0).argmax(axis=1)
    right = predicted == images.labels
    return Evaluation(
        images=len(images),
        accuracy=float(right.mean()),
        per_class=tuple(
            float(right[of_class].mean()) if (of_class := images.labels == label).any() else None
            for label in range(len(class_features))
        ),
    )


def _plan(
    prompt: Prompt, template: str, backbone: Backbone, context: FloatArray | None
) -> SequencePlan:
    return plan_sequences(
        backbone.tokenizer,
        prompt.class_names,
        template,
        context_length=backbone.ref.context_length,
        n_ctx=None if context is None else context.shape[-2],
        class_position=prompt.class_position,
        class_specific=context is not None and context.ndim == 3,
        causal=backbone.text_tower.causal,
    )


@torch.inference_mode()
def _encode(
    backbone: Backbone, plan: SequencePlan, embedding: FloatArray, context: FloatArray | None
) -> FloatArray:
    sequences = assemble(plan, embedding, context)
    device = backbone.device
    prefix = torch.from_numpy(sequences.prefix).to(device)
    features = []
    for first in range(0, len(sequences.eot), CLASSES_AT_ONCE):
        some = slice(first, first + CLASSES_AT_ONCE)
        suffix = torch.from_numpy(sequences.suffix[some]).to(device)
        eot = torch.from_numpy(sequences.eot[some]).to(device)
        features.append(backbone.text_tower(prefix, suffix, eot))
    encoded: FloatArray = torch.cat(features).cpu().numpy()
    return encoded
