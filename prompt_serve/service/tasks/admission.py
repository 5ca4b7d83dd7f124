"""Which prompts this service takes, and their class features through the bundle's text encoder."""

from prompt_serve.bundle import Bundle
from prompt_serve.errors import BackboneMismatch, ProbeMismatch, PromptUnsupported
from prompt_serve.prompts.class_features import EncodeText, class_features
from prompt_serve.prompts.probe import TOLERANCE, probe_difference
from prompt_serve.prompts.prompt_file import Prompt
from prompt_serve.types import FloatArray


def verified_class_features(prompt: Prompt, bundle: Bundle, encode_text: EncodeText) -> FloatArray:
    """``class_features``, only for a prompt that belongs here and means the same here.

    Raises:
        BackboneMismatch: it was learned on another backbone.
        PromptUnsupported: it has parts that are not served.
        ProbeMismatch: the features are not those it was learned with.
    """
    check_backbone(prompt, bundle)
    check_servable(prompt)
    features = class_features(prompt, bundle.text_side, encode_text)
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


def check_servable(prompt: Prompt) -> None:
    """Raise PromptUnsupported where a prompt has parts that this service cannot answer with yet."""
    if prompt.image is not None:
        raise PromptUnsupported(
            f"Prompt {prompt.name!r} (method {prompt.method!r}) has learned vectors for the image "
            f"tower, which this service does not run yet. Evaluate it with prompt-serve evaluate, "
            f"or train a text prompt, such as method 'dip'."
        )
