"""From learned contexts to a finished prompt: draft, calibrate, measure."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from prompt_serve import __version__
from prompt_serve.calibration import calibrate
from prompt_serve.prompts.probe import probe
from prompt_serve.prompts.prompt_file import Prompt, from_bytes, to_bytes
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import TrainConfig
from prompt_serve.training.data.image_batches import ImageData
from prompt_serve.training.evaluate import evaluate_prompt, probed_features, prompt_logits
from prompt_serve.training.loop import Fitted
from prompt_serve.training.without_torch.evaluation import ZeroShotComparison, metrics_of


def draft_prompt(
    backbone: Backbone,
    class_names: tuple[str, ...],
    config: TrainConfig,
    fitted: Fitted | None,
    name: str,
) -> Prompt:
    """Return the learned numbers as a prompt, without probe, temperature and metrics.

    Args:
        backbone: frozen CLIP.
        class_names: C names.
        config: settings.
        fitted: outcome of the run; None for a method that learns nothing.
        name: of the prompt, kept in its file.
    """
    templates = (fitted.template,) if fitted else config.templates or (config.template,)
    training = config.to_dict()
    if fitted:
        training["learning_rate"] = fitted.learning_rate
    return Prompt(
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


def finish_prompt(
    draft: Prompt,
    backbone: Backbone,
    config: TrainConfig,
    held_out: Mapping[str, ImageData],
    images: Mapping[str, int],
) -> tuple[Prompt, dict[str, ZeroShotComparison]]:
    """Calibrate and measure a draft; return the finished prompt and its comparisons by part.

    Args:
        draft: from ``draft_prompt``.
        backbone: the one it was learned on.
        config: settings.
        held_out: plain views of the parts "val" and "test", where they exist.
        images: number of images used, by part.
    """
    # Through the file's bytes on purpose: what is measured is what will be served.
    stored = _calibrated(from_bytes(to_bytes(draft)), backbone, config, held_out.get("val"))
    comparisons = _compare(backbone, stored, held_out)
    finished = replace(
        stored,
        probe=probe(probed_features(stored, backbone)),
        metrics=metrics_of(comparisons, images),
    )
    return finished, comparisons


def _calibrated(
    prompt: Prompt, backbone: Backbone, config: TrainConfig, val: ImageData | None
) -> Prompt:
    if val is None or not (config.calibrate or config.unknown_share):
        return prompt
    found = calibrate(
        prompt_logits(prompt, backbone, val), val.labels, unknown_share=config.unknown_share
    )
    temperature = found.temperature if config.calibrate else 1.0
    return replace(prompt, temperature=temperature, unknown_below=found.unknown_below)


def _compare(
    backbone: Backbone, prompt: Prompt, held_out: Mapping[str, ImageData]
) -> dict[str, ZeroShotComparison]:
    zero_shot = _zero_shot(prompt)
    return {
        part: ZeroShotComparison(
            zero_shot=evaluate_prompt(zero_shot, backbone, images),
            prompt=evaluate_prompt(prompt, backbone, images),
        )
        for part, images in held_out.items()
    }


def _zero_shot(prompt: Prompt) -> Prompt:
    """Return the prompt without learning: the template that learning started from."""
    if not prompt.encodings:
        return prompt
    template = prompt.training["template"]
    return replace(
        prompt,
        text=None,
        image=None,
        templates=(template,),
        class_position="end",
        temperature=1.0,
        unknown_below=0.0,
    )
