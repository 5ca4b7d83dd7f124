"""Write ``docs/reference.md`` from the code: routes, error codes, settings and metrics.

    python -m tools.reference > docs/reference.md

Routes come from the OpenAPI document, error codes from the docstrings of ``prompt_serve.errors``,
settings from the fields of ``Settings``, and metrics from ``prompt_serve.service.observability``.
"""

import inspect
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import get_args

from prometheus_client.metrics import MetricWrapperBase
from pydantic.fields import FieldInfo

from prompt_serve.errors import ERRORS_BY_CODE, PromptServeError
from prompt_serve.service.env_files import PREFIX
from prompt_serve.service.http.app import create_app
from prompt_serve.service.middleware.auth import required_action
from prompt_serve.service.observability import metrics
from prompt_serve.service.settings import Settings

_WAY_OUT = "\n\nWay out: "
_FRAMEWORK_CODES = [
    ["404", "`not-found`", "The path does not exist.", "see [Routes](#routes)"],
    ["405", "`method-not-allowed`", "The path has other methods.", "`Allow` lists them"],
]
_OTHER_VARIABLES = [
    ["`PROMPT_SERVE_URL`", "`http://localhost:3000`", "Address of the service, for commands."],
    ["`PROMPT_SERVE_API_KEY`", "unset", "API key that the clients and commands send."],
    [
        "`PROMPT_SERVE_CACHE`",
        "`~/.cache/prompt-serve`",
        "Folder of the image features of training, and of images copied for it.",
    ],
    [
        "`PROMPT_SERVE_CACHE_LIMIT`",
        "`20GB`",
        "Maximum size of each of the two; files that were not used for longest are removed.",
    ],
    ["`PROMPT_SERVE_ENV_FILE`", "`.env`", "File of variables; empty: none."],
    ["`PROMPT_SERVE_SECRETS_DIR`", "unset", "Folder with one file per variable."],
]
_SOURCE = (
    "<!-- Written by `python -m tools.reference > docs/reference.md`; edit the code instead. -->"
)
_MEBIBYTE = 2**20


def reference() -> str:
    """Return the whole page."""
    sections = [
        f"# Reference\n\n{_SOURCE}",
        "For operators and authors of clients: every route, error code, setting and metric of the "
        "service.\nThis page is generated from the code. `/v1/docs` of a running service describes "
        "requests and responses field by field.",
        "## Routes\n\nThe statuses are all that a route can return; [Status codes](#status-codes) "
        "lists the codes behind them.\nThe action is the one that an [API key](operations.md#keys) "
        "needs. Unknown paths return 404 `not-found`, wrong methods\n405 `method-not-allowed`.",
        table(["method and path", "statuses", "action", "description"], _routes()),
        "Routes outside of `/v1/openapi.json`:",
        table(["method and path", "action", "description"], _other_routes()),
        "## Status codes\n\nErrors are problem documents (RFC 9457, `application/problem+json`): "
        "`status`, `title`, `detail` for people,\n`code` for programs, and facts as further "
        "members. A rejected upload changes nothing.",
        table(["status", "code", "when", "way out"], _codes()),
        "## Settings\n\nEnvironment variables of the service, read when it starts. An invalid or "
        "misspelled variable stops the start,\nand all of them are reported at once.",
        table(["variable", "default", "values", "description"], _settings()),
        "Variables of the client, the commands and training, and files that hold variables\n"
        "([Settings in files](operations.md#settings-in-files)):",
        table(["variable", "default", "description"], _OTHER_VARIABLES),
        "## Metrics\n\nSeries of `GET /metrics`. No label holds a value that a caller chooses.",
        table(["name", "type", "labels", "description"], _metrics()),
    ]
    return "\n\n".join(sections) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def way_out(kind: type[PromptServeError]) -> str | None:
    """Return the way out that an error's docstring names; None if no client can receive it."""
    _, found, text = (inspect.getdoc(kind) or "").partition(_WAY_OUT)
    return " ".join(text.split()).removesuffix(".") if found else None


def _routes() -> Iterator[list[str]]:
    for path, operations in create_app().openapi()["paths"].items():
        for method, operation in operations.items():
            route = f"{method.upper()} /v1{path}"
            statuses = ", ".join(sorted(operation["responses"]))
            yield [f"`{route}`", statuses, _action(route), _paragraph(operation["description"])]


def _other_routes() -> Iterator[list[str]]:
    for route, description in (
        ("GET /livez", "Liveness probe."),
        (
            "GET /readyz",
            "Readiness probe; with `?writable=true`, whether changes can be stored too.",
        ),
        ("GET /metrics", "[Metrics](#metrics) in the Prometheus text format."),
        ("GET /v1/ui", "Web page to try tasks on images."),
        ("GET /v1/docs", "Web page of the API."),
        ("GET /v1/openapi.json", "OpenAPI document of all routes above."),
        ("POST /classify", "Base64 `images`, `tasks` and `top_k` as JSON, for BentoML's client."),
    ):
        yield [f"`{route}`", _action(route), description]


def _action(route: str) -> str:
    method, path = route.split()
    return required_action(method, re.sub(r"\{\w+\}", "x", path)) or "none"


def _codes() -> list[list[str]]:
    rows = [
        [str(kind.status), f"`{code}`", _paragraph(inspect.getdoc(kind) or ""), out]
        for code, kind in ERRORS_BY_CODE.items()
        if (out := way_out(kind)) is not None
    ]
    return sorted([*rows, *_FRAMEWORK_CODES])


def _settings() -> Iterator[list[str]]:
    for name, field in Settings.model_fields.items():
        description = _paragraph(field.description or "")
        yield [f"`{PREFIX}{name.upper()}`", _default(name, field), _values(field), description]


def _default(name: str, field: FieldInfo) -> str:
    value = field.default
    if value is None or value == "":
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if name.endswith("_bytes"):
        return f"`{value}` ({value // _MEBIBYTE} MiB)"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _values(field: FieldInfo) -> str:
    if field.annotation is bool:
        return "`true`, `false`"
    if choices := [choice for choice in get_args(field.annotation) if isinstance(choice, str)]:
        return ", ".join(f"`{choice}`" for choice in choices)
    kinds: dict[object, str] = {int: "integer", float: "number", Path: "path"}
    kind = kinds.get(next(iter(get_args(field.annotation)), field.annotation), "text")
    bounds = {
        name: getattr(limit, name)
        for limit in field.metadata
        for name in ("gt", "ge", "le")
        if hasattr(limit, name)
    }
    least = f"> {bounds['gt']:,}" if "gt" in bounds else f">= {bounds.get('ge', -math.inf):,}"
    at_most = f", <= {bounds['le']:,}" if "le" in bounds else ""
    return f"{kind} {least}{at_most}" if bounds else kind


def _metrics() -> Iterator[list[str]]:
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase) and not metric._labelvalues:
            (described, *_) = metric.describe()
            labels = ", ".join(f"`{label}`" for label in metric._labelnames) or "-"
            suffix = "_total" if described.type == "counter" else ""
            name = f"`{described.name}{suffix}`"
            yield [name, described.type, labels, described.documentation]


def _paragraph(text: str) -> str:
    """Return the first paragraph of ``text`` on one line, fit for a cell of a table."""
    line = " ".join(text.split("\n\n", 1)[0].split()).replace("``", "`").replace("|", "\\|")
    parts = line.split("`")
    parts[::2] = [part.replace("*", "\\*") for part in parts[::2]]  # outside of code
    return "`".join(parts)


def main() -> None:
    """Print the page."""
    print(reference(), end="")


if __name__ == "__main__":
    main()
