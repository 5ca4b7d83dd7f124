"""Routes that run the model: ``POST /v1/classify``, ``/v1/embed`` and ``/v1/score``."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from prompt_serve.schemas import (
    DEFAULT_TOP_K,
    STALE_HEADER,
    TIMEOUT_HEADER,
    ClassifyAnswer,
    ClassifyRequest,
    EmbedAnswer,
    EmbedRequest,
    ImageLine,
    LastLine,
    Schema,
    ScoreRequest,
)
from prompt_serve.service.core import Core
from prompt_serve.service.http.dependencies import BINARY, OCTETS, CoreOfApp, json_answer, problems
from prompt_serve.service.http.ndjson import NDJSON, ndjson_answer
from prompt_serve.service.http.request_bodies import (
    ParsedImageRequest,
    read_classify,
    read_embed,
    read_score,
)
from prompt_serve.service.http.tensor_bodies import NPY, SAFETENSORS, npy_bytes, safetensors_bytes
from prompt_serve.service.inference.batcher import Outcome
from prompt_serve.service.inference.predictions import embedding_results, embedding_rows
from prompt_serve.service.middleware.cancel_on_disconnect import cancel_on_disconnect

FAILED_HEADER = "X-Failed-Images"
_ONE_PIXEL_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg"
    "=="
)

router = APIRouter(tags=["inference"])

_TEXTS = {"type": "array", "items": {"type": "string"}}
_TOP_K = {"type": "integer", "minimum": 1}
_TASK_TEXT = "Task names: NAME, NAME@VERSION, or * for all."
_TAG_TEXT = "Tags: adds all tasks that have one of them."
_TOP_K_TEXT = (
    f"Number of classes per task, best first; {DEFAULT_TOP_K} if not given. In a body that has "
    f"one, its own counts."
)
_TOP_TASKS: dict[str, Any] = {"type": "integer", "minimum": 1}
_TOP_TASKS_TEXT = "Only so many tasks per image, best first. In a body that has it, its own counts."
_EMBED_TASK_TEXT = "Task whose vectors of the image tower, if it has any, change the embeddings."
_EMBED_TASK = {"type": "string", "description": _EMBED_TASK_TEXT}
_IMAGE_FIELDS = {
    "image": {"type": "array", "items": BINARY, "description": "Image files."},
    "image_url": {**_TEXTS, "description": "Image URLs, if the service fetches them."},
}
_TASK_FIELDS = {
    "task": {**_TEXTS, "description": _TASK_TEXT},
    "tag": {**_TEXTS, "description": _TAG_TEXT},
    "top_k": {**_TOP_K, "description": _TOP_K_TEXT},
    "top_tasks": {**_TOP_TASKS, "description": _TOP_TASKS_TEXT},
}
_PIXELS = {
    **BINARY,
    "description": "Resized and cropped pixels: uint8 (N, S, S, 3), or floats in 0..1.",
}
_EMBEDDINGS = {**BINARY, "description": "Embeddings: floats (N, width)."}
_DEADLINE = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "description": "Timeout of the request in milliseconds. Images that are not encoded by then "
    "are not run. The service's own limit applies as well.",
    "schema": {"type": "integer", "minimum": 1},
}


def _parameter(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": description}


_TASK_PARAMETERS = [
    _parameter("task", _TEXTS, _TASK_TEXT),
    _parameter("tag", _TEXTS, _TAG_TEXT),
    _parameter("top_k", _TOP_K, _TOP_K_TEXT),
    _parameter("top_tasks", _TOP_TASKS, _TOP_TASKS_TEXT),
]


def _schema(message: type[Schema]) -> dict[str, Any]:
    """Return the schema of a message whose parts are components already."""
    schema = message.model_json_schema(ref_template="#/components/schemas/{model}")
    return {name: part for name, part in schema.items() if name != "$defs"}


_STALE = {
    STALE_HEADER: {
        "description": "Age of the tasks in seconds, during an outage of the database only.",
        "schema": {"type": "integer"},
    }
}
_LINES: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": _STALE,
        "content": {
            NDJSON: {
                "schema": {
                    "description": "Each line is a JSON document: one prediction or error of an "
                    "image per line, then the last line.",
                    "anyOf": [_schema(ImageLine), _schema(LastLine)],
                }
            }
        },
    }
}


def _openapi_body(
    content: dict[str, tuple[dict[str, Any], object]], parameters: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the OpenAPI description of a body that the route parses itself: schema and example of
    each form, and parameters."""
    forms = {
        kind: {"schema": schema} | ({} if example is None else {"example": example})
        for kind, (schema, example) in content.items()
    }
    return {"requestBody": {"required": True, "content": forms}, "parameters": parameters}


_SOME_TASKS = {"tasks": ["pets"], "tags": ["animals"], "top_k": 3}


@router.post(
    "/classify",
    response_model=ClassifyAnswer,
    responses={**_LINES, **problems(404, 413, 422, 429, 503, 504)},
    openapi_extra=_openapi_body(
        {
            "multipart/form-data": (
                {
                    "type": "object",
                    "required": ["image"],
                    "properties": {**_IMAGE_FIELDS, **_TASK_FIELDS},
                },
                None,
            ),
            "application/json": (
                ClassifyRequest.model_json_schema(),
                {"images": [f"data:image/png;base64,{_ONE_PIXEL_PNG}"], **_SOME_TASKS},
            ),
            "image/*": (BINARY, None),
            OCTETS: (BINARY, None),
            NPY: (_PIXELS, None),
            SAFETENSORS: (_PIXELS, None),
        },
        [*_TASK_PARAMETERS, _DEADLINE],
    ),
)
async def classify(request: Request, core: CoreOfApp) -> Response:
    """Classify one or more images with one or more tasks.

    Images are file parts, base64 in JSON, the body itself, or preprocessed pixels; all forms give
    the same answer. Each image is encoded once, whatever the number of tasks. An image that cannot
    be read has an `error` in its result; the request fails only if all images do.

    With `Accept: application/x-ndjson` any number of tasks is answered, one line of JSON per task
    and image, as soon as it is known. The last line has `complete`, and a `problem` if that is
    false. With `top_tasks` each image has its best tasks out of any number.
    """
    core.classifier.check_room()
    deadline = core.classifier.deadline()
    parsed = await read_classify(request, core.settings.limits, core.image_size)
    if _first_of((NDJSON,), request.headers.get("accept", "")):
        lines = core.classifier.classify_lines(parsed.images, parsed.query, deadline)
        return ndjson_answer(await cancel_on_disconnect(request, lines))
    work = core.classifier.classify(parsed.images, parsed.query, deadline)
    return Response(await cancel_on_disconnect(request, work), media_type="application/json")


@router.post(
    "/embed",
    response_model=EmbedAnswer,
    responses={
        200: {
            "headers": _STALE,
            "content": {NPY: {"schema": BINARY}, SAFETENSORS: {"schema": BINARY}},
        },
        **problems(404, 413, 422, 429, 503, 504),
    },
    openapi_extra=_openapi_body(
        {
            "multipart/form-data": (
                {
                    "type": "object",
                    "required": ["image"],
                    "properties": {**_IMAGE_FIELDS, "task": _EMBED_TASK},
                },
                None,
            ),
            "application/json": (
                EmbedRequest.model_json_schema(),
                {"images": [f"data:image/png;base64,{_ONE_PIXEL_PNG}"]},
            ),
            "image/*": (BINARY, None),
            OCTETS: (BINARY, None),
            NPY: (_PIXELS, None),
            SAFETENSORS: (_PIXELS, None),
        },
        [_parameter("task", {"type": "string"}, _EMBED_TASK_TEXT), _DEADLINE],
    ),
)
async def embed(request: Request, core: CoreOfApp) -> Response:
    """Compute unit-length embeddings of one or more images, in the same forms as `/v1/classify`.

    With `task`, they are those of the image tower with the vectors of that task, if it has any.

    The answer is JSON by default. With `Accept: application/x-npy` or `application/x-safetensors`
    it is one float32 array (N, width): rows of images that could not be read are NaN, and the
    header `X-Failed-Images` has their indices.
    """
    core.classifier.check_room()
    deadline = core.classifier.deadline()
    parsed = await read_embed(request, core.settings.limits, core.image_size)
    task = next(iter(parsed.query.selector.names), None)
    work = core.classifier.embed(parsed.images, deadline, task)
    outcomes = await cancel_on_disconnect(request, work)
    kind = _first_of((NPY, SAFETENSORS), request.headers.get("accept", ""))
    return _embed_json(core, parsed, outcomes) if kind is None else _rows(core, kind, outcomes)


@router.post(
    "/score",
    response_model=ClassifyAnswer,
    responses={**_LINES, **problems(404, 413, 422, 429, 503, 504)},
    openapi_extra=_openapi_body(
        {
            "application/json": (
                ScoreRequest.model_json_schema(),
                {"embeddings": [[0.6, 0.8]], **_SOME_TASKS},
            ),
            NPY: (_EMBEDDINGS, None),
            SAFETENSORS: (_EMBEDDINGS, None),
        },
        [
            *_TASK_PARAMETERS,
            _DEADLINE,
            _parameter(
                "fingerprint",
                {"type": "string"},
                "Fingerprint of the backbone that made the embeddings.",
            ),
        ],
    ),
)
async def score(request: Request, core: CoreOfApp) -> Response:
    """Classify images by their embeddings: like `/v1/classify`, without the image encoder.

    Embeddings may have any length, since a score is a cosine. An embedding that is all zeros or not
    finite has an `error` in its result.
    """
    deadline = core.classifier.deadline()
    parsed = await read_score(request, core.settings.limits, core.embedding_width)
    asked = (parsed.embeddings, parsed.query, parsed.fingerprint, deadline)
    if _first_of((NDJSON,), request.headers.get("accept", "")):
        lines = core.classifier.score_lines(*asked)
        return ndjson_answer(await cancel_on_disconnect(request, lines))
    work = core.classifier.score(*asked)
    return Response(await cancel_on_disconnect(request, work), media_type="application/json")


def _embed_json(core: Core, parsed: ParsedImageRequest, outcomes: list[Outcome]) -> Response:
    backbone = core.bundle.manifest.backbone
    return json_answer(
        EmbedAnswer(
            results=embedding_results(parsed.images, outcomes),
            width=core.embedding_width,
            backbone=backbone.id,
            fingerprint=backbone.fingerprint,
        )
    )


def _rows(core: Core, kind: str, outcomes: list[Outcome]) -> Response:
    rows, failed = embedding_rows(outcomes, core.embedding_width)
    headers = {FAILED_HEADER: ",".join(map(str, failed))} if failed else {}
    if kind == NPY:
        return Response(npy_bytes(rows), media_type=NPY, headers=headers)
    backbone = core.bundle.manifest.backbone
    metadata = {"backbone": backbone.id, "fingerprint": backbone.fingerprint, "failed": failed}
    body = safetensors_bytes("embeddings", rows, metadata)
    return Response(body, media_type=SAFETENSORS, headers=headers)


def _first_of(kinds: Sequence[str], accept: str) -> str | None:
    """Return the first media type of an Accept header if it is one of ``kinds``; None for JSON."""
    for part in accept.split(","):
        kind = part.partition(";")[0].strip().lower()
        if kind in kinds:
            return kind
        if kind in ("application/json", "application/*", "*/*"):
            return None
    return None
