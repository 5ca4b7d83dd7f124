"""Requests and answers of the HTTP interface, shared by the service and the client."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from prompt_serve.prompt_file import BackboneRef
from prompt_serve.types import ClassPosition, Precision

DEFAULT_TEMPLATE = "a photo of a {}."
DEFAULT_TOP_K = 5
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


class TaskSummary(Schema):
    """A task as listed."""

    name: str
    version: str  # sha256 of its prompt file
    method: str
    backbone: str
    n_classes: int
    size_bytes: int  # of the prompt file
    updated: str  # ISO 8601, UTC


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
    """One page of tasks in the order of their names; ``next`` is the ``after`` of the next page."""

    tasks: list[TaskSummary]
    revision: int  # rises with every change of the registry
    next: str | None = None


class ZeroShotTask(Schema):
    """Body of ``POST /v1/tasks``: a task from class names alone, nothing learned."""

    name: Annotated[str, Field(pattern=TASK_NAME_PATTERN)]
    class_names: Annotated[list[str], Field(min_length=1)]
    templates: Annotated[list[str], Field(min_length=1)] = [DEFAULT_TEMPLATE]


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
