"""Print method and template of every route of the service, of all its frameworks."""

import json
import sys
from collections.abc import Iterable, Iterator

from prompt_serve.service import bento


def list_routes(routes: Iterable[object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield method and template of all routes, nested ones included."""
    for route in routes:
        # The path without convertors, but of a mounted folder without its parameter.
        form = "path_format" if hasattr(route, "methods") else "path"
        path = prefix + (getattr(route, form, None) or "")
        inner = getattr(route, "original_router", None) or getattr(route, "app", None)
        if getattr(route, "path", None) == "/v1":
            inner = bento._app  # mounted as a plain function
        below = getattr(inner, "routes", None)
        methods = getattr(route, "methods", None)
        if below:
            yield from list_routes(below, path)
        elif methods:
            yield from ((method, path) for method in methods)
        else:
            yield "GET", path  # a folder of files


if __name__ == "__main__":
    app = bento.PromptServe.to_asgi(is_main=True)  # type: ignore[attr-defined]  # a Service
    json.dump(sorted(list_routes(app.routes)), sys.stdout)
