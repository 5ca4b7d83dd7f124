"""What can be set about the service: environment variables ``PROMPT_SERVE_*``, read when asked for.

A setting is the name of its field in capitals: ``PROMPT_SERVE_MAX_BATCH=16``. All faults are
reported at once, misspelt names among them.
"""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prompt_serve.errors import ConfigInvalid
from prompt_serve.preprocess import MAX_IMAGE_PIXELS
from prompt_serve.schemas import Limits

PREFIX = "PROMPT_SERVE_"
# Variables of this prefix that are not the service's: the client's address and key, the training
# cache, and what Kubernetes sets in every pod beside a Service that is called prompt-serve.
_OTHERS = re.compile(r"(URL|API_KEY|CACHE.*|SERVICE_HOST|SERVICE_PORT.*|PORT(_.*)?)")

Count = Annotated[int, Field(ge=1)]
CountOrAuto = Annotated[int, Field(ge=0)]


class Settings(BaseModel):
    """All settings with their defaults; frozen.

    The docstring below each field is its description in ``docs/reference.md``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    home: Path = Path("~/.prompt-serve")
    """Folder that holds `registry.db` and `bundles/`."""
    bundle: Path | None = None
    """Exported backbone to serve. If unset, `bundles/embedded` in the home folder."""
    database_url: str | None = None
    """SQLAlchemy URL of the registry. If unset, the SQLite file `registry.db` in the home folder;
    SQLite needs a local disk."""

    workers: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of worker processes; each loads its own copy of the model."""
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    """Device of both encoders: `cpu`, `cuda` or `cuda:N`."""
    inference_threads: CountOrAuto = 0
    """Threads of the image encoder on a CPU; 0 means one per core."""
    decode_threads: CountOrAuto = 0
    """Threads that decode and resize images; 0 means one per core, at most 16."""
    max_batch: CountOrAuto = 0
    """Maximum images per batch; 0 means 8 on a CPU and 32 on CUDA."""
    max_queue_delay_ms: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Maximum time the first image of a batch waits for others, in milliseconds."""

    max_body_bytes: Count = 32 * 2**20
    """Maximum size of a request body."""
    max_images: Count = 64
    """Maximum images per request."""
    max_image_pixels: Count = MAX_IMAGE_PIXELS
    """Maximum pixels per image, as declared by the file; checked before it is decoded."""
    max_tasks: Count = 256
    """Maximum tasks per request."""
    max_embeddings: Count = 4096
    """Maximum embeddings per request to `/v1/score`."""
    max_scored_classes: Count = 20_000_000
    """Maximum images x classes of all tasks, per request."""
    max_scores: Count = 250_000
    """Maximum images x tasks x `top_k`, per response."""
    max_queue_images: Count = 512
    """Maximum images that are admitted and not yet answered."""
    max_queue_bytes: Count = 256 * 2**20
    """Maximum encoded size of the images that are admitted and not yet answered."""
    request_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Seconds after which the waiting images of a request are dropped; upper bound of
    `X-Request-Timeout-Ms`."""
    shutdown_timeout_s: Annotated[float, Field(ge=0, le=3600)] = 20.0
    """Seconds a stopping service may spend on the images it has admitted."""
    feature_cache_bytes: Annotated[int, Field(ge=0)] = 512 * 2**20
    """Memory for class features."""
    keep_versions: Annotated[int, Field(ge=0)] = 20
    """Prompt files kept per task name, at least two; 0 keeps all."""
    max_changes: Count = 32
    """Maximum uploads and other changes of tasks that are running or waiting."""
    max_bulk_tasks: Count = 1000
    """Maximum prompt files per bulk upload."""

    allow_anonymous: bool = False
    """Answer requests without a key from any address, as long as no key exists."""
    cors_origins: str = ""
    """Origins of web pages that may call the service, separated by commas; `*` allows any."""
    log_format: Literal["human", "json"] = "human"
    """Log format; `json` writes one object per line."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged."""

    image_urls: bool = False
    """Fetch images from URLs."""
    image_url_hosts: str = ""
    """Hosts to fetch from, separated by commas, such as `a.org,*.b.org`. If empty, any public
    host."""
    image_url_private_hosts: str = ""
    """Hosts to fetch from although their addresses are private, such as an internal object
    store."""
    image_url_timeout_s: Annotated[float, Field(gt=0, le=600)] = 10.0
    """Seconds to fetch one image, redirects included."""
    image_url_max_bytes: Count = 16 * 2**20
    """Maximum size of a fetched image."""

    @model_validator(mode="after")
    def _queue_holds_a_request(self) -> Self:
        if self.max_body_bytes > self.max_queue_bytes:
            raise ValueError(
                f"max_body_bytes ({self.max_body_bytes}) exceeds max_queue_bytes "
                f"({self.max_queue_bytes}): the largest request would never be admitted"
            )
        if self.max_images > self.max_queue_images:
            raise ValueError(
                f"max_images ({self.max_images}) exceeds max_queue_images "
                f"({self.max_queue_images}): the largest request would never be admitted"
            )
        return self

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Read the settings.

        Raises:
            ConfigInvalid: lists every variable that is misspelt or out of range.
        """
        environment = os.environ if environment is None else environment
        given = {
            name.removeprefix(PREFIX).lower(): value
            for name, value in environment.items()
            if name.startswith(PREFIX) and not _OTHERS.fullmatch(name.removeprefix(PREFIX))
        }
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise ConfigInvalid(
                "The service's settings are not valid:",
                [_fault(fault["loc"], fault["msg"], given) for fault in error.errors()],
            ) from error

    @property
    def home_path(self) -> Path:
        return self.home.expanduser()

    @property
    def bundle_path(self) -> Path:
        return (self.bundle or self.home_path / "bundles" / "embedded").expanduser()

    @property
    def database(self) -> str:
        """SQLAlchemy's URL of the registry."""
        return self.database_url or f"sqlite:///{self.home_path / 'registry.db'}"

    @property
    def cuda_device(self) -> int | None:
        """The index of the CUDA device, None on a CPU."""
        kind, _, index = self.device.partition(":")
        return None if kind == "cpu" else int(index or 0)

    @property
    def batch_size(self) -> int:
        """The most images that are encoded together.

        On a CPU images/s do not rise beyond a handful; a longer batch only makes the next wait.
        """
        return self.max_batch or (8 if self.cuda_device is None else 32)

    @property
    def limits(self) -> Limits:
        return Limits(
            max_body_bytes=self.max_body_bytes,
            max_images=self.max_images,
            max_image_pixels=self.max_image_pixels,
            max_tasks=self.max_tasks,
            max_queue_images=self.max_queue_images,
            max_embeddings=self.max_embeddings,
            max_scored_classes=self.max_scored_classes,
            max_scores=self.max_scores,
            max_queue_bytes=self.max_queue_bytes,
            request_timeout_s=self.request_timeout_s,
            image_urls=self.image_urls,
        )


def available_cores() -> int:
    """Cores this process may use (a container's CPU set counts, its quota does not)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _fault(place: tuple[int | str, ...], message: str, given: Mapping[str, str]) -> str:
    if not place:
        return message.removeprefix("Value error, ")
    name = str(place[0])
    variable = PREFIX + name.upper()
    if name in Settings.model_fields:
        return f"{variable}={given.get(name)!r}: {message}"
    close = difflib.get_close_matches(name, Settings.model_fields, n=1, cutoff=0.6)
    hint = f"did you mean {PREFIX}{close[0].upper()}?" if close else "there is no such setting"
    return f"{variable}: {hint}"
