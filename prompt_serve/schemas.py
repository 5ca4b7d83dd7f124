"""Requests and answers of the HTTP interface, shared by the service and the client."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from prompt_serve.prompts.prompt_file import BackboneRef
from prompt_serve.types import ClassPosition, Precision

DEFAULT_TEMPLATE = "a photo of a {}."
DEFAULT_TOP_K = 5
TAG_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/=+-]{0,63}$"
TIMEOUT_HEADER = "X-Request-Timeout-Ms"  # of a request: how long its caller waits
TASK_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"


class Schema(BaseModel):
    """Base of all messages. Unknown fields are an error: a misspelt one is never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Problem(BaseModel):
    """A problem document (RFC 9457) with a stable ``code``; facts are extra members."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str


class ClassScore(Schema):
    """One class proposed for one image."""

    class_name: str
    label: int
    probability: float = Field(description="softmax(logits / temperature of the task)")
    logit: float = Field(description="logit_scale x cosine, before the temperature")


class TaskPrediction(Schema):
    """The best classes of one task for one image, best first."""

    task: str
    version: str  # sha256 of the prompt file that answered
    unknown: bool = Field(
        default=False,
        description="The image shows none of the classes: the best probability is below the "
        "task's unknown_below. The classes are listed all the same.",
    )
    classes: list[ClassScore]


class ImageResult(Schema):
    """What came of one image of a request: ``predictions`` or an ``error``, never both."""

    index: int  # place of the image in the request, from 0
    filename: str | None = None
    predictions: list[TaskPrediction] | None = None  # in the order of the request's tasks
    error: Problem | None = None


class ClassifyAnswer(Schema):
    """Answer of ``POST /v1/classify``: one result an image, in the order they were sent."""

    results: list[ImageResult]
    backbone: str


_TASKS: Any = Field(
    default=[],
    description="Names, also NAME@VERSION for one version of a task (the start of its sha256 will "
    "do), or '*' for all tasks.",
)
_TAGS: Any = Field(default=[], description="All tasks that have one of these tags.")
_TOP_K = Field(default=DEFAULT_TOP_K, description="Classes wanted of each task, best first.")
_IMAGES = Field(
    description="Image files in base64, also as data URIs; or URLs, where the service fetches them."
)


class ClassifyRequest(Schema):
    """JSON body of ``POST /v1/classify``; the tasks are those of ``tasks`` and of ``tags``."""

    images: list[str] = _IMAGES
    tasks: list[str] = _TASKS
    tags: list[str] = _TAGS
    top_k: int = _TOP_K


class EmbedRequest(Schema):
    """JSON body of ``POST /v1/embed``."""

    images: list[str] = _IMAGES


class ScoreRequest(Schema):
    """JSON body of ``POST /v1/score``: embeddings in place of images."""

    embeddings: list[list[float]] = Field(description="One list of floats an image, of any length.")
    tasks: list[str] = _TASKS
    tags: list[str] = _TAGS
    top_k: int = _TOP_K
    fingerprint: str | None = Field(
        default=None,
        description="Of the backbone that made the embeddings, as /v1/embed and /v1/info tell it; "
        "another one than the service's is refused.",
    )


class EmbeddedImage(Schema):
    """What came of one image: its ``embedding`` or an ``error``, never both."""

    index: int  # place of the image in the request, from 0
    filename: str | None = None
    embedding: list[float] | None = Field(default=None, description="Of unit length.")
    error: Problem | None = None


class EmbedAnswer(Schema):
    """Answer of ``POST /v1/embed``: one result an image, in the order they were sent."""

    results: list[EmbeddedImage]
    width: int  # numbers of an embedding
    backbone: str
    fingerprint: str  # of the backbone: only embeddings of one backbone can be compared


class TaskSummary(Schema):
    """A task as listed."""

    name: str
    version: str  # sha256 of its prompt file
    method: str
    backbone: str
    n_classes: int
    size_bytes: int  # of the prompt file
    updated: str  # ISO 8601, UTC
    tags: list[str] = []
    pinned: bool = Field(default=False, description="It stays in the service's memory.")
    servable: bool = Field(
        default=True,
        description="False: it was learned on another backbone than the one that runs here.",
    )


class TaskInfo(TaskSummary):
    """A task with all there is to know about it."""

    class_names: list[str]
    templates: list[str]
    class_position: ClassPosition
    encodings: dict[str, str] = Field(
        default={},
        description="How the learned vectors of each branch are stored, as in "
        '{"text": "low_rank"}; empty where nothing was learned.',
    )
    temperature: float = Field(default=1.0, description="Divides the logits before the softmax.")
    unknown_below: float = Field(
        default=0.0, description="Best probabilities below it mean unknown; 0: never."
    )
    learned_numbers: int
    payload_bytes: int
    metrics: dict[str, object]


class TaskList(Schema):
    """One page of tasks in the order of their names; ``next`` is the ``cursor`` of the next one."""

    tasks: list[TaskSummary]
    revision: int  # rises with every change of the registry
    next: str | None = None


class ZeroShotTask(Schema):
    """Body of ``POST /v1/tasks``: a task from class names alone, nothing learned."""

    name: Annotated[str, Field(pattern=TASK_NAME_PATTERN)]
    class_names: Annotated[list[str], Field(min_length=1)]
    templates: Annotated[list[str], Field(min_length=1)] = [DEFAULT_TEMPLATE]


class Rollback(Schema):
    """Body of ``POST /v1/tasks/{name}/rollback``; without a version: to the one before."""

    version: str | None = Field(
        default=None, description="The sha256, or its first 8 or more digits, from the history."
    )


class Alias(Schema):
    """Body of ``PUT /v1/tasks/{name}/alias``."""

    of: str = Field(description="A task whose version the name is to point at: NAME or NAME@SHA.")


class Tags(Schema):
    """Body of ``PUT /v1/tasks/{name}/tags``: all tags of the task from now on."""

    tags: Annotated[list[Annotated[str, Field(pattern=TAG_PATTERN)]], Field(max_length=50)]


class Pinned(Schema):
    """Body of ``PUT /v1/tasks/{name}/pinned``."""

    pinned: bool


class Change(Schema):
    """One entry of a task's history."""

    id: int
    at: str  # ISO 8601, UTC
    who: str  # the name of the key, or anonymous
    what: str = Field(description="put, alias, rollback, delete or import")
    version: str | None = Field(default=None, description="From then on; none: deleted.")
    previous: str | None = None
    kept: bool = Field(description="The version's file is kept, so a rollback can go there.")


class History(Schema):
    """What a name pointed at, newest first; ``next`` is the ``cursor`` of the next page."""

    name: str
    changes: list[Change]
    next: str | None = None


class BulkItem(Schema):
    """What came of one file of a bulk upload: a version, or an ``error``."""

    name: str
    version: str | None = None
    is_new: bool | None = None
    error: Problem | None = None


class BulkReport(Schema):
    """Answer of ``PUT /v1/tasks`` and of an import: one item a file."""

    items: list[BulkItem]
    served: int  # items without an error
    failed: int


class ExportedTask(Schema):
    """A task in the ``registry.json`` of an exported registry."""

    name: Annotated[str, Field(pattern=TASK_NAME_PATTERN)]
    version: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    updated: str
    pinned: bool = False
    tags: list[Annotated[str, Field(pattern=TAG_PATTERN)]] = []


class ExportedRegistry(Schema):
    """``registry.json`` of an exported registry, beside ``versions/<sha256>.safetensors``."""

    format: Literal[1] = 1
    tool_version: str
    tasks: list[ExportedTask]


class Limits(Schema):
    """What one request may ask for."""

    max_body_bytes: int
    max_images: int
    max_image_pixels: int
    max_tasks: int
    max_queue_images: int
    # Services of the first version do not tell the following.
    max_queue_bytes: int | None = None
    max_embeddings: int | None = Field(default=None, description="Of a request to /v1/score.")
    max_scored_classes: int | None = Field(
        default=None, description="Of a request: images x classes of all its tasks."
    )
    max_scores: int | None = Field(
        default=None, description="Of an answer: images x tasks x top_k."
    )
    request_timeout_s: float | None = Field(
        default=None, description="The most that X-Request-Timeout-Ms may ask for."
    )
    image_urls: bool = Field(default=False, description="Whether images may be given as URLs.")


class ServiceInfo(Schema):
    """Answer of ``GET /v1/info``."""

    version: str  # of prompt-serve
    backbone: BackboneRef
    precision: Precision
    image_size: int
    logit_scale: float
    provider: str  # the execution provider that really runs the image encoder
    text_provider: str | None = None  # and the one of the text encoder
    device: str | None = Field(default=None, description="What was asked for: cpu or cuda[:N].")
    runtime: str | None = Field(default=None, description="Library and version of both encoders.")
    cold_start_s: dict[str, float] = Field(
        default={}, description="Seconds that the start took, by stage, in their order."
    )
    tasks: int
    revision: int
    limits: Limits


class AuditEntry(Schema):
    """One change, as the audit log has it."""

    id: int
    time: str  # ISO 8601, UTC
    actor: str = Field(description="Name of the key, 'anonymous', or 'cli:' and a user.")
    key_id: str
    request_id: str
    action: str = Field(description="What was done, as task.put or key.revoke.")
    subject: str = Field(description="Name of the task or key it was done to.")
    before: str | None = Field(description="The version until then; null where there was none.")
    after: str | None = Field(description="The version from then on; null where there is none.")


class AuditPage(Schema):
    """Answer of ``GET /v1/audit``: entries from the newest on."""

    entries: list[AuditEntry]
    next: int | None = Field(default=None, description="The `before` of the next, older page.")
