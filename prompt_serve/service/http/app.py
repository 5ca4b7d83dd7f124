"""FastAPI app, mounted under ``/v1``; one ``Core`` behind all routes."""

import json
import re
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from prompt_serve import __version__
from prompt_serve.schemas import Problem, ServiceInfo
from prompt_serve.service.core import Core
from prompt_serve.service.http import audit_routes, inference_routes, task_routes, ui
from prompt_serve.service.http.dependencies import CoreOfApp, json_answer, problems
from prompt_serve.service.problems import add_problem_handlers

router = APIRouter(tags=["service"])

SECURITY_SCHEMES = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "API key: `ps_...`, made by `prompt-serve keys create NAME`.",
    },
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
    "basic": {
        "type": "http",
        "scheme": "basic",
        "description": "For browsers: API key as the password, any user name.",
    },
}


class _App(FastAPI):
    """FastAPI whose OpenAPI document has what the middleware in front of all routes does:
    authentication, the body limit, and the errors of both."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        schemas = document["components"]["schemas"]
        schemas.setdefault("Problem", Problem.model_json_schema())
        document["paths"] = _with_components(document["paths"], schemas)
        _remove_defaults(document["paths"], schemas)
        document["components"]["securitySchemes"] = SECURITY_SCHEMES
        # A key is needed where keys exist: any of the schemes, or none.
        document["security"] = [*({name: []} for name in SECURITY_SCHEMES), {}]
        for operation in (o for path in document["paths"].values() for o in path.values()):
            with_body = (408, 413) if "requestBody" in operation else ()
            common = problems(401, 403, 429, 500, 503, *with_body)
            for status, response in common.items():
                operation["responses"].setdefault(str(status), response)
        if self.state.core is not None:
            _set_width(document["paths"]["/score"], self.state.core.embedding_width)
        return document


def _with_components(node: Any, schemas: dict[str, Any]) -> Any:
    """Move the named schemas of bodies that routes parse themselves to the components.

    Generated clients then have one class per message, with the name that it has here.
    """
    if isinstance(node, list):
        return [_with_components(item, schemas) for item in node]
    if not isinstance(node, dict):
        return node
    if "title" in node and "properties" in node:
        schemas.setdefault(node["title"], node)
        return {"$ref": f"#/components/schemas/{node['title']}"}
    return {name: _with_components(item, schemas) for name, item in node.items()}


def _remove_defaults(paths: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Remove the defaults of requests, and null as a default; descriptions have those of requests.

    Generated Python clients would send the default of ``top_k`` in a body, where it overrides that
    of the query, and TypeScript would require every field that has a default.
    """
    bodies = [
        operation.get("requestBody") for path in paths.values() for operation in path.values()
    ]
    requests = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(bodies)))
    for name, schema in schemas.items():
        for field in schema.get("properties", {}).values():
            if name in requests or field.get("default", ...) is None:
                field.pop("default", None)


def _set_width(score: dict[str, Any], width: int) -> None:
    """Give the example of ``/v1/score`` an embedding of this service's width, so that it runs."""
    example = score["post"]["requestBody"]["content"]["application/json"]["example"]
    example["embeddings"] = [[1.0] + [0.0] * (width - 1)]


def create_app(core: Core | None = None) -> FastAPI:
    """Return the app, to be mounted at ``/v1``; ``app.state.core`` may be set later."""
    app = _App(
        title="prompt-serve",
        version=__version__,
        summary="Image classification with many learned tasks on one frozen CLIP.",
        openapi_url="/openapi.json",
        docs_url=None,  # http/ui.py serves its own, without another host
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.core = core
    app.include_router(inference_routes.router)
    app.include_router(task_routes.router)
    app.include_router(ui.router)
    app.include_router(audit_routes.router)
    app.include_router(router)
    add_problem_handlers(app)
    return app


@router.get("/info", response_model=ServiceInfo, responses=problems(503))
async def info(_: Request, core: CoreOfApp) -> Response:
    """Describe the service: backbone, execution provider in use, limits."""
    return json_answer(await core.info(), exclude_none=False)


def direct_routes() -> list[APIRoute]:
    """Return the routes whose endpoints take no more than the request and the core, and which are
    called more often than all others."""
    routes = [*inference_routes.router.routes, *router.routes]
    return [route for route in routes if isinstance(route, APIRoute)]
