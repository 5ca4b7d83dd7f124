"""Routes that run the model: ``POST /v1/classify``, ``/v1/embed`` and ``/v1/score``."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from prompt_serve.schemas import (
    DEFAULT_TOP_K,
    TIMEOUT_HEADER,
    ClassifyAnswer,
    ClassifyRequest,
    EmbedAnswer,
    EmbedRequest,
    ScoreRequest,
)
from prompt_serve.service.core import Core
from prompt_serve.service.http.dependencies import BINARY, OCTETS, CoreOfApp, json_answer, problems
from prompt_serve.service.http.request_bodies import (
    ParsedImageRequest,
    read_classify,
    read_embed,
    read_score,
)
from prompt_serve.service.http.tensor_bodies import NPY, SAFETENSORS, npy_bytes, safetensors_bytes
from prompt_serve.service.inference.batcher import Outcome
from prompt_serve.service.inference.predictions import embedded, embedding_rows
from prompt_serve.service.middleware.cancel_on_disconnect import unless_gone

FAILED_HEADER = "X-Failed-Images"
_ONE_PIXEL_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg"
    "=="
)

router = APIRouter()

_TEXTS = {"type": "array", "items": {"type": "string"}}
_TOP_K = {"type": "integer", "default": DEFAULT_TOP_K}
_IMAGE_FIELDS = {
    "image": {"type": "array", "items": BINARY, "description": "Image files."},
    "image_url": {**_TEXTS, "description": "Where the service fetches images from URLs."},
}
_TASK_FIELDS = {"task": _TEXTS, "tag": _TEXTS, "top_k": _TOP_K}
_PIXELS = {
    **BINARY,
    "description": "uint8 (N, S, S, 3), resized and cropped already, or floats in 0..1.",
}
_EMBEDDINGS = {**BINARY, "description": "Floats (N, width)."}
_DEADLINE = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "description": "Milliseconds after which nobody waits for the answer; images that are not "
    "encoded by then are not run. The service's own limit holds as well.",
    "schema": {"type": "integer", "minimum": 1},
}


def _query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": description}


_TASK_QUERY = [
    _query("task", _TEXTS, "Where the body has no place for them: NAME, NAME@VERSION, or *."),
    _query("tag", _TEXTS, "All tasks that have the tag."),
    _query("top_k", _TOP_K, "Classes wanted of each task."),
]


def _documented(
    content: dict[str, tuple[dict[str, Any], object]], parameters: list[dict[str, Any]]
) -> dict[str, Any]:
    """What OpenAPI says of a body that is read by hand: schema and example of each form."""
    forms = {
        kind: {"schema": schema} | ({} if example is None else {"example": example})
        for kind, (schema, example) in content.items()
    }
    return {"requestBody": {"required": True, "content": forms}, "parameters": parameters}


_SOME_TASKS = {"tasks": ["pets", "labels@de1f384a"], "tags": ["season"], "top_k": 3}


@router.post(
    "/classify",
    response_model=ClassifyAnswer,
    responses=problems(404, 413, 422, 429, 503, 504),
    openapi_extra=_documented(
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
        [*_TASK_QUERY, _DEADLINE],
    ),
)
async def classify(request: Request, core: CoreOfApp) -> Response:
    """Classify one or many images by one or many tasks.

    An image is a file part, base64 in JSON, the body itself, or preprocessed pixels; all forms get
    the same answer. Each image is encoded once, however many tasks are asked. An image that cannot
    be read has an `error` in its result; the request fails only when every image does.
    """
    core.classifier.check_room()
    deadline = core.classifier.deadline(request.headers.get(TIMEOUT_HEADER))
    wanted = await read_classify(request, core.settings.limits, core.image_size)
    selection, top_k = wanted.asked.selection, wanted.asked.top_k
    work = core.classifier.classify(wanted.images, selection, top_k, deadline)
    return json_answer(await unless_gone(request, work))


@router.post(
    "/embed",
    response_model=EmbedAnswer,
    responses={
        200: {"content": {NPY: {"schema": BINARY}, SAFETENSORS: {"schema": BINARY}}},
        **problems(413, 422, 429, 503, 504),
    },
    openapi_extra=_documented(
        {
            "multipart/form-data": (
                {"type": "object", "required": ["image"], "properties": _IMAGE_FIELDS},
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
        [_DEADLINE],
    ),
)
async def embed(request: Request, core: CoreOfApp) -> Response:
    """Embeddings of unit length of one or many images; images come as for `/v1/classify`.

    JSON by default. With `Accept: application/x-npy` or `application/x-safetensors` one float32
    array (N, width): rows of images that could not be read are NaN, and the header
    `X-Failed-Images` has their places.
    """
    core.classifier.check_room()
    deadline = core.classifier.deadline(request.headers.get(TIMEOUT_HEADER))
    wanted = await read_embed(request, core.settings.limits, core.image_size)
    outcomes = await unless_gone(request, core.classifier.embed(wanted.images, deadline))
    kind = _wanted_type(request.headers.get("accept", ""))
    return _embed_json(core, wanted, outcomes) if kind is None else _rows(core, kind, outcomes)


@router.post(
    "/score",
    response_model=ClassifyAnswer,
    responses=problems(404, 413, 422, 429, 503, 504),
    openapi_extra=_documented(
        {
            "application/json": (
                ScoreRequest.model_json_schema(),
                {"embeddings": [[0.6, 0.8]], **_SOME_TASKS},
            ),
            NPY: (_EMBEDDINGS, None),
            SAFETENSORS: (_EMBEDDINGS, None),
        },
        [
            *_TASK_QUERY,
            _query("fingerprint", {"type": "string"}, "Of the backbone that made them."),
        ],
    ),
)
async def score(request: Request, core: CoreOfApp) -> Response:
    """Predictions for images that were embedded before: as `/v1/classify`, without the encoder.

    Embeddings of any length will do, a score is a cosine. One that is all zeros or not finite has
    an `error` in its result.
    """
    wanted = await read_score(request, core.settings.limits, core.embedding_width)
    asked = wanted.asked
    work = core.classifier.score(
        wanted.embeddings, asked.selection, asked.top_k, wanted.fingerprint
    )
    return json_answer(await unless_gone(request, work))


def _embed_json(core: Core, wanted: ParsedImageRequest, outcomes: list[Outcome]) -> Response:
    backbone = core.bundle.manifest.backbone
    return json_answer(
        EmbedAnswer(
            results=embedded(wanted.images, outcomes),
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


def _wanted_type(accept: str) -> str | None:
    """The tensor type that is asked for before any other; None for JSON."""
    for part in accept.split(","):
        kind = part.partition(";")[0].strip().lower()
        if kind in (NPY, SAFETENSORS):
            return kind
        if kind in ("application/json", "application/*", "*/*"):
            return None
    return None
