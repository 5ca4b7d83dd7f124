"""Growth of costs: tasks, classes of a task, tasks per image and images per request.

    python -m benchmarks.scale_curves --curve tasks
    python -m benchmarks.scale_curves --curve classes --points 10 1000 100000
    python -m benchmarks.scale_curves --curve tasks --points        draws what was measured before

Every point is a service of its own. Rows go to ``docs/results/scale_curves/CURVE.jsonl``, where a
point that is measured again replaces its row; the table and the log-log plot beside it show all.
The image encoder is a graph without work (``front.null_bundle``), so that the rest is visible; the
text encoder is that of the embedded backbone, and so is everything in the columns ``jpeg``.

* tasks: registered tasks of ten classes with stored class features.
* classes: classes of one task, uploaded as names.
* tasks-per-image: all tasks of a registry for one image, of ten classes each.
* images-per-request: images in one body, as pixels, and as JPEG files with the embedded backbone.
"""

import argparse
import contextlib
import http.client
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.all_tasks import NDJSON, memory_bytes
from benchmarks.front import SIDE, add_task, cpu_s, measured, null_bundle
from benchmarks.http_throughput import write_images
from benchmarks.many_tasks import HOT, fill
from prompt_serve.bundle import shipped_bundle
from tests.service.process import ROOT, Served, service

RESULTS = ROOT / "docs" / "results" / "scale_curves"
CLASSES = 10  # per task, where it is not the classes that grow
MIB = 2**20
LIMITS = {"max_tasks": "10000", "max_images": "1024", "max_queue_images": "8192"}  # beyond defaults
JPEG_SIZE = (500, 375)
BOUNDARY = "a-boundary-of-parts"

Row = dict[str, float]


@dataclass(frozen=True)
class Panel:
    """One of the plots of a figure: columns that share an axis."""

    label: str
    columns: dict[str, str]  # with the text of the legend


@dataclass(frozen=True)
class Curve:
    """Points of one axis, the measurement of one of them, and the plots."""

    points: Sequence[int]
    measure: Callable[[int, Path, Path], Row]
    label: str
    panels: Sequence[Panel]


def main() -> None:
    options = parse()
    curve = CURVES[options.curve]
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        bundle = null_bundle(Path(name, "bundle"))
        for n in curve.points if options.points is None else options.points:
            keep(options.curve, {"n": n, **curve.measure(n, folder, bundle)})
    rows = kept(options.curve)
    print(*(table(curve, panel, rows) for panel in curve.panels), sep="\n\n")
    draw(curve, rows, RESULTS / f"{options.curve}.svg")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--curve", choices=CURVES, required=True, help="cost to measure")
    add("--points", type=int, nargs="*", help="points to measure [default: all of the curve]")
    add("--folder", type=Path, help="folder to keep filled registries in [default: none is kept]")
    return parser.parse_args()


# Points of the curves


def tasks(n: int, folder: Path, bundle: Path) -> Row:
    """Measure a service with ``n`` registered tasks: start, requests, uploads and memory."""
    home, row = filled(folder, n, bundle), Row()
    row["registry_mib"] = sum(file.stat().st_size for file in home.glob("registry.db*")) / MIB
    began = time.perf_counter()
    with connected(home, bundle) as (served, client):
        row["start_ms"] = 1000 * (time.perf_counter() - began)
        row["open_registry_ms"] = 1000 * client.json("/v1/info")["cold_start_s"]["registry"]
        row["hot_ms"] = p50_ms(lambda _: client.classify(HOT), 500)
        row["start_mib"] = memory_bytes(served) / MIB
        row["list_ms"] = p50_ms(lambda _: client.json("/v1/tasks?limit=100"), 20)
        row["search_ms"] = p50_ms(lambda _: client.json("/v1/tasks?search=zebra"), 20)
        row |= uploads(client)
        row["all_cold_ms"] = timed_ms(lambda: client.classify("*", NDJSON))
        row["all_mib"] = memory_bytes(served) / MIB
        row["all_warm_ms"] = p50_ms(lambda _: client.classify("*", NDJSON), 3)
        some = np.random.default_rng(0).integers(n, size=500)
        row["mixed_ms"] = p50_ms(lambda turn: client.classify(f"task-{some[turn]:05}"), 500)
    return row


def uploads(client: "Client", times: int = 30) -> Row:
    """Measure uploads of new class names, and the requests that find a changed registry."""
    found: dict[str, list[float]] = {"upload_ms": [], "after_upload_ms": [], "count_ms": []}
    for turn in range(times):
        found["upload_ms"].append(timed_ms(partial(client.upload, CLASSES, f"new {turn}")))
        found["after_upload_ms"].append(timed_ms(lambda: client.classify(HOT)))
        found["count_ms"].append(timed_ms(lambda: client.json("/v1/info")))
    client.ask("DELETE", "/v1/tasks/fresh")
    return {name: float(np.median(of_name)) for name, of_name in found.items()}


def classes(n: int, folder: Path, bundle: Path) -> Row:
    """Measure one task of ``n`` classes: its upload, images against it, and a restart."""
    with tempfile.TemporaryDirectory() as home:
        with connected(Path(home), bundle) as (served, client):
            row = answers_of_classes(n, served, client)
        with connected(Path(home), bundle) as (served, client):
            client.json("/v1/info")
            memory = memory_bytes(served)
            row["first_ms"] = timed_ms(lambda: client.classify("fresh"))
            row["loaded_mib"] = (memory_bytes(served) - memory) / MIB
    return row


def answers_of_classes(n: int, served: Served, client: "Client") -> Row:
    client.upload(CLASSES, "warm-up")
    client.classify("fresh")
    memory, used = memory_bytes(served), cpu_s(served)
    times = [timed_ms(lambda: client.upload(n, "kind"))]
    client.classify("fresh")
    row = {"uploaded_mib": (memory_bytes(served) - memory) / MIB}
    row["file_mib"] = len(client.ask("GET", "/v1/tasks/fresh/file")) / MIB
    for turn in range(1, min(30, 30_000 // n)):
        times.append(timed_ms(partial(client.upload, n, f"kind {turn}")))
    row["upload_ms"] = float(np.median(times))
    row["upload_cpu_ms"] = 1000 * (cpu_s(served) - used) / len(times)
    row["classify_ms"] = p50_ms(lambda _: client.classify("fresh"), 300)
    body = pixels(32)
    row["classify_of_32_ms"] = p50_ms(lambda _: client.classify("fresh", body=body), 100) / 32
    return row


def tasks_per_image(n: int, folder: Path, bundle: Path) -> Row:
    """Measure one image by all tasks of a registry, in each form of the answer."""
    row = Row()
    with connected(filled(folder, n, bundle), bundle) as (served, client):
        forms: dict[str, Callable[[], bytes]] = {
            "json": lambda: client.classify("*"),
            "ndjson": lambda: client.classify("*", NDJSON),
            "best_10": lambda: client.classify("*&top_tasks=10"),
        }
        row["cold_ms"] = timed_ms(forms["ndjson"])
        for form, ask in forms.items():
            used = cpu_s(served)
            times: list[float] = []
            give_up = time.perf_counter() + 3
            while len(times) < 300 and time.perf_counter() < give_up:
                times.append(timed_ms(ask))
            row[f"{form}_ms"] = float(np.median(times))
            row[f"{form}_cpu_ms"] = 1000 * (cpu_s(served) - used) / len(times)
        row["first_line_ms"] = p50_ms(lambda _: client.first_byte("*", NDJSON), 10)
        row["ndjson_kib"] = len(forms["ndjson"]()) / 1024
    return row


def images_per_request(n: int, folder: Path, bundle: Path) -> Row:
    """Measure requests of ``n`` images: one at a time, and four in flight."""
    photos = write_images(Path(tempfile.mkdtemp(dir=bundle.parent)) / "photos", JPEG_SIZE)
    kinds = {
        "pixels": (bundle, "application/x-npy", pixels(n)),
        "jpeg": (
            shipped_bundle("embedded"),
            f"multipart/form-data; boundary={BOUNDARY}",
            form(n, sorted(photos.iterdir())),
        ),
    }
    row = Row()
    for kind, (of_kind, content_type, body) in kinds.items():
        head = (
            f"POST /v1/classify?task=bench&top_k=1 HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with (
            tempfile.TemporaryDirectory() as home,
            service(Path(home), of_kind, **LIMITS) as served,
        ):
            add_task(served)
            request = photos.with_name("request")
            request.write_bytes(head.encode() + body)
            for concurrency in (1, 4):
                found = measured(served, request, concurrency, clients=1, seconds=2)
                if found.failed:
                    raise RuntimeError(f"{found.failed} requests of {n} images failed")
                if concurrency == 1:
                    row[f"{kind}_ms"] = found.p50_ms
                    row[f"{kind}_image_ms"] = found.p50_ms / n
                    row[f"{kind}_image_cpu_ms"] = found.server_ms / n
                row[f"{kind}_images_per_s_{concurrency}"] = n * found.requests_per_s
    return row


# The service and its client


class Client:
    """Client with one connection, which costs less than httpx."""

    def __init__(self, served: Served) -> None:
        port = int(served.url.rpartition(":")[2])
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        self._image = pixels(1)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> bytes:
        self._connection.request(method, path, body, headers or {})
        response = self._connection.getresponse()
        answer = response.read()
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: {response.status} {answer[:500]!r}")
        return answer

    def json(self, path: str) -> Any:
        return json.loads(self.ask("GET", path))

    def classify(
        self, task: str, headers: dict[str, str] | None = None, body: bytes | None = None
    ) -> bytes:
        sent = {"Content-Type": "application/x-npy", **(headers or {})}
        return self.ask("POST", f"/v1/classify?top_k=1&task={task}", body or self._image, sent)

    def first_byte(self, task: str, headers: dict[str, str]) -> None:
        """Ask, and return at the first byte of the answer; it is the last of this connection."""
        sent = {"Content-Type": "application/x-npy", **headers}
        path = f"/v1/classify?top_k=1&task={task}"
        self._connection.request("POST", path, self._image, sent)
        self._connection.getresponse().read(1)
        self._connection.close()  # the next request opens another one

    def upload(self, n: int, kind: str) -> bytes:
        names = [f"thing {number} of {kind} {n}" for number in range(n)]
        body = json.dumps({"name": "fresh", "class_names": names}).encode()
        return self.ask("POST", "/v1/tasks", body, {"Content-Type": "application/json"})


@contextlib.contextmanager
def connected(home: Path, bundle: Path) -> Iterator[tuple[Served, Client]]:
    with service(home, bundle, **LIMITS) as served:
        yield served, Client(served)


def filled(folder: Path, n: int, bundle: Path) -> Path:
    """Return a home with ``n`` tasks, the one of an earlier run if there is one."""
    home = folder / f"{n}-tasks"
    if not home.exists():
        folder.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        fill(home, bundle, n, CLASSES)
        print(f"filled {n:,} tasks in {time.perf_counter() - began:.1f} s", flush=True)
    return home


def pixels(n: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.random.default_rng(0).integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8))
    return file.getvalue()


def form(n: int, photos: Sequence[Path]) -> bytes:
    head = (
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; name=image; filename=a.jpg\r\n"
        f"Content-Type: image/jpeg\r\n\r\n"
    ).encode()
    parts = [head + photos[k % len(photos)].read_bytes() + b"\r\n" for k in range(n)]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def p50_ms(ask: Callable[[int], object], times: int, seconds: float = 10) -> float:
    """Return the median of up to so many calls, at least one, within about so many seconds."""
    found: list[float] = []
    give_up = time.perf_counter() + seconds
    while not found or (len(found) < times and time.perf_counter() < give_up):
        found.append(timed_ms(partial(ask, len(found))))
    return float(np.median(found))


def timed_ms(ask: Callable[[], object]) -> float:
    began = time.perf_counter()
    ask()
    return 1000 * (time.perf_counter() - began)


# Rows, table and plot


def keep(name: str, row: Row) -> None:
    """Write a row to the file of its curve, in the place of an earlier one."""
    print(json.dumps(row), flush=True)
    rows = {one["n"]: one for one in kept(name)} | {row["n"]: row}
    RESULTS.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(rounded(rows[n])) + "\n" for n in sorted(rows)]
    (RESULTS / f"{name}.jsonl").write_text("".join(lines))


def kept(name: str) -> list[Row]:
    file = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def rounded(row: Row) -> Row:
    return {name: value if name == "n" else float(f"{value:.3g}") for name, value in row.items()}


def table(curve: Curve, panel: Panel, rows: Sequence[Row]) -> str:
    """Format the rows of a plot as a table of Markdown."""
    names = ["n", *panel.columns]
    cells = [[f"{row[name]:,.10g}" if name in row else "" for name in names] for row in rows]
    header = [f"{panel.label} by {curve.label}", *panel.columns.values()]
    lines = [header, ["---"] * len(names), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(curve: Curve, rows: Sequence[Row], path: Path) -> None:
    """Plot rows log-log; equal rows give an equal file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    count = len(curve.panels)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem, "font.size": 9}):
        figure = Figure(figsize=(4.2 * count, 3.6), layout="constrained")
        for axes, panel in zip(
            figure.subplots(1, count, squeeze=False)[0], curve.panels, strict=True
        ):
            for column, legend in panel.columns.items():
                found = [(row["n"], row[column]) for row in rows if row.get(column, 0) > 0]
                xs, ys = zip(*found, strict=True) if found else ((), ())
                axes.loglog(xs, ys, "o-", label=legend, markersize=4)
            axes.set(xlabel=curve.label, ylabel=panel.label)
            axes.minorticks_off()
            axes.grid(visible=True, color="#e4e6ea")
            axes.legend(frameon=False)
        figure.savefig(path, metadata={"Date": None})


CURVES = {
    "tasks": Curve(
        (1, 10, 100, 1_000, 10_000, 100_000),
        tasks,
        "registered tasks",
        (
            Panel(
                "MiB",
                {
                    "start_mib": "memory after the start",
                    "all_mib": "memory with all tasks used",
                    "registry_mib": "registry on disk",
                },
            ),
            Panel(
                "ms",
                {
                    "start_ms": "start, until ready",
                    "open_registry_ms": "of it, the registry",
                    "all_cold_ms": "one image by all, first time",
                    "all_warm_ms": "one image by all, again",
                },
            ),
            Panel(
                "ms (p50)",
                {
                    "hot_ms": "classify, one task",
                    "mixed_ms": "classify, any task",
                    "after_upload_ms": "classify after a change",
                    "upload_ms": "upload of 10 names",
                    "count_ms": "/v1/info after a change",
                    "list_ms": "list 100 tasks",
                    "search_ms": "search",
                },
            ),
        ),
    ),
    "classes": Curve(
        (10, 100, 1_000, 10_000, 100_000),
        classes,
        "classes of the task",
        (
            Panel(
                "ms",
                {"upload_ms": "upload of new names", "upload_cpu_ms": "its CPU, all threads"},
            ),
            Panel(
                "ms per image (p50)",
                {
                    "classify_ms": "one image per request",
                    "classify_of_32_ms": "32 images per request",
                    "first_ms": "first image after a restart",
                },
            ),
            Panel(
                "MiB",
                {
                    "uploaded_mib": "memory, after the upload",
                    "loaded_mib": "memory, after a restart",
                    "file_mib": "prompt file",
                },
            ),
        ),
    ),
    "tasks-per-image": Curve(
        (1, 10, 100, 1_000, 10_000),
        tasks_per_image,
        "tasks per image",
        (
            Panel(
                "ms (p50)",
                {
                    "json_ms": "JSON",
                    "ndjson_ms": "NDJSON, last line",
                    "first_line_ms": "NDJSON, first line",
                    "best_10_ms": "best 10 tasks",
                    "cold_ms": "NDJSON, nothing in memory",
                },
            ),
            Panel(
                "CPU ms per request",
                {
                    "json_cpu_ms": "JSON",
                    "ndjson_cpu_ms": "NDJSON",
                    "best_10_cpu_ms": "best 10 tasks",
                },
            ),
        ),
    ),
    "images-per-request": Curve(
        (1, 4, 16, 64, 256),
        images_per_request,
        "images per request",
        (
            Panel(
                "ms per image",
                {
                    "pixels_image_ms": "pixels, no encoder: p50",
                    "pixels_image_cpu_ms": "pixels, no encoder: CPU",
                    "jpeg_image_ms": "JPEG, embedded: p50",
                    "jpeg_image_cpu_ms": "JPEG, embedded: CPU",
                },
            ),
            Panel(
                "images/s",
                {
                    "pixels_images_per_s_1": "pixels, 1 request in flight",
                    "pixels_images_per_s_4": "pixels, 4 in flight",
                    "jpeg_images_per_s_1": "JPEG, 1 in flight",
                    "jpeg_images_per_s_4": "JPEG, 4 in flight",
                },
            ),
            Panel("ms per request (p50)", {"pixels_ms": "pixels", "jpeg_ms": "JPEG"}),
        ),
    ),
}

if __name__ == "__main__":
    main()
