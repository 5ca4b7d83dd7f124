"""Request and response bodies of the HTTP API, shared by the service and the client."""

from http import HTTPStatus
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, FailFast, Field

from prompt_serve.errors import PromptServeError
from prompt_serve.types import BackboneRef, ClassPosition, EngineName, Precision

DEFAULT_TEMPLATE = "a photo of a {}."
DEFAULT_TOP_K = 5
MAX_TAGS = 50  # per task
TAG_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/=+-]{0,63}$"
TIMEOUT_HEADER = "X-Request-Timeout-Ms"  # request header: how long the caller waits
STALE_HEADER = "X-Stale-Seconds"  # response header: age of the tasks during a database outage
_SEGMENT = "[A-Za-z0-9][A-Za-z0-9._-]"
# NAME, or NAMESPACE/NAME; at most 128 characters.
TASK_NAME_PATTERN = rf"^({_SEGMENT}{{0,127}}|{_SEGMENT}{{0,62}}/{_SEGMENT}{{0,63}})$"
# In a namespace these are no names: /v1/tasks/NAME/file is the file of NAME.
RESERVED_NAMES = ("alias", "file", "history", "pinned", "rollback", "tags")


def is_reserved_name(name: str) -> bool:
    """Return True for the name of a task in a namespace that is the path of something else."""
    namespace, _, last = name.rpartition("/")
    return bool(namespace) and last in RESERVED_NAMES


def _example(**fields: Any) -> ConfigDict:
    """Return the configuration of a body with an example for the OpenAPI document."""
    return ConfigDict(json_schema_extra={"examples": [fields]})


_VERSION = "0a98c5" + "f3" * 29  # of the examples, which are about a task named pets
_PREDICTIONS = [
    {
        "task": "pets",
        "version": _VERSION,
        "classes": [
            {"class_name": "cat", "label": 0, "probability": 0.875, "logit": 24.5},
            {"class_name": "dog", "label": 1, "probability": 0.125, "logit": 22.55},
        ],
    }
]
_SUMMARY = {
    "name": "pets",
    "version": _VERSION,
    "method": "zero_shot",
    "backbone": "embedded",
    "n_classes": 2,
    "size_bytes": 1432,
    "updated": "2025-06-01T12:00:00+00:00",
    "tags": ["animals"],
}


class Schema(BaseModel):
    """Base of all bodies. Unknown fields are an error, so that a misspelt one is never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Problem(BaseModel):
    """Problem document (RFC 9457) with a stable ``code``; facts are extra members."""

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
        **_example(
            title="Not Found",
            status=404,
            detail="No task is named 'pet'. Did you mean 'pets'?",
            code="task-not-found",
            name="pet",
            loaded=["pets"],
            request_id="55d386ae8df37062",
        ),
    )

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str

    @classmethod
    def of(cls, error: PromptServeError) -> Self:
        """Return the problem document of an error that was found on this side of the network."""
        phrase = next((s.phrase for s in HTTPStatus if s == error.status), "Error")
        return cls(title=phrase, status=error.status, detail=error.message, code=error.code)


class ClassScore(Schema):
    """Class predicted for an image."""

    class_name: str
    label: int
    probability: float = Field(
        description="softmax(logits / temperature of the task); of a multi-label task, the "
        "label's own sigmoid, independent of the other labels"
    )
    logit: float = Field(description="logit_scale x cosine, before the temperature")


class TaskPrediction(Schema):
    """Best classes of one task for one image, best first."""

    task: str
    version: str  # sha256 of the prompt file
    unknown: bool = Field(
        default=False,
        description="The image shows none of the classes: the best probability is below the "
        "task's unknown_below, or the similarity is below its unlike_below (multi-label tasks "
        "have the latter only). The classes are still listed.",
    )
    similarity: float | None = Field(
        default=None,
        description="Cosine to the nearest direction of the training images; null if the task has "
        "no sketch of them.",
    )
    labels: list[str] | None = Field(
        default=None,
        description="Multi-label task: all labels whose probability reaches their threshold, best "
        "first, also beyond top_k; they are listed also if the image is unknown. Null for a task "
        "whose images have one class each.",
    )
    classes: list[ClassScore]


class ImageResult(Schema):
    """Result for one image of a request: ``predictions`` or an ``error``, never both."""

    index: int  # place of the image in the request, from 0
    filename: str | None = None
    # In the order of the request's tasks; with top_tasks, best first.
    predictions: list[TaskPrediction] | None = None
    error: Problem | None = None


class ImageLine(Schema):
    """Line of an NDJSON answer: ``prediction`` of one task for one image, or the ``error`` of an
    image, never both."""

    index: int  # place of the image in the request, from 0
    filename: str | None = None
    prediction: TaskPrediction | None = None
    error: Problem | None = None


class LastLine(Schema):
    """Last line of an NDJSON answer; an answer without it was cut off."""

    complete: bool = Field(description="False if the answer ends with a `problem`.")
    tasks: int | None = Field(default=None, description="Number of tasks that were scored.")
    backbone: str | None = None
    problem: Problem | None = None


class ClassifyAnswer(Schema):
    """Response of ``POST /v1/classify``: one result per image, in the order of the request."""

    model_config = _example(
        results=[{"index": 0, "filename": "tom.jpg", "predictions": _PREDICTIONS}],
        backbone="embedded",
    )

    results: list[ImageResult]
    backbone: str


_TASKS: Any = Field(
    default=[],
    description="Task names; NAME@VERSION for one version of a task (the first digits of its "
    "sha256 are enough); or '*' for all tasks.",
)
_TAGS: Any = Field(default=[], description="Adds all tasks that have one of these tags.")
_TOP_K = Field(
    default=DEFAULT_TOP_K,
    description=f"Number of classes per task, best first; {DEFAULT_TOP_K} if not given.",
)
_TOP_TASKS = Field(
    default=None,
    ge=1,
    description="Only so many tasks per image, best first: by the probability of their best class, "
    "those that find the image unknown last. The limit on tasks then holds for these alone.",
)
# Only the first invalid element is reported: a list of a million would have a million errors.
_Texts = Annotated[list[str], FailFast()]
_IMAGES = Field(
    description="Image files in base64 or as data URIs; also URLs, if the service fetches images."
)


class ClassifyRequest(Schema):
    """JSON body of ``POST /v1/classify``: images, and tasks by name or tag."""

    images: _Texts = _IMAGES
    tasks: _Texts = _TASKS
    tags: _Texts = _TAGS
    top_k: int = _TOP_K
    top_tasks: int | None = _TOP_TASKS


class EmbedRequest(Schema):
    """JSON body of ``POST /v1/embed``."""

    images: _Texts = _IMAGES
    task: str | None = Field(
        default=None,
        description="Task whose vectors of the image tower, if it has any, change the embeddings.",
    )


class ScoreRequest(Schema):
    """JSON body of ``POST /v1/score``: embeddings instead of images."""

    embeddings: Annotated[list[Annotated[list[float], FailFast()]], FailFast()] = Field(
        description="One list of floats per image, of any norm."
    )
    tasks: _Texts = _TASKS
    tags: _Texts = _TAGS
    top_k: int = _TOP_K
    top_tasks: int | None = _TOP_TASKS
    fingerprint: str | None = Field(
        default=None,
        description="Fingerprint of the backbone that computed the embeddings, from /v1/embed or "
        "/v1/info. The request is refused if it is not the service's.",
    )


class EmbeddedImage(Schema):
    """Result for one image: its ``embedding`` or an ``error``, never both."""

    index: int  # place of the image in the request, from 0
    filename: str | None = None
    embedding: list[float] | None = Field(default=None, description="Embedding of unit length.")
    error: Problem | None = None


class EmbedAnswer(Schema):
    """Response of ``POST /v1/embed``: one result per image, in the order of the request."""

    model_config = _example(
        results=[{"index": 0, "filename": "tom.jpg", "embedding": [0.6, 0.8]}],
        width=2,
        backbone="embedded",
        fingerprint="ea6561" + "0b" * 29,
    )

    results: list[EmbeddedImage]
    width: int  # E, numbers per embedding
    backbone: str
    fingerprint: str  # of the backbone: only embeddings of one backbone can be compared


class TaskSummary(Schema):
    """Task in a list of tasks."""

    name: str
    version: str  # sha256 of its prompt file
    method: str
    backbone: str
    n_classes: int
    size_bytes: int  # of the prompt file
    updated: str  # ISO 8601, UTC
    tags: list[str] = []
    pinned: bool = Field(default=False, description="Kept in the service's memory.")
    servable: bool = Field(
        default=True,
        description="False if the task was learned on another backbone than the service's.",
    )


class TaskInfo(TaskSummary):
    """Task with all its details."""

    model_config = _example(
        **_SUMMARY,
        class_names=["cat", "dog"],
        templates=[DEFAULT_TEMPLATE],
        class_position="end",
        learned_numbers=0,
        payload_bytes=0,
        metrics={},
    )

    class_names: list[str]
    templates: list[str]
    class_position: ClassPosition
    encodings: dict[str, str] = Field(
        default={},
        description="Encoding of the learned vectors per branch, for example "
        '{"text": "low_rank"}; empty if nothing was learned.',
    )
    temperature: float = Field(default=1.0, description="Divides the logits before the softmax.")
    unknown_below: float = Field(
        default=0.0, description="Images whose best probability is below are unknown; 0: none."
    )
    unlike_below: float | None = Field(
        default=None,
        description="Images whose similarity is below are unknown; null if the task has no sketch.",
    )
    multi_label: bool = Field(
        default=False, description="True if an image may have several of the classes, or none."
    )
    thresholds: list[float] | None = Field(
        default=None,
        description="Multi-label task: an image has a label from this probability on, in the "
        "order of class_names. Null for other tasks.",
    )
    learned_numbers: int
    payload_bytes: int
    metrics: dict[str, object] = Field(
        description="Measured accuracy, free form. prompt-serve train stores, for each part, "
        "images, accuracy, 95 % interval, recall per class and the most frequent confusions; and "
        "warnings."
    )
    notes: list[str] = Field(
        default=[],
        description="Only in the answer to POST /v1/tasks: what the maker of the task should know, "
        "such as class names with the same tokens.",
    )


class TaskList(Schema):
    """One page of tasks, sorted by name; ``next`` is the ``cursor`` of the next page."""

    model_config = _example(tasks=[_SUMMARY], revision=7)

    tasks: list[TaskSummary]
    revision: int = Field(
        description="Increases with every change of the registry; 0 for keys that are limited to "
        "some tasks."
    )
    next: str | None = None


Tag = Annotated[str, Field(pattern=TAG_PATTERN)]
_Tags = Annotated[list[Tag], FailFast()]


class ZeroShotTask(Schema):
    """Body of ``POST /v1/tasks``: a task from class names alone, with nothing learned."""

    model_config = _example(
        name="pets", class_names=["cat", "dog"], templates=[DEFAULT_TEMPLATE, "a drawing of a {}."]
    )

    name: Annotated[str, Field(pattern=TASK_NAME_PATTERN)]
    class_names: Annotated[_Texts, Field(min_length=1)]
    templates: Annotated[
        _Texts,
        Field(min_length=1, description=f"By default only {DEFAULT_TEMPLATE!r}"),
    ] = [DEFAULT_TEMPLATE]
    tags: Annotated[_Tags, Field(max_length=MAX_TAGS)] = Field(
        default=[], description="Added to the tags of the task."
    )


class Rollback(Schema):
    """Body of ``POST /v1/tasks/{name}/rollback``; by default to the previous version."""

    model_config = _example()

    version: str | None = Field(
        default=None, description="The sha256 of the version, or its first 8 or more digits."
    )


class Alias(Schema):
    """Body of ``PUT /v1/tasks/{name}/alias``."""

    model_config = _example(of="pets")

    of: str = Field(description="Task whose version the name will point at: NAME or NAME@SHA.")


class Tags(Schema):
    """Body of ``PUT /v1/tasks/{name}/tags``: replaces all tags of the task."""

    model_config = _example(tags=["animals"])

    tags: Annotated[_Tags, Field(max_length=MAX_TAGS)]


class TagChanges(Schema):
    """Body of ``PATCH /v1/tasks/{name}/tags``: the other tags of the task stay as they are."""

    model_config = _example(add=["animals"], remove=["old"])

    add: Annotated[_Tags, Field(max_length=MAX_TAGS)] = []
    remove: _Tags = Field(default=[], description="Tags that the task lacks are ignored.")


class Pinned(Schema):
    """Body of ``PUT /v1/tasks/{name}/pinned``."""

    model_config = _example(pinned=True)

    pinned: bool


class Change(Schema):
    """Entry of a task's history."""

    id: int
    at: str  # ISO 8601, UTC
    who: str  # name of the key, or anonymous
    what: str = Field(description="put, alias, rollback, delete or import")
    version: str | None = Field(
        default=None, description="Version after the change; null: the task was deleted."
    )
    previous: str | None = None
    kept: bool = Field(
        description="The file of the version is kept, so the task can be rolled back to it."
    )


class History(Schema):
    """Versions of a task, newest first; ``next`` is the ``cursor`` of the next page."""

    name: str
    changes: list[Change]
    next: str | None = None


class BulkItem(Schema):
    """Result for one file of a bulk upload: a version, or an ``error``."""

    name: str
    version: str | None = None
    is_new: bool | None = None
    error: Problem | None = None


class BulkReport(Schema):
    """Response of ``PUT /v1/tasks`` and of an import: one item per file."""

    items: list[BulkItem]
    served: int  # items without an error
    failed: int


class ExportedTask(Schema):
    """Task in the ``registry.json`` of an exported registry."""

    name: Annotated[str, Field(pattern=TASK_NAME_PATTERN)]
    version: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    updated: str
    pinned: bool = False
    tags: _Tags = []


class ExportedRegistry(Schema):
    """Content of ``registry.json``, beside ``versions/<sha256>.safetensors`` in an export."""

    format: Literal[1] = 1
    tool_version: str
    tasks: Annotated[list[ExportedTask], FailFast()]


class Limits(Schema):
    """Limits of one request."""

    max_body_bytes: int
    max_images: int
    max_image_pixels: int
    max_tasks: int
    max_queue_images: int
    # Services of the first version do not report the following.
    max_queue_bytes: int | None = None
    max_embeddings: int | None = Field(
        default=None, description="Embeddings per request to /v1/score."
    )
    max_scored_classes: int | None = Field(
        default=None, description="Per request: images x classes of all its tasks."
    )
    max_scores: int | None = Field(
        default=None, description="Per response: images x tasks x top_k."
    )
    request_timeout_s: float | None = Field(
        default=None, description="Largest timeout that X-Request-Timeout-Ms may request."
    )
    max_streamed_tasks: int | None = Field(
        default=None,
        description="Tasks that an NDJSON request, or one with top_tasks, may name; tags and '*' "
        "add any number. Null: the service answers in JSON only.",
    )
    max_image_passes: int | None = Field(
        default=None,
        description="Per request: images x image prompts; tasks without one count as one.",
    )
    image_urls: bool = Field(default=False, description="True if images may be given as URLs.")


class EngineInfo(Schema):
    """Engine that runs the image encoder, and why it was chosen."""

    name: EngineName
    reason: str
    images_per_s: dict[str, float] = Field(
        default={}, description="Images per second at the start, by engine, if they were measured."
    )
    placement: dict[str, int] = Field(
        default={},
        description="Matrix products of the image encoder, by execution provider or by device and "
        "type.",
    )


class Resizing(Schema):
    """How the service makes the square of ``image_size`` that the image tower sees."""

    interpolation: str = Field(description="bicubic or bilinear, as Pillow does it.")
    resize_mode: str = Field(description="shortest (then the middle is cut out) or squash.")
    decoding: str = Field(
        description="scaled: large JPEGs are decoded at a half, quarter or eighth of their size, "
        "at three times the image size or more; full: at full size."
    )


class ServiceInfo(Schema):
    """Response of ``GET /v1/info``."""

    version: str  # of prompt-serve
    backbone: BackboneRef
    precision: Precision
    image_size: int
    resizing: Resizing | None = Field(
        default=None,
        description="How images are resized, for clients that do it; null: an earlier service.",
    )
    logit_scale: float
    provider: str  # execution provider that actually runs the image encoder
    text_provider: str | None = None  # and the text encoder
    device: str | None = Field(default=None, description="Requested device: cpu or cuda[:N].")
    runtime: str | None = Field(
        default=None, description="Library that runs both encoders, and its version."
    )
    engine: EngineInfo | None = None
    cold_start_s: dict[str, float] = Field(
        default={}, description="Seconds per stage of the start, in order."
    )
    tasks: int
    revision: int = Field(
        description="Increases with every change of the registry; 0 for keys that are limited to "
        "some tasks."
    )
    limits: Limits


class AuditEntry(Schema):
    """Change in the audit log."""

    id: int
    time: str  # ISO 8601, UTC
    actor: str = Field(description="Name of the key, 'anonymous', or 'cli:' and a user.")
    key_id: str
    request_id: str
    action: str = Field(description="Kind of change, for example task.put or key.revoke.")
    subject: str = Field(description="Name of the task or key that was changed.")
    before: str | None = Field(description="Version before the change; null if there was none.")
    after: str | None = Field(description="Version after the change; null if there is none.")


class AuditPage(Schema):
    """Response of ``GET /v1/audit``: entries, newest first."""

    entries: list[AuditEntry]
    next: int | None = Field(
        default=None, description="Value of `before` for the next, older page."
    )
