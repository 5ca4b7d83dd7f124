"""Baselines for prompts: hand-written templates and adapters on image features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from prompt_serve.errors import ConfigInvalid
from prompt_serve.prompts.prompt_file import Prompt
from prompt_serve.research.adapters import (
    Adapter,
    clip_adapter,
    evaluate_adapter,
    linear_probe,
    tip_adapter,
    tip_adapter_f,
)
from prompt_serve.training.baselines.templates import DIVERSE_TEMPLATES
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.config import TrainConfig
from prompt_serve.training.data.dataset import ImageSet, Split
from prompt_serve.training.data.features import FeatureCache, FeatureSet, image_features
from prompt_serve.training.data.few_shot import few_shot
from prompt_serve.training.evaluate import class_features_of, evaluate_prompt
from prompt_serve.training.progress import SILENT, Progress
from prompt_serve.training.without_torch.evaluation import Evaluation
from prompt_serve.types import FloatArray


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Evaluation of one baseline: one row of the table."""

    name: str
    learned_numbers: int = 0
    settings: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, Evaluation]  # "val", "test" -> evaluation; only existing parts


def measure_baselines(
    backbone: Backbone,
    dataset: Split,
    config: TrainConfig,
    *,
    cache: FeatureCache | None = None,
    workers: int = 4,
    progress: Progress = SILENT,
) -> tuple[Baseline, ...]:
    """Evaluate templates and adapters on the images that ``train_prompt`` samples with ``config``.

    Args:
        backbone: frozen CLIP.
        dataset: all images.
        config: of method "zero-shot"; its shots, seed, views and templates are used.
        cache: cache of image features; None: no cache.
        workers: number of threads that decode images.
        progress: shows progress bars.

    Raises:
        ConfigInvalid: there are no validation images to select the adapters' settings on.
    """
    drawn = few_shot(dataset, shots=config.shots, seed=config.seed)
    if drawn.val is None:
        raise ConfigInvalid(
            "The adapters select their settings on validation images, and there are none left. "
            "Use fewer shots, or add images."
        )

    def features(part: str, images: ImageSet, views: int = 0) -> FeatureSet:
        with progress.bar(f"encoding {part}", len(images), "img") as advance:
            return image_features(
                images,
                backbone,
                views=views,
                seed=config.seed,
                cache=cache,
                workers=workers,
                advance=advance,
            )

    held_out = {part: features(part, images) for part, images in drawn.parts.items()}
    train = features("train", drawn.train, config.views) if config.views else held_out["train"]
    del held_out["train"]
    templates = config.templates or (config.template,)
    plain = _templates(backbone, dataset.class_names, templates)
    rows = [
        Baseline(
            name=name, parts={p: evaluate_prompt(prompt, backbone, f) for p, f in held_out.items()}
        )
        for name, prompt in (
            ("zero-shot", plain),
            ("ensemble", _templates(backbone, dataset.class_names, DIVERSE_TEMPLATES)),
        )
    ]
    classes = class_features_of(plain, backbone)
    adapters = fit_adapters(train, held_out["val"], classes, backbone.logit_scale, seed=config.seed)
    return (
        *rows,
        *(
            Baseline(
                name=adapter.name,
                learned_numbers=adapter.learned_numbers,
                settings=adapter.settings,
                parts={part: evaluate_adapter(adapter, f) for part, f in held_out.items()},
            )
            for adapter in adapters
        ),
    )


def fit_adapters(
    train: FeatureSet,
    val: FeatureSet,
    class_features: FloatArray,
    logit_scale: float,
    *,
    seed: int = 1,
) -> tuple[Adapter, ...]:
    """Fit every adapter, with settings selected on validation images."""
    return (
        linear_probe(train, val, len(class_features)),
        clip_adapter(train, val, class_features, logit_scale, seed=seed),
        tip_adapter(train, val, class_features, logit_scale),
        tip_adapter_f(train, val, class_features, logit_scale, seed=seed),
    )


def _templates(
    backbone: Backbone, class_names: tuple[str, ...], templates: Sequence[str]
) -> Prompt:
    return Prompt(
        name="zero-shot",
        method="zero-shot",
        class_names=class_names,
        templates=tuple(templates),
        backbone=backbone.ref,
        probe=np.zeros(len(class_names), dtype=np.float16),  # never written
    )
