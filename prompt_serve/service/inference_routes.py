"""Routes that run the model: ``POST /v1/classify``."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from prompt_serve.schemas import DEFAULT_TOP_K, ClassifyAnswer
from prompt_serve.service.bodies import read_classify_request
from prompt_serve.service.routing import BINARY, OCTETS, CoreOfApp, body, json_answer, problems

router = APIRouter()

_CLASSIFY_BODY = body(
    {
        "multipart/form-data": {
            "type": "object",
            "required": ["image", "task"],
            "properties": {
                "image": {"type": "array", "items": BINARY},
                "task": {"type": "array", "items": {"type": "string"}},
                "top_k": {"type": "integer", "default": DEFAULT_TOP_K},
            },
        },
        "image/*": BINARY,
        OCTETS: BINARY,
    }
)


@router.post(
    "/classify",
    response_model=ClassifyAnswer,
    responses=problems(404, 413, 422, 429, 503, 504),
    openapi_extra=_CLASSIFY_BODY
    | {
        "parameters": [
            {
                "name": "task",
                "in": "query",
                "description": "With an image as the body: the tasks.",
                "schema": {"type": "array", "items": {"type": "string"}},
            },
            {
                "name": "top_k",
                "in": "query",
                "schema": {"type": "integer", "default": DEFAULT_TOP_K},
            },
        ]
    },
)
async def classify(request: Request, core: CoreOfApp) -> Response:
    """Classify one or many images by one or many tasks.

    Either multipart/form-data with file parts `image` and fields `task` and `top_k`, or one image
    as the body with `task` and `top_k` in the query. An image that cannot be read has an `error`
    in its result; the request fails only when every image does.
    """
    wanted = await read_classify_request(request, core.settings.limits)
    return json_answer(await core.classify(wanted.images, wanted.tasks, wanted.top_k))
