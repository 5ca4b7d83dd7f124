"""Decide which prompts this service accepts: same backbone, supported parts, matching probe."""

from collections.abc import Callable

from prompt_serve.bundle import Bundle
from prompt_serve.errors import BackboneMismatch, ProbeMismatch, PromptUnsupported
from prompt_serve.prompts.probe import TOLERANCE, probe_difference
from prompt_serve.prompts.prompt_file import Prompt
from prompt_serve.types import BackboneRef, FloatArray


def verified_class_features(
    prompt: Prompt, bundle: Bundle, compute: Callable[[], FloatArray]
) -> FloatArray:
    """Check a prompt, compute its class features, and compare them with the prompt's probe.

    Args:
        prompt: as read from its file.
        bundle: the backbone of this service.
        compute: returns the class features (C, E); called only if the prompt can be served here.

    Raises:
        BackboneMismatch: the prompt was learned on another backbone.
        PromptUnsupported: it has parts that are not served.
        ProbeMismatch: the features differ from those it was learned with.
    """
    check_backbone(prompt, bundle)
    check_servable(prompt, bundle)
    features = compute()
    check_probe(prompt, features)
    return features


def check_backbone(prompt: Prompt, bundle: Bundle) -> None:
    """Raise BackboneMismatch unless the prompt was learned on the bundle's backbone."""
    learned_on, served = backbone_of(prompt, bundle), bundle.manifest.backbone
    expected = (served.fingerprint, served.text_width, served.embed_dim)
    if (learned_on.fingerprint, learned_on.text_width, learned_on.embed_dim) == expected:
        return
    raise BackboneMismatch(
        f"Prompt {prompt.name!r} was learned on {learned_on.id!r} (text width "
        f"{learned_on.text_width}, fingerprint {learned_on.fingerprint[:12]}), but the backbone "
        f"that runs here is {served.id!r} (text width {served.text_width}, fingerprint "
        f"{served.fingerprint[:12]}). {_way_out(learned_on, served)}",
        learned_on=learned_on.id,
        served=served.id,
    )


def _way_out(learned_on: BackboneRef, served: BackboneRef) -> str:
    if learned_on.id != served.id:
        return f"Train it again with --backbone {served.id}."
    return (
        f"The names are equal, but weights, activation, preprocessing or tokenizer are not. If the "
        f"bundle is older than the prompt, export {served.id} again; else train the prompt again."
    )


def backbone_of(prompt: Prompt, bundle: Bundle) -> BackboneRef:
    """Return the backbone of a prompt, under its present fingerprint if the bundle has it."""
    manifest = bundle.manifest
    return prompt.backbone.current(manifest.backbone, manifest.former_fingerprint)


def check_servable(prompt: Prompt, bundle: Bundle) -> None:
    """Raise PromptUnsupported if the prompt has vectors for a tower that takes none."""
    if prompt.image is not None and bundle.manifest.image_tower is None:
        raise PromptUnsupported(
            f"Prompt {prompt.name!r} (method {prompt.method!r}) has learned vectors for the image "
            f"tower, but that of {bundle.manifest.backbone.id!r} is no plain vision transformer "
            f"and takes none. Serve it on the backbone it was learned on, such as 'embedded-vit' "
            f"or ViT-B-16, or train a text prompt, for example with method 'dip'."
        )


def check_probe(prompt: Prompt, features: FloatArray) -> None:
    """Raise ProbeMismatch unless ``features`` (C, E) match the probe of the prompt."""
    difference = probe_difference(prompt.probe, features)
    # Not "difference > TOLERANCE", which is False for NaN.
    if not difference <= TOLERANCE:
        raise ProbeMismatch(
            f"The class features of prompt {prompt.name!r} differ by {difference:.3g} from those "
            f"it was learned with; rounding accounts for at most {TOLERANCE:g}. Either its class "
            f"names, template or numbers were changed, or the bundle's text encoder was. "
            f"Train it again.",
            difference=difference,
            tolerance=TOLERANCE,
        )
