"""Settings of the service: environment variables ``PROMPT_SERVE_*``, read at startup.

They may also come from secret files and ``.env`` (``env_files``). The variable of a setting is its
field name in capitals, for example ``PROMPT_SERVE_MAX_BATCH=16``.
All errors are reported at once, unknown names included.
"""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prompt_serve.bundle import SHIPPED, shipped_bundle
from prompt_serve.errors import ConfigInvalid
from prompt_serve.preprocess import MAX_IMAGE_PIXELS
from prompt_serve.schemas import Limits
from prompt_serve.service.byte_budget import default_bytes_in_flight
from prompt_serve.service.env_files import PREFIX, load_env_files
from prompt_serve.types import EngineName

# Variables with this prefix that are not the service's: the files that hold variables, the client's
# URL and key, the training cache, the datasets of the protocols, IMAGE and ADDRESS of
# deploy/compose.yaml, those of tests, and those that Kubernetes sets in every pod for a Service
# named prompt-serve.
_NOT_SETTINGS = re.compile(
    r"(ENV_FILE|SECRETS_DIR|URL|API_KEY|CACHE.*|DATASETS|IMAGE|ADDRESS|TEST_.*"
    r"|SERVICE_HOST|SERVICE_PORT.*|PORT(_.*)?)"
)


class Settings(BaseModel):
    """All settings with their defaults; frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Field(Path("~/.prompt-serve"), description="Folder of registry.db.")
    bundle: Path | None = Field(
        None,
        description="Folder of an exported backbone, or embedded or embedded-vit, which come with "
        "the package. Default: embedded.",
    )
    database_url: str | None = Field(
        None,
        description="SQLAlchemy URL of the registry; SQLite only on a local disk. Default: "
        "registry.db in the home folder.",
    )
    database_wait_s: float = Field(
        60.0,
        ge=0,
        le=3600,
        description="Maximum time that a start waits for a database server, answering 503.",
    )

    stale_tasks_s: float = Field(
        300.0,
        ge=0,
        le=86_400,
        description="Maximum time that tasks in memory are served while the database cannot be "
        "read; 0: never, so that no answer misses a change.",
    )

    workers: int = Field(
        1, ge=1, le=64, description="Worker processes; each loads its own copy of the model."
    )
    worker_timeout_s: float = Field(
        60.0, ge=1, le=3600, description="Time after which a worker that hangs is replaced."
    )
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="cpu, cuda or cuda:N.")
    engine: Literal["auto", "onnxruntime", "openvino", "tensorrt"] = Field(
        "auto",
        description="Runs the image encoder: onnxruntime, openvino (CPUs), tensorrt (CUDA); auto: "
        "on a CPU the fastest that is installed, by a measurement of two seconds at the start.",
    )
    inference_threads: int = Field(
        0, ge=0, description="Threads of the image encoder on a CPU; 0: one per core."
    )
    decode_threads: int = Field(
        0, ge=0, description="Threads that decode and resize images; 0: one per core, at most 16."
    )
    max_batch: int = Field(
        0, ge=0, description="Maximum images per batch; 0: 8 on a CPU, 32 on CUDA."
    )
    max_queue_delay_ms: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Maximum time that the first image of a batch waits for others.",
    )

    max_body_bytes: int = Field(32 * 2**20, ge=1, description="Maximum size of a request body.")
    max_images: int = Field(64, ge=1, description="Maximum images per request.")
    max_image_pixels: int = Field(
        MAX_IMAGE_PIXELS,
        ge=1,
        description="Maximum pixels per image, as declared by its header; checked before decoding. "
        "Also holds for train and evaluate.",
    )
    max_tasks: int = Field(
        256, ge=1, description="Maximum tasks per JSON answer; NDJSON answers have no limit."
    )
    max_streamed_tasks: int = Field(
        10_000,
        ge=1,
        le=30_000,  # parameters that SQLite and PostgreSQL take in one query
        description="Maximum tasks that a request with NDJSON or top_tasks may name; tags and * "
        "add any number.",
    )
    max_image_passes: int = Field(
        256,
        ge=1,
        description="Maximum images x image prompts, per request; tasks without image prompts "
        "count as one.",
    )
    max_embeddings: int = Field(
        4096, ge=1, description="Maximum embeddings per request to /v1/score."
    )
    max_scored_classes: int = Field(
        20_000_000, ge=1, description="Maximum images x classes of all tasks, per request."
    )
    max_scores: int = Field(
        250_000, ge=1, description="Maximum images x tasks x top_k, per answer."
    )
    max_queue_images: int = Field(
        512, ge=1, description="Maximum images in the queue: admitted and not yet answered."
    )
    max_queue_bytes: int = Field(
        256 * 2**20, ge=1, description="Maximum size of the images in the queue, as received."
    )
    max_bytes_in_flight: int = Field(
        0,
        ge=0,
        description="Maximum memory per worker of all that is in flight: bodies, images being "
        "decoded, class features and answers. 0: a third of the memory of the container or machine "
        "divided by workers, 128 MiB to 2 GiB.",
    )
    min_body_bytes_per_s: int = Field(
        4096,
        ge=0,
        description="Least rate at which a body must arrive, measured over 5 s; 0: any.",
    )
    request_timeout_s: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="Time after which waiting images are not run; the maximum of "
        "X-Request-Timeout-Ms.",
    )
    change_timeout_s: float = Field(
        600.0,
        gt=0,
        le=86_400,
        description="Maximum time of uploads, imports, exports and other changes; their maximum "
        "of X-Request-Timeout-Ms.",
    )
    shutdown_timeout_s: float = Field(
        20.0, ge=0, le=3600, description="Maximum time to finish admitted images at shutdown."
    )
    feature_cache_bytes: int = Field(
        512 * 2**20, ge=0, description="Maximum size of the class features in memory."
    )
    keep_versions: int = Field(
        20, ge=0, description="Prompt files kept per name, at least two; 0: all."
    )
    keep_history_days: float = Field(
        0,
        ge=0,
        le=36_500,
        description="Days for which entries of the history and of the audit log are kept; 0: "
        "forever.",
    )
    max_changes: int = Field(
        32, ge=1, description="Maximum uploads and other changes in progress or waiting."
    )
    max_bulk_tasks: int = Field(1000, ge=1, description="Maximum prompt files per bulk upload.")
    trusted_keys: Path | None = Field(
        None,
        description="File of public keys, or folder of *.pub files; only prompt files that one of "
        "them signed are then accepted. Default: any.",
    )

    allow_anonymous: bool = Field(
        False, description="As long as no API key exists, answer requests from any address."
    )
    oidc_issuer: str = Field(
        "",
        description="Issuer of tokens (JWT) that are accepted as keys; needs prompt-serve[oidc].",
    )
    oidc_audience: str = Field("", description="Audience that these tokens must name.")
    oidc_keys: str = Field("", description="https URL or file of the issuer's JSON Web Key Set.")
    oidc_claim: str = Field(
        "scope", min_length=1, description="Claim whose values name what a caller may do."
    )
    oidc_scopes: str = Field(
        "",
        description="What each value of the claim allows: VALUE=GRANT,GRANT; VALUE=... with the "
        "grants read, classify, upload, admin, infer, task:NAME, tag:TAG, and quotas of each "
        "subject such as images_per_s:20.",
    )
    cors_origins: str = Field(
        "", description="Origins of web pages that may call the service, comma-separated; *: any."
    )
    log_format: Literal["human", "json"] = Field(
        "human", description="human, or json with one object per line."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Minimum level of log lines: debug, info, warning or error."
    )

    image_urls: bool = Field(False, description="Fetch images that are given as URLs.")
    image_url_hosts: str = Field(
        "", description="Hosts to fetch from, such as a.org,*.b.org; empty: any public host."
    )
    image_url_private_hosts: str = Field(
        "",
        description="Hosts that may have private addresses, such as an object store next to the "
        "service; comma-separated.",
    )
    image_url_timeout_s: float = Field(
        10.0, gt=0, le=600, description="Maximum time to fetch an image, redirects included."
    )
    image_url_max_bytes: int = Field(
        16 * 2**20, ge=1, description="Maximum size of a fetched image."
    )

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
        """Read the settings from environment variables; by default, with those of ``env_files``.

        Raises:
            ConfigInvalid: lists every variable that is unknown or out of range.
        """
        if environment is None:
            load_env_files()
            environment = os.environ
        values = {
            name.removeprefix(PREFIX).lower(): value
            for name, value in environment.items()
            if name.startswith(PREFIX) and not _NOT_SETTINGS.fullmatch(name.removeprefix(PREFIX))
        }
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigInvalid(
                "The service's settings are invalid:",
                [_describe_error(one["loc"], one["msg"], values) for one in error.errors()],
            ) from error

    @property
    def home_path(self) -> Path:
        return self.home.expanduser()

    @property
    def trusted_keys_path(self) -> Path | None:
        return self.trusted_keys and self.trusted_keys.expanduser()

    @property
    def bundle_path(self) -> Path:
        """Folder of the bundle to serve."""
        bundle = self.bundle or Path(SHIPPED[0])
        if str(bundle) in SHIPPED:
            return shipped_bundle(str(bundle))
        return bundle.expanduser()

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the registry."""
        return self.database_url or f"sqlite:///{self.home_path / 'registry.db'}"

    @property
    def cuda_device(self) -> int | None:
        """Index of the CUDA device; None on a CPU."""
        kind, _, index = self.device.partition(":")
        return None if kind == "cpu" else int(index or 0)

    @property
    def engine_name(self) -> EngineName | None:
        """Engine of the image encoder; None: the fastest."""
        return None if self.engine == "auto" else self.engine

    @property
    def batch_size(self) -> int:
        """Maximum number of images per batch.

        On a CPU a few images per batch reach the full throughput; more only delay the next batch.
        """
        return self.max_batch or (8 if self.cuda_device is None else 32)

    @property
    def bytes_in_flight(self) -> int:
        """Maximum memory of all that is in flight in a worker, in bytes."""
        return self.max_bytes_in_flight or default_bytes_in_flight(self.workers)

    @property
    def limits(self) -> Limits:
        return Limits(
            max_body_bytes=self.max_body_bytes,
            max_images=self.max_images,
            max_image_pixels=self.max_image_pixels,
            max_tasks=self.max_tasks,
            max_streamed_tasks=self.max_streamed_tasks,
            max_image_passes=min(self.max_image_passes, self.max_queue_images),
            max_queue_images=self.max_queue_images,
            max_embeddings=self.max_embeddings,
            max_scored_classes=self.max_scored_classes,
            max_scores=self.max_scores,
            max_queue_bytes=self.max_queue_bytes,
            request_timeout_s=self.request_timeout_s,
            image_urls=self.image_urls,
        )


def _describe_error(
    location: tuple[int | str, ...], message: str, values: Mapping[str, str]
) -> str:
    if not location:
        return message.removeprefix("Value error, ")
    name = str(location[0])
    variable = PREFIX + name.upper()
    if name in Settings.model_fields:
        return f"{variable}={values.get(name)!r}: {message}"
    close = difflib.get_close_matches(name, Settings.model_fields, n=1, cutoff=0.6)
    hint = f"did you mean {PREFIX}{close[0].upper()}?" if close else "unknown setting"
    return f"{variable}: {hint}"
