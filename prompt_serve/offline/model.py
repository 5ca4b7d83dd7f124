"""``Model``: prompts over one bundle, ready to predict in this process."""

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeAlias, overload

import numpy as np

from prompt_serve.bundle import Bundle
from prompt_serve.engines.encoders import Encoders
from prompt_serve.engines.onnx_session import available_cores
from prompt_serve.errors import ConfigInvalid, PromptFileInvalid, PromptServeError
from prompt_serve.files import sha256_of_file
from prompt_serve.images.image_source import ImageSource, one_or_many, source_of
from prompt_serve.offline.bundles import find_bundle
from prompt_serve.offline.image_features import encoded
from prompt_serve.prompts.class_features import class_features
from prompt_serve.prompts.prompt_file import Prompt, read_prompt_file
from prompt_serve.results import ImageScores, ScoreList, html_table, scored_rows
from prompt_serve.schemas import DEFAULT_TOP_K, ImageResult, Problem
from prompt_serve.tasks.admission import verified_class_features
from prompt_serve.tasks.image_passes import ImagePasses
from prompt_serve.tasks.predictions import NamedTasks, predictions_of_passes
from prompt_serve.tasks.task import Task

PathLike: TypeAlias = str | os.PathLike[str]
Prompts: TypeAlias = PathLike | Sequence[PathLike] | Mapping[str, PathLike]

_SHOWN_NAMES = 8  # classes per task, in a notebook


class Model:
    """Prompts over one bundle. Thread-safe.

    Args:
        tasks: the prompts by name, ready to score.
        bundle: their bundle.
        device: cpu, cuda or cuda:N.
        threads: threads of the image encoder on a CPU, and images decoded at once; 0: one per
            core.
        encoders: of the bundle; None: they are opened when an image is encoded.
    """

    def __init__(
        self,
        tasks: NamedTasks,
        bundle: Bundle,
        *,
        device: str = "cpu",
        threads: int = 0,
        encoders: Encoders | None = None,
    ) -> None:
        self.tasks = tuple(tasks)
        self.bundle = bundle
        self.threads = threads or available_cores()
        self.passes = ImagePasses.of(task.image_rows for _, task in self.tasks)
        self._device, self._opened = device, encoders
        self._lock = threading.Lock()

    @property
    def encoders(self) -> Encoders:
        """Encoders of the bundle.

        Raises:
            ProviderUnavailable: CUDA was requested and does not run.
        """
        with self._lock:
            if self._opened is None:
                self._opened = _open(self.bundle, self._device, self.threads)
            return self._opened

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the prompts."""
        return tuple(name for name, _ in self.tasks)

    def __repr__(self) -> str:
        return f"Model({', '.join(self.names)}; {self.bundle.manifest.backbone.id})"

    def _repr_html_(self) -> str:
        rows = [
            (
                name,
                f"{len(task.class_names):,}",
                _shortened(task.class_names),
                f"{task.size_bytes:,}",
                self.bundle.manifest.backbone.id,
            )
            for name, task in self.tasks
        ]
        return html_table(("task", "classes", "", "bytes in memory", "backbone"), rows)

    @overload  # a path is one image, though a text is also an iterable of texts
    def predict(  # type: ignore[overload-overlap]
        self, images: ImageSource, *, top_k: int = ...
    ) -> ImageScores: ...
    @overload
    def predict(self, images: Iterable[ImageSource], *, top_k: int = ...) -> ScoreList: ...
    def predict(
        self, images: ImageSource | Iterable[ImageSource], *, top_k: int = DEFAULT_TOP_K
    ) -> ImageScores | ScoreList:
        """Classify an image, or several.

        Args:
            images: path, URL, bytes of an image file, file opened in binary mode, Pillow image or
                uint8 array (H, W, 3) in RGB; or several of these.
            top_k: number of classes per prompt, best first.

        Returns:
            Predictions of all prompts: of one image ``ImageScores``, of several a ``ScoreList``, in
            which an image that cannot be read has an ``error``.

        Raises:
            ImageInvalid, ImageTooLarge: the only image cannot be read.
            ConfigInvalid: ``top_k`` is less than 1.
        """
        if top_k < 1:
            raise ConfigInvalid(f"top_k is {top_k}; expected 1 or more.")
        one, many = one_or_many(images)
        listed = list(many)
        outcomes = encoded(listed, self.encoders, self.passes, decode_threads=self.threads)
        scored: list[ImageScores] = []
        for image, outcome in zip(listed, chain.from_iterable(outcomes), strict=True):
            if isinstance(outcome, PromptServeError):
                if one:
                    raise outcome
                result = ImageResult(index=len(scored), error=Problem.of(outcome))
            else:
                [predictions] = predictions_of_passes(
                    [outcome], self.passes, self.tasks, top_k, self.bundle.manifest.logit_scale
                )
                result = ImageResult(index=len(scored), predictions=predictions)
            source = source_of(image)
            rows = scored_rows(len(scored), source, result, self.names)
            scored.append(ImageScores(source, tuple(rows)))
        return scored[0] if one else ScoreList(tuple(scored))


def load_model(
    prompts: Prompts,
    *,
    bundle: PathLike | None = None,
    device: str = "cpu",
    threads: int = 0,
) -> Model:
    """Load prompt files over one bundle; see ``prompt_serve.load``.

    Raises:
        ConfigInvalid: no prompt, two of one name, or an invalid device.
        PromptError: a file is no prompt file, or does not fit the bundle.
        BundleInvalid, BackboneUnavailable: there is no bundle for them.
        ProviderUnavailable: CUDA was requested and does not run.
    """
    paths = named_prompts(prompts)
    read = {name: _read(path) for name, path in paths.items()}
    opened = find_bundle(read, bundle)
    encoders = _open(opened, device, threads)
    tasks = [
        (name, load_task(prompt, sha256_of_file(paths[name]), encoders))
        for name, prompt in read.items()
    ]
    return Model(tasks, opened, device=device, threads=threads, encoders=encoders)


def _open(bundle: Bundle, device: str, threads: int) -> Encoders:
    return Encoders.open(
        bundle, cuda_device=cuda_device(device), threads=threads or available_cores()
    )


def load_task(prompt: Prompt, version: str, encoders: Encoders) -> Task:
    """Compute and verify the class features of a prompt, and lay out its image vectors.

    Raises:
        BackboneMismatch, PromptUnsupported, ProbeMismatch: the prompt does not fit the bundle.
    """
    side = encoders.bundle.text_side
    features = verified_class_features(
        prompt, encoders.bundle, lambda: class_features(prompt, side, encoders.encode_text)
    )
    rows = encoders.images.image_rows(prompt)
    return Task.from_prompt(version, prompt, np.array(features), rows)


def cuda_device(device: str) -> int | None:
    """Return the index of a CUDA device; None for the CPU.

    Raises:
        ConfigInvalid: neither ``cpu`` nor ``cuda`` nor ``cuda:N``.
    """
    kind, colon, index = device.partition(":")
    if device == "cpu":
        return None
    if kind != "cuda" or (colon and not index.isdecimal()):
        raise ConfigInvalid(f"The device is {device!r}; expected cpu, cuda or cuda:N.")
    return int(index or 0)


def _shortened(names: Sequence[str]) -> str:
    """Return the first names, for a table."""
    return ", ".join([*names[:_SHOWN_NAMES], *(["..."] if len(names) > _SHOWN_NAMES else [])])


def _read(path: Path) -> Prompt:
    try:
        return read_prompt_file(path)
    except PromptFileInvalid as error:
        raise PromptFileInvalid(f"{path}: {error.message}", **error.facts) from error


def named_prompts(prompts: Prompts) -> dict[str, Path]:
    """Return prompt files by name, by default that of the file.

    Raises:
        ConfigInvalid: no prompt, or two of one name.
    """
    if isinstance(prompts, Mapping):
        named = {name: Path(path) for name, path in prompts.items()}
    else:
        paths = [prompts] if isinstance(prompts, str | os.PathLike) else list(prompts)
        named = {Path(path).stem: Path(path) for path in paths}
        if len(named) < len(paths):
            raise ConfigInvalid(
                f"Two of the {len(paths)} prompt files have the same name; give a mapping of names "
                f"to files."
            )
    if not named:
        raise ConfigInvalid("No prompt file was given.")
    return named
