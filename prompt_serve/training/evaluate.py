"""Class features and accuracy of a prompt, always from the content of its prompt file.

Nothing here depends on a learner: the numbers went through float16, ``folding`` and ``sequences``,
the same code that serving runs.
"""

import numpy as np
import torch
from torch.nn import functional as F

from prompt_serve.prompts.class_features import class_features, folded_image, template_features
from prompt_serve.prompts.encodings import Conditional
from prompt_serve.prompts.prompt_file import Prompt
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.prompts.quantized_tensor import StoredTensor, dequantize
from prompt_serve.scoring import class_logits
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.data.features import FeatureSet
from prompt_serve.training.data.image_batches import ImageData
from prompt_serve.training.data.pixels import PixelSet
from prompt_serve.training.without_torch.evaluation import Evaluation, check_backbone, evaluate
from prompt_serve.types import FloatArray

IMAGES_AT_ONCE = 32  # batch size of the prompted image tower


def class_features_of(prompt: Prompt, backbone: Backbone) -> FloatArray:
    """Fold, assemble and encode a prompt with PyTorch; return (C, E) features of unit length.

    Several templates (zero-shot) are averaged and scaled to unit length again.

    Raises:
        BackboneMismatch: the prompt was learned on another backbone.
        PromptUnsupported: its class features depend on the image.
        PromptFileInvalid: it contradicts the backbone's tokenizer or towers.
        PromptTooLong: a class name does not fit.
    """
    check_backbone(prompt, backbone.ref, backbone.former_fingerprint)
    return class_features(prompt, backbone.text_side, backbone.encode_text)


def probed_features(prompt: Prompt, backbone: Backbone) -> FloatArray:
    """Return the class features (C, E) from which a prompt's probe is computed.

    Same as ``class_features_of``; of a conditional prompt, the features without its network.
    """
    check_backbone(prompt, backbone.ref, backbone.former_fingerprint)
    if isinstance(prompt.text, Conditional):
        return template_features(
            prompt, prompt.templates[0], backbone.text_side, backbone.encode_text
        )
    return class_features(prompt, backbone.text_side, backbone.encode_text)


def prompt_logits(prompt: Prompt, backbone: Backbone, images: ImageData) -> FloatArray:
    """Return logits (N, C) of plain views, before the temperature.

    Args:
        prompt: as read from a file.
        backbone: the one the prompt was learned on.
        images: features; pixels where the prompt has an image branch.

    Raises:
        BackboneMismatch, PromptFileInvalid, PromptTooLong: see ``class_features_of``.
        BackboneUnsupported: the prompt has an image branch, but the image tower cannot be prompted.
    """
    return logits_of(prompt, backbone, image_features_of(prompt, backbone, images))


def logits_of(prompt: Prompt, backbone: Backbone, features: FloatArray) -> FloatArray:
    """Return logits (N, C) of the features (N, E) that ``image_features_of`` the prompt returns."""
    if isinstance(prompt.text, Conditional):
        return _conditional_logits(prompt, prompt.text, backbone, features)
    classes = class_features_of(prompt, backbone)
    return class_logits(features, classes, backbone.logit_scale)


def evaluate_prompt(prompt: Prompt, backbone: Backbone, images: ImageData) -> Evaluation:
    """Return the accuracy of a prompt on plain views; see ``prompt_logits``."""
    features = image_features_of(prompt, backbone, images)
    return evaluate(logits_of(prompt, backbone, features), images.labels, prompt, features)


@torch.inference_mode()
def image_features_of(prompt: Prompt, backbone: Backbone, images: ImageData) -> FloatArray:
    """Return features (N, E) of plain views, by the image tower with the prompt's vectors if any.

    Raises:
        BackboneUnsupported: the prompt has an image branch, but the image tower cannot be prompted.
    """
    if isinstance(images, FeatureSet):
        if prompt.image is not None:
            raise TypeError("A prompt with an image branch is evaluated on pixels, not features.")
        return images.plain
    return _prompted_features(prompt, backbone, images)


def _prompted_features(prompt: Prompt, backbone: Backbone, images: PixelSet) -> FloatArray:
    branch = folded_image(prompt, backbone.text_side)
    device = backbone.device
    vectors = PromptVectors(
        context=None if branch.context is None else torch.from_numpy(branch.context).to(device),
        deeper=tuple(torch.from_numpy(v).to(device) for v in branch.deeper),
        keys_values=tuple(torch.from_numpy(v).to(device) for v in branch.keys_values),
    )
    features = []
    for first in range(0, len(images), IMAGES_AT_ONCE):
        pixels = torch.from_numpy(images.plain(first, IMAGES_AT_ONCE))
        normalized = backbone.normalize(pixels.to(device))  # (B, 3, S, S)
        features.append(backbone.image_tower(normalized, vectors).cpu().numpy())
    return np.concatenate(features)


@torch.inference_mode()
def _conditional_logits(
    prompt: Prompt, text: Conditional, backbone: Backbone, images: FloatArray
) -> FloatArray:
    """Return logits (N, C) of CoCoOp, which runs the text tower for every image."""

    def tensor(stored: StoredTensor) -> torch.Tensor:
        return torch.from_numpy(dequantize(stored).astype(np.float32))

    hidden = F.relu(F.linear(torch.from_numpy(images), tensor(text.w_1), tensor(text.b_1)))
    shifts = F.linear(hidden, tensor(text.w_2), tensor(text.b_2)).numpy()  # (N, D)
    context = dequantize(text.context).astype(np.float32)
    side, template = backbone.text_side, prompt.templates[0]
    rows = []
    for image, shift in zip(images, shifts, strict=True):
        branch = PromptVectors(context=context + shift)
        classes = template_features(prompt, template, side, backbone.encode_text, branch)
        rows.append(class_logits(image[np.newaxis], classes, backbone.logit_scale))
    return np.concatenate(rows)
