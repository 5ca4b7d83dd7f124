"""From learned contexts to a finished prompt: draft, calibrate, measure."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from prompt_serve import __version__
from prompt_serve.calibration import calibrate
from prompt_serve.closed_form.cross_validation import OutOfFold
from prompt_serve.closed_form.learn import LearnedClasses
from prompt_serve.prompts.probe import probe
from prompt_serve.prompts.prompt_file import Prompt, from_bytes, to_bytes
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import TrainConfig
from prompt_serve.training.data.image_batches import ImageData
from prompt_serve.training.evaluate import evaluate_prompt, probed_features, prompt_logits
from prompt_serve.training.loop import Fitted
from prompt_serve.training.without_torch.evaluation import ZeroShotComparison, metrics_of
from prompt_serve.training.without_torch.outcome import add_class_vectors

# Shared settings that matter where nothing is learned step by step.
CLOSED_FORM_SETTINGS = ("method", "shots", "seed", "fewer_shots_ok", "template", "unknown_share")


def draft_prompt(
    backbone: Backbone,
    class_names: tuple[str, ...],
    config: TrainConfig,
    fitted: Fitted | None,
    name: str,
    learned: LearnedClasses | None = None,
) -> Prompt:
    """Return what was learned as a prompt, without probe and metrics.

    Its temperature is set by ``finish_prompt``, except for class vectors, which bring their own.

    Args:
        backbone: frozen CLIP.
        class_names: C names.
        config: settings.
        fitted: outcome of the run; None for a method that learns nothing.
        name: of the prompt, kept in its file.
        learned: class vectors of a method in closed form.
    """
    templates = (fitted.template,) if fitted else config.templates or (config.template,)
    training = config.to_dict()
    if fitted:
        training["learning_rate"] = fitted.learning_rate
    if learned:
        training = {name: training[name] for name in (*CLOSED_FORM_SETTINGS, *config.own())}
    prompt = Prompt(
        name=name,
        method=config.method,
        class_names=class_names,
        templates=templates,
        backbone=backbone.ref,
        probe=np.zeros(len(class_names), dtype=np.float16),  # set by ``finish_prompt``
        class_position=config.settings.placement().class_position if fitted else "end",
        text=fitted.encodings.text if fitted else None,
        image=fitted.encodings.image if fitted else None,
        training=training,
        tool_version=__version__,
    )
    return add_class_vectors(prompt, learned, config.unknown_share) if learned else prompt


def finish_prompt(
    draft: Prompt,
    backbone: Backbone,
    config: TrainConfig,
    held_out: Mapping[str, ImageData],
    images: Mapping[str, int],
    held: OutOfFold | None = None,
    cross_validation: ZeroShotComparison | None = None,
) -> tuple[Prompt, dict[str, ZeroShotComparison]]:
    """Calibrate and measure a draft; return the finished prompt and its comparisons by part.

    Args:
        draft: from ``draft_prompt``.
        backbone: the one it was learned on.
        config: settings.
        held_out: plain views of the parts "val" and "test", where they exist.
        images: number of images used, by part.
        held: scores of held-out training images, to calibrate on where there is no "val".
        cross_validation: comparison on held-out training images, if there is one.
    """
    # Through the file's bytes on purpose: what is measured is what will be served.
    stored = from_bytes(to_bytes(draft))
    if stored.classes is None:  # class vectors bring their own temperature
        stored = _calibrated(stored, backbone, config, held_out.get("val"), held)
    validated = {} if cross_validation is None else {"cross-validation": cross_validation}
    comparisons = {**validated, **_compare(backbone, stored, held_out)}
    finished = replace(
        stored,
        probe=probe(probed_features(stored, backbone)),
        metrics=metrics_of(comparisons, images),
    )
    return finished, comparisons


def _calibrated(
    prompt: Prompt,
    backbone: Backbone,
    config: TrainConfig,
    val: ImageData | None,
    held: OutOfFold | None,
) -> Prompt:
    if not (config.calibrate or config.unknown_share):
        return prompt
    if val is not None:
        logits, labels = prompt_logits(prompt, backbone, val), val.labels
    elif held is not None:
        logits, labels = held.logits.astype(np.float32), held.labels
    else:
        return prompt
    found = calibrate(logits, labels, unknown_share=config.unknown_share)
    temperature = found.temperature if config.calibrate else 1.0
    return replace(prompt, temperature=temperature, unknown_below=found.unknown_below)


def _compare(
    backbone: Backbone, prompt: Prompt, held_out: Mapping[str, ImageData]
) -> dict[str, ZeroShotComparison]:
    zero_shot = zero_shot_prompt(prompt)
    return {
        part: ZeroShotComparison(
            zero_shot=evaluate_prompt(zero_shot, backbone, images),
            prompt=evaluate_prompt(prompt, backbone, images),
        )
        for part, images in held_out.items()
    }


def zero_shot_prompt(prompt: Prompt) -> Prompt:
    """Return the prompt without learning: the template that learning started from."""
    if not prompt.encodings:
        return prompt
    template = prompt.training.get("template", TrainConfig.template)
    return replace(
        prompt,
        text=None,
        image=None,
        classes=None,
        sketch=None,
        unlike_below=-1.0,
        templates=(template,),
        class_position="end",
        temperature=1.0,
        unknown_below=0.0,
    )
