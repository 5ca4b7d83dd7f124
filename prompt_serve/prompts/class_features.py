"""Compute the class features of a prompt: fold, lay out sequences, fill in vectors, encode.

    prompt -> context (M, D) -> plan (C, S) -> sequences (C, S, D) -> class features (C, E)

Training and the service share this path and differ only in the encoder (PyTorch or ONNX Runtime).
Classes are encoded in chunks of similar length, so that memory stays bounded at 100,000 classes and
no chunk is longer than its longest name.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from prompt_serve.errors import PromptUnsupported
from prompt_serve.prompts.encodings import Conditional
from prompt_serve.prompts.folding import fold_image, fold_text
from prompt_serve.prompts.prompt_file import Prompt
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.prompts.sequences import (
    SequencePlan,
    Sequences,
    assemble,
    plan_sequences,
    template_ids,
)
from prompt_serve.prompts.tokenizer import Tokenizer
from prompt_serve.scoring import unit
from prompt_serve.types import FloatArray, IntArray

CHUNK_CLASSES = 256

EncodeText = Callable[[Sequences], FloatArray]  # sequences of C classes -> (C, E), unit length


@dataclass(frozen=True, kw_only=True)
class TextSide:
    """Parts of a backbone that class features need besides the text tower."""

    tokenizer: Tokenizer
    token_embedding: FloatArray  # (V, D), may be memory-mapped
    context_length: int  # longest sequence of the text tower, in tokens
    embed_dim: int  # E
    causal: bool  # False: the tower expects sequences padded to the context length


def class_features(prompt: Prompt, side: TextSide, encode_text: EncodeText) -> FloatArray:
    """Compute the class features of a prompt.

    With several templates, their unit features are averaged and scaled to unit length again (CLIP's
    ensemble, Radford et al. 2021, section 3.1.4).

    Args:
        prompt: prompt with C classes.
        side: tokenizer and token embeddings of the backbone.
        encode_text: text encoder of the backbone.

    Returns:
        (C, E) class features, unit length along E.

    Raises:
        PromptUnsupported: the class features depend on the image (CoCoOp).
        PromptTooLong, PromptFileInvalid: the names do not fit the text tower or the template.
    """
    if prompt.classes is not None:
        return prompt.classes.class_features()[0]
    if isinstance(prompt.text, Conditional):
        raise PromptUnsupported(
            f"Prompt {prompt.name!r} (method {prompt.method!r}) has different class features for "
            f"every image, so it can be trained and evaluated, but not served. "
            f"Train it with method 'coop' or 'dip' instead."
        )
    per_template = (
        template_features(prompt, template, side, encode_text) for template in prompt.templates
    )
    total = next(per_template)
    if len(prompt.templates) == 1:
        return total
    for features in per_template:  # one at a time: a prompt may have any number of templates
        total = total + features
    return unit(total / np.float32(len(prompt.templates)))


def template_features(
    prompt: Prompt,
    template: str,
    side: TextSide,
    encode_text: EncodeText,
    text: PromptVectors[FloatArray] | None = None,
) -> FloatArray:
    """Compute the class features (C, E) of one template.

    Args:
        prompt: prompt with C classes.
        template: one of the prompt's templates.
        side: tokenizer and token embeddings of the backbone.
        encode_text: text encoder of the backbone.
        text: vectors to use instead of the prompt's folded text branch.
    """
    vectors = folded_text(prompt, template, side) if text is None else text
    context = vectors.context  # (M, D), or (C, M, D)
    plan = plan_sequences(
        side.tokenizer,
        prompt.class_names,
        template,
        context_length=side.context_length,
        n_ctx=None if context is None else context.shape[-2],
        class_position=prompt.class_position,
        class_specific=context is not None and context.ndim == 3,
        causal=side.causal,
    )
    features = np.empty((len(prompt.class_names), side.embed_dim), dtype=np.float32)
    for rows, chunk in _chunks(plan, causal=side.causal):
        own = context[rows] if context is not None and context.ndim == 3 else context
        features[rows] = encode_text(
            assemble(
                chunk,
                side.token_embedding,
                own,
                deeper=vectors.deeper,
                keys_values=vectors.keys_values,
            )
        )
    return features


def folded_text(prompt: Prompt, template: str, side: TextSide) -> PromptVectors[FloatArray]:
    """Fold the text branch of a prompt."""
    words = template_ids(side.tokenizer, template)
    return fold_text(prompt.text, np.asarray(side.token_embedding[words], dtype=np.float32))


def folded_image(prompt: Prompt, side: TextSide) -> PromptVectors[FloatArray]:
    """Fold the image branch of a prompt; the result is empty if nothing was learned."""
    return fold_image(prompt.image, folded_text(prompt, prompt.templates[0], side))


def _chunks(plan: SequencePlan, *, causal: bool) -> Iterator[tuple[IntArray, SequencePlan]]:
    """Split a plan into chunks of similar length; for a causal tower, cut after the last EOT."""
    order = np.argsort(plan.eot, kind="stable")
    for start in range(0, len(order), CHUNK_CLASSES):
        rows = order[start : start + CHUNK_CLASSES]
        length = int(plan.eot[rows].max()) + 1 if causal else plan.suffix.shape[1]
        yield rows, replace(plan, suffix=plan.suffix[rows, :length], eot=plan.eot[rows])
