"""``prompt-serve train`` where torch is not installed: class vectors from a bundle's features."""

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from prompt_serve.cli.learning.select_method import AUTO_METHOD
from prompt_serve.errors import BackboneUnavailable, ConfigInvalid, DependencyMissing, did_you_mean
from prompt_serve.text_files import expand_user

if TYPE_CHECKING:
    from prompt_serve.engines.encoders import Encoders
    from prompt_serve.training.data.dataset import Split
    from prompt_serve.training.progress import Progress
    from prompt_serve.training.without_torch.outcome import Extras, TrainingResult

CLASS_VECTORS = "class-vectors"
AUTO_WIDTHS = (4, 2, 1)  # bits per number; held-out images do not show what fewer cost on others
# Options of prompts: what is asked for with them needs torch.
_OF_PROMPTS = ("seeds", "checkpoint", "open_vocabulary", "candidates", "frontier")


def torch_is_missing() -> bool:
    """Return True where the extra ``train`` is not installed."""
    return importlib.util.find_spec("torch") is None


def learns_without_torch(method: str) -> bool:
    """Return True if torch is missing and the method does not need it.

    Raises:
        DependencyMissing: torch is missing and the method needs it.
    """
    if not torch_is_missing():
        return False
    if method not in (CLASS_VECTORS, AUTO_METHOD):
        needs_torch(f"Training {method}")
    return True


def needs_torch(what: str) -> NoReturn:
    """Raise the error that says how to install torch."""
    raise DependencyMissing(
        f"{what} needs torch: pip install 'prompt-serve[train]'. Without it, train learns class "
        f"vectors (--method {CLASS_VECTORS}).",
        package="torch",
        extra="train",
    )


def train_without_torch(
    options: Mapping[str, Any], extras: "Extras"
) -> "tuple[TrainingResult, Split]":
    """Learn class vectors with the options of the command; return them with all images."""
    from prompt_serve.cli.learning.image_options import feature_cache
    from prompt_serve.training.progress import Progress
    from prompt_serve.training.without_torch.class_vectors import (
        ClassVectorRun,
        train_class_vectors,
    )

    for name in _OF_PROMPTS:
        if options.get(name) not in (None, (), False, "text"):
            needs_torch(f"--{name.replace('_', '-')}")
    values = _values(options)
    cache = feature_cache(options)
    progress = Progress(quiet=options["quiet"])
    encoders = open_encoders(options["backbone"], options["device"])
    given = {
        name: values[name]
        for name in ("text_prior", "shots", "seed", "template", "unknown_share")
        if values.get(name) is not None
    }
    by_itself = values["method"] == AUTO_METHOD
    run = ClassVectorRun(
        bits=AUTO_WIDTHS if by_itself else (values.get("bits") or AUTO_WIDTHS[0],),
        max_bytes=options.get("max_bytes") if by_itself else None,
        **given,
    )
    dataset = _dataset(options, values, run.shots, encoders, progress)
    result = train_class_vectors(
        encoders,
        dataset,
        run,
        name=options["name"] or options["out"].stem,
        cache=cache,
        workers=options["workers"],
        progress=progress,
        extras=extras,
    )
    return result, dataset


def open_encoders(backbone: str, device: str) -> "Encoders":
    """Open a shipped backbone, or a folder with an exported one.

    Raises:
        BackboneUnavailable: the backbone is neither.
    """
    from prompt_serve.bundle import MANIFEST, SHIPPED, open_bundle, shipped_bundle
    from prompt_serve.engines.encoders import Encoders
    from prompt_serve.engines.onnx_session import available_cores

    path = shipped_bundle(backbone) if backbone in SHIPPED else expand_user(backbone)
    if not (path / MANIFEST).is_file():
        raise BackboneUnavailable(
            f"Backbone {backbone!r} needs torch: pip install 'prompt-serve[train]'. Without it, "
            f"train takes {' or '.join(SHIPPED)}, or a folder that prompt-serve export wrote."
            f"{did_you_mean(backbone, SHIPPED)}"
        )
    kind, _, index = device.partition(":")
    cuda_device = int(index or 0) if kind == "cuda" else None
    return Encoders.open(open_bundle(path), cuda_device=cuda_device, threads=available_cores())


def _values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by name: those of the file, overridden by those of the command line.

    Raises:
        ConfigInvalid: some are unknown or out of range; the error lists all of them.
    """
    from prompt_serve.training.config import TrainConfig, read_config_file
    from prompt_serve.training.methods.class_vector_settings import ClassVectorSettings
    from prompt_serve.training.settings import settings_of

    values = read_config_file(options["config_file"]) if options["config_file"] else {}
    values.setdefault("method", AUTO_METHOD)
    values |= {"method": options["method"]} if options["method"] else {}
    described = settings_of(TrainConfig) | settings_of(ClassVectorSettings)
    values |= {name: options[name] for name in described if options.get(name) is not None}
    faults = [
        described[name].fault(name, value) if name in described else f"{name} is not a setting"
        for name, value in values.items()
        if name not in ("method", "template", "templates")
    ]
    templates = options["templates"] or values.get("templates") or ()
    if len(templates) > 1:
        faults.append("templates (an ensemble) is for method 'zero-shot'; give one template")
    if listed := [fault for fault in faults if fault]:
        raise ConfigInvalid("The training settings are invalid:", listed)
    return values | {"template": templates[0]} if templates else values


def _dataset(
    options: Mapping[str, Any],
    values: Mapping[str, Any],
    shots: int,
    encoders: "Encoders",
    progress: "Progress",
) -> "Split":
    from prompt_serve.cli.learning.image_options import column_names
    from prompt_serve.prompts.equal_names import equal_names_notes
    from prompt_serve.training.data.few_shot import shot_faults
    from prompt_serve.training.data.loading import check_images, read_dataset

    def too_few(split: "Split") -> list[str]:
        return [] if values.get("fewer_shots_ok") else shot_faults(split, shots)

    checked = check_images(
        on_bad_image=options["on_bad_image"], workers=options["workers"], progress=progress
    )
    split = read_dataset(
        options["dataset"],
        images=options["images"],
        columns=column_names(options),
        rename=options["renames"],
        repairs=(checked,),
        checks=(too_few,),
        workers=options["workers"],
        progress=progress,
    )
    equal = equal_names_notes(split.class_names, encoders.bundle.tokenizer)
    return replace(split, notes=(*split.notes, *equal))
