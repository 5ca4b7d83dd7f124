"""Small real HTTP server that implements the service's API and fails on demand.

It replaces the service in tests of faults: dropped connections, refusals, slow responses,
restarts. Its images are single-colored PNGs that encode a number; the number is the predicted
class.
"""

import asyncio
import io
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from PIL import Image, UnidentifiedImageError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

VERSION = "ab" * 32
LIMITS = {
    "max_body_bytes": 200_000,
    "max_images": 16,
    "max_image_pixels": 50_000_000,
    "max_tasks": 8,
    "max_queue_images": 4096,
}


def numbered_image(number: int) -> bytes:
    """A 2 x 2 PNG whose color is ``number`` (below 65,536)."""
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), (number % 256, number // 256, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def problem(code: str, status: int, detail: str = "As requested.", **facts: object) -> Response:
    body = {"title": code, "status": status, "detail": detail, "code": code, **facts}
    retry = facts.get("retry_after_s")
    headers = {"Retry-After": str(retry)} if retry is not None else {}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


class Drop(Exception):
    """Close the connection instead of answering."""


@dataclass
class Behavior:
    """Behavior of the server for the next requests; tests change it while the server runs."""

    faults: deque[Response | Drop] = field(default_factory=deque)  # one per request
    drop_after_work: deque[Drop] = field(
        default_factory=deque
    )  # the work is done, the response lost
    delay_s: Callable[[], float] = lambda: 0.0
    shuffled: bool = False  # results in another order than the images
    is_refused: Callable[[list[bytes]], Response | None] = lambda images: None
    unknown: set[int] = field(
        default_factory=set
    )  # numbers of images that show none of the classes
    # Labels by number of image, as of multi-label tasks; other images are answered without any.
    labels: dict[int, list[str]] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=lambda: dict(LIMITS))
    tasks: dict[str, bytes] = field(default_factory=dict)
    version: str = VERSION  # of all tasks
    paths: list[str] = field(default_factory=list)  # of all requests so far
    times: list[float] = field(default_factory=list)
    images_per_request: list[int] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0


class _Server(uvicorn.Server):
    """uvicorn's server, which ends when it is told to: uvicorn itself looks every 0.1 s."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.running = threading.Event()

    async def main_loop(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        self.running.set()
        await self._ended.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)


class FakeService:
    """The server in a thread; ``stop`` and ``start`` keep the port."""

    def __init__(self) -> None:
        self.behavior = Behavior()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        config = uvicorn.Config(
            _faulty(_app(self.behavior), self.behavior),
            host="127.0.0.1",
            port=self.port,
            log_level="critical",
            lifespan="off",
            ws="none",
            http="h11",
            timeout_graceful_shutdown=0,
        )
        self._server = _Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        assert self._server.running.wait(timeout=60)

    def stop(self) -> None:
        """Stop as a crash does: requests in flight lose their connection."""
        if self._server is None or self._thread is None:
            return
        self._server.end()
        self._thread.join()
        self._server = None


@contextmanager
def running_fake_service() -> Iterator[FakeService]:
    """A fake service with the task "pets"."""
    service = FakeService()
    service.behavior.tasks["pets"] = b""
    service.start()
    try:
        yield service
    finally:
        service.stop()


def _faulty(app: ASGIApp, behavior: "Behavior") -> ASGIApp:
    async def faulty(scope: Scope, receive: Receive, send: Send) -> None:
        behavior.paths.append(f"{scope['method']} {scope['path']}")
        behavior.times.append(time.monotonic())
        behavior.in_flight += 1
        behavior.most_in_flight = max(behavior.most_in_flight, behavior.in_flight)
        try:
            await asyncio.sleep(behavior.delay_s())
            if behavior.drop_after_work:
                behavior.drop_after_work.popleft()
                await app(scope, receive, _discard)
                _hang_up(send)
            elif not behavior.faults:
                await app(scope, receive, send)
            elif isinstance(fault := behavior.faults.popleft(), Response):
                await _read_body(receive)
                await fault(scope, receive, send)
            else:
                _hang_up(send)
        finally:
            behavior.in_flight -= 1

    return faulty


async def _discard(message: Any) -> None:
    """A ``send`` that loses the response."""


async def _read_body(receive: Receive) -> None:
    while (await receive()).get("more_body"):
        pass


def _hang_up(send: Send) -> None:
    cycle: Any = send.__self__  # type: ignore[attr-defined]  # uvicorn's, which owns the socket
    cycle.transport.abort()


def _parts(content_type: str, body: bytes) -> list[tuple[str, bytes]]:
    """The fields of a multipart body, a hundred times faster than with spooled files."""
    boundary = content_type.partition("boundary=")[2].encode()
    parts = [part.split(b"\r\n\r\n", 1) for part in body.split(b"--" + boundary)[1:-1]]
    return [(head.split(b'name="')[1].split(b'"')[0].decode(), data[:-2]) for head, data in parts]


def _app(behavior: "Behavior") -> Starlette:
    async def info(request: Request) -> Response:
        backbone = {
            "id": "fake",
            "fingerprint": "0" * 64,
            "text_width": 8,
            "embed_dim": 8,
            "context_length": 16,
        }
        return JSONResponse(
            {
                "version": "0.1.0",
                "backbone": backbone,
                "precision": "fp32",
                "image_size": 2,
                "logit_scale": 100.0,
                "provider": "fake",
                "tasks": len(behavior.tasks),
                "revision": 1,
                "limits": behavior.limits,
                "field_of_a_newer_service": True,
            }
        )

    async def classify(request: Request) -> Response:
        parts = _parts(request.headers["content-type"], await request.body())
        images = [body for name, body in parts if name == "image"]
        tasks = [body.decode() for name, body in parts if name == "task"]
        behavior.images_per_request.append(len(images))
        refusal = behavior.is_refused(images)
        if refusal is not None:
            return refusal
        unknown = [task for task in tasks if task not in behavior.tasks]
        if unknown:
            loaded = sorted(behavior.tasks)
            return problem("task-not-found", 404, "No task.", name=unknown[0], loaded=loaded)
        results = [_result(index, image, tasks, behavior) for index, image in enumerate(images)]
        if behavior.shuffled:
            random.shuffle(results)
        errors = [r for r in results if "error" in r]
        if len(errors) == len(images):
            if len(images) == 1:  # a request of one image fails with its own error
                return problem("image-invalid", 422, str(errors[0]["error"]["detail"]))
            listed = [{"index": r["index"], **r["error"]} for r in errors]
            return problem("image-invalid", 422, "No image is good.", errors=listed)
        return JSONResponse({"results": results, "backbone": "fake"})

    async def task(request: Request) -> Response:
        name = request.path_params["name"]
        if request.method == "PUT":
            behavior.tasks[name] = await request.body()
            return JSONResponse(_task_info(name, behavior.version), 201)
        if name not in behavior.tasks:
            return problem("task-not-found", 404, "No task.", name=name)
        if request.method == "DELETE":
            del behavior.tasks[name]
            return Response(status_code=204)
        return JSONResponse(_task_info(name, behavior.version))

    async def task_file(request: Request) -> Response:
        return Response(behavior.tasks[request.path_params["name"]])

    async def tasks(request: Request) -> Response:
        if request.method == "POST":
            name = str((await request.json())["name"])
            behavior.tasks[name] = b""
            return JSONResponse(_task_info(name, behavior.version), 201)
        limit, after = int(request.query_params["limit"]), request.query_params.get("cursor", "")
        names = sorted(name for name in behavior.tasks if name > after)
        page = names[:limit]
        following = page[-1] if len(names) > limit else None
        summaries = [{k: _task_info(n, behavior.version)[k] for k in _SUMMARY} for n in page]
        return JSONResponse({"tasks": summaries, "revision": 1, "next": following})

    async def ready(request: Request) -> Response:
        return PlainTextResponse("ready")

    return Starlette(
        routes=[
            Route("/v1/info", info),
            Route("/v1/classify", classify, methods=["POST"]),
            Route("/v1/tasks", tasks, methods=["GET", "POST"]),
            Route("/v1/tasks/{name}", task, methods=["GET", "PUT", "DELETE"]),
            Route("/v1/tasks/{name}/file", task_file),
            Route("/readyz", ready),
        ]
    )


_SUMMARY = ("name", "version", "method", "backbone", "n_classes", "size_bytes", "updated")


def _task_info(name: str, version: str) -> dict[str, Any]:
    return {
        "name": name,
        "version": version,
        "method": "zero_shot",
        "backbone": "fake",
        "n_classes": 2,
        "size_bytes": 100,
        "updated": "2026-01-01T00:00:00Z",
        "class_names": ["cat", "dog"],
        "templates": ["a photo of a {}."],
        "class_position": "end",
        "learned_numbers": 0,
        "payload_bytes": 0,
        "metrics": {},
    }


def _result(index: int, image: bytes, tasks: list[str], behavior: Behavior) -> dict[str, Any]:
    try:
        red, green, _ = Image.open(io.BytesIO(image)).convert("RGB").getpixel((0, 0))  # type: ignore[misc]  # RGB has three
    except UnidentifiedImageError:
        error = {"title": "Bad", "status": 422, "detail": "Not an image.", "code": "image-invalid"}
        return {"index": index, "error": error}
    number = int(red) + 256 * int(green)
    classes = [{"class_name": f"{number}", "label": 0, "probability": 0.9, "logit": 1.0}]
    answer: dict[str, Any] = {"version": behavior.version, "classes": classes}
    if number in behavior.unknown:  # services of the first version leave the field out
        answer["unknown"] = True
    if number in behavior.labels:
        answer["labels"] = behavior.labels[number]
    predictions = [{"task": task, **answer} for task in tasks]
    return {"index": index, "predictions": predictions}
