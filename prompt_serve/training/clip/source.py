"""Everything that a backbone is made of, known before its weights are read or downloaded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.tokenizer import default_bpe

from prompt_serve.errors import BackboneUnsupported
from prompt_serve.preprocess import RESAMPLING, Preprocessing
from prompt_serve.training.clip.checkpoint_file import StateDict

_RESIZE_MODES = ("shortest", "squash")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Description of a backbone.

    Args:
        id: stored in prompt files and bundles.
        name: for messages.
        model_cfg: arguments of ``open_clip.CLIP``.
        preprocess_cfg: as in open_clip; what it lacks is CLIP's.
        merges: gzipped list of merges of the tokenizer.
        read_weights: reads or downloads the weights; None for random ones.
        check_weights: raises DownloadFailed if they cannot be downloaded. Quick, so it comes before
            the towers are built, which takes minutes for the largest.
    """

    id: str
    name: str
    model_cfg: Mapping[str, Any]
    preprocess_cfg: Mapping[str, Any]
    merges: Path
    read_weights: Callable[[], StateDict] | None
    check_weights: Callable[[], object] = lambda: None


def clip_merges() -> Path:
    """Return CLIP's own list of merges."""
    return Path(default_bpe())


def supported_cfg(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``open_clip.CLIP`` in a model's configuration.

    Args:
        name: of the model, for the error.
        config: as in open_clip's ``model_configs``.

    Raises:
        BackboneUnsupported: it is not a CLIP with CLIP's own text tower and tokenizer.
    """
    text = config["text_cfg"]
    fault = ""
    if "multimodal_cfg" in config:
        fault = "is a CoCa, which has a captioning tower"
    elif text.get("hf_model_name"):
        fault = f"has a text tower of transformers ({text['hf_model_name']})"
    elif config.get("custom_text"):
        fault = "has a text tower of its own kind (custom_text)"
    elif text.get("hf_tokenizer_name"):
        fault = f"has a tokenizer of transformers ({text['hf_tokenizer_name']})"
    elif text.get("tokenizer_kwargs"):
        fault = f"changes CLIP's tokenizer ({text['tokenizer_kwargs']})"
    if fault:
        raise BackboneUnsupported(
            f"{name} {fault}; only CLIP's own text transformer and byte-pair encoding can be "
            f"prompted and exported. Take a model such as ViT-B-16/openai or ViT-L-14/openai."
        )
    # Weights are read later; nothing is downloaded for the image tower.
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    cfg = {**config, "vision_cfg": vision}
    cfg.pop("custom_text", None)
    return cfg


def preprocessing_of(name: str, size: Any, config: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing of a backbone.

    Args:
        name: of the backbone, for the error.
        size: S, or (S, S).
        config: as in open_clip; what it lacks is CLIP's.

    Raises:
        BackboneUnsupported: images are not square, or resized in another way.
    """
    height, width = size if isinstance(size, list | tuple) else (size, size)
    resize_mode = config.get("resize_mode", "shortest")
    interpolation = config.get("interpolation", "bicubic")
    fault = ""
    if height != width:
        fault = f"takes images of {width} x {height}; only square images are supported"
    elif resize_mode not in _RESIZE_MODES:
        fault = f"resizes by {resize_mode!r}; expected {' or '.join(map(repr, _RESIZE_MODES))}"
    elif interpolation not in RESAMPLING:
        fault = f"interpolates by {interpolation!r}; expected {' or '.join(map(repr, RESAMPLING))}"
    if fault:
        raise BackboneUnsupported(f"{name} {fault}.")
    return Preprocessing(
        image_size=width,
        mean=_rgb(config.get("mean", OPENAI_DATASET_MEAN)),
        std=_rgb(config.get("std", OPENAI_DATASET_STD)),
        interpolation=interpolation,
        resize_mode=resize_mode,
        decoding="scaled",
    )


def _rgb(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)  # 0 and 0.0 are one setting
    return red, green, blue
