"""Refuse paths with control characters: no route has any, and patterns of routes stop at a newline.

Without this, a framework in front of the app would answer some of them, in its own words.
"""

import re

from starlette.types import ASGIApp, Receive, Scope, Send

from prompt_serve.errors import RequestInvalid
from prompt_serve.service.problems import problem_of, problem_response

_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class PathMiddleware:
    """ASGI middleware: 422 for a path with control characters."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _CONTROL_CHARACTERS.search(scope["path"]):
            error = RequestInvalid("The path contains control characters; no route has any.")
            await problem_response(problem_of(error))(scope, receive, send)
            return
        await self._app(scope, receive, send)
