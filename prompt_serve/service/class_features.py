"""A prompt -> its class features, through the bundle's text encoder. Done once a prompt.

``fold`` the learned numbers, lay out one sequence a class, fill in the vectors, encode. Classes go
through the encoder in chunks of similar length: memory stays bounded at 100,000 classes, and no
chunk is longer than its longest name.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from prompt_serve.assembly import SequencePlan, Sequences, assemble, plan_sequences, template_ids
from prompt_serve.bundle import Bundle
from prompt_serve.errors import BackboneMismatch, ProbeMismatch
from prompt_serve.folding import fold
from prompt_serve.probe import TOLERANCE, probe_difference
from prompt_serve.prompt_file import Prompt
from prompt_serve.scoring import unit
from prompt_serve.types import FloatArray, IntArray

CHUNK_CLASSES = 256

EncodeText = Callable[[Sequences], FloatArray]


def class_features(prompt: Prompt, bundle: Bundle, encode_text: EncodeText) -> FloatArray:
    """Class features of a prompt: (C, E), unit length.

    With several templates: the mean of their unit features, scaled to unit length again (CLIP's
    ensemble, Radford et al. 2021, section 3.1.4).

    Raises:
        PromptTooLong, PromptFileInvalid: the names do not fit the text tower or the template.
    """
    per_template = [
        _template_features(prompt, template, bundle, encode_text) for template in prompt.templates
    ]
    if len(per_template) == 1:
        return per_template[0]
    return unit(np.mean(per_template, axis=0, dtype=np.float32))


def verified_class_features(prompt: Prompt, bundle: Bundle, encode_text: EncodeText) -> FloatArray:
    """``class_features``, only for a prompt that belongs here and means the same here.

    Raises:
        BackboneMismatch: it was learned on another backbone.
        ProbeMismatch: the features are not those it was learned with.
    """
    check_backbone(prompt, bundle)
    features = class_features(prompt, bundle, encode_text)
    difference = probe_difference(prompt.probe, features)
    # Written so that NaN, which compares false, is refused.
    if not difference <= TOLERANCE:
        raise ProbeMismatch(
            f"The class features of prompt {prompt.name!r} differ by {difference:.3g} from those "
            f"it was learned with (at most {TOLERANCE:g} is rounding). Its names, template or "
            f"numbers were changed, or the bundle's text encoder was. Train it again.",
            difference=difference,
            tolerance=TOLERANCE,
        )
    return features


def check_backbone(prompt: Prompt, bundle: Bundle) -> None:
    """Raise BackboneMismatch unless the prompt was learned on the bundle's backbone."""
    learned_on, here = prompt.backbone, bundle.manifest.backbone
    same = (learned_on.fingerprint, learned_on.text_width, learned_on.embed_dim)
    if same == (here.fingerprint, here.text_width, here.embed_dim):
        return
    raise BackboneMismatch(
        f"Prompt {prompt.name!r} was learned on {learned_on.id!r} (text width "
        f"{learned_on.text_width}, fingerprint {learned_on.fingerprint[:12]}), but this server "
        f"runs {here.id!r} (text width {here.text_width}, fingerprint {here.fingerprint[:12]}). "
        f"Train it again with --backbone {here.id}.",
        learned_on=learned_on.id,
        served=here.id,
    )


def _template_features(
    prompt: Prompt, template: str, bundle: Bundle, encode_text: EncodeText
) -> FloatArray:
    manifest = bundle.manifest
    context = _context(prompt, template, bundle)
    plan = plan_sequences(
        bundle.tokenizer,
        prompt.class_names,
        template,
        context_length=manifest.backbone.context_length,
        n_ctx=None if prompt.text is None else prompt.text.n_ctx,
        class_position=prompt.class_position,
        class_specific=context is not None and context.ndim == 3,
        causal=manifest.causal_text,
    )
    features = np.empty((len(prompt.class_names), manifest.backbone.embed_dim), dtype=np.float32)
    for rows, chunk in _chunks(plan, causal=manifest.causal_text):
        own = context[rows] if context is not None and context.ndim == 3 else context
        features[rows] = encode_text(assemble(chunk, bundle.token_embedding, own))
    return features


def _context(prompt: Prompt, template: str, bundle: Bundle) -> FloatArray | None:
    if prompt.text is None:
        return None
    words = template_ids(bundle.tokenizer, template)
    return fold(prompt.text, np.asarray(bundle.token_embedding[words], dtype=np.float32))


def _chunks(plan: SequencePlan, *, causal: bool) -> Iterator[tuple[IntArray, SequencePlan]]:
    """Classes in the order of their lengths; a causal tower needs nothing behind the last EOT."""
    order = np.argsort(plan.eot, kind="stable")
    for start in range(0, len(order), CHUNK_CLASSES):
        rows = order[start : start + CHUNK_CLASSES]
        length = int(plan.eot[rows].max()) + 1 if causal else plan.suffix.shape[1]
        yield rows, replace(plan, suffix=plan.suffix[rows, :length], eot=plan.eot[rows])
