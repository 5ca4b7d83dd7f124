"""A benchmark of nine emoji, packed as npm packs it, and a registry that serves it."""

import io
import json
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prompt_serve.research.iconbench.packages import Package, Pins, integrity_of
from prompt_serve.research.iconbench.selection import Selection, digest, read_emoji, select
from prompt_serve.research.iconbench.styles import STYLES
from prompt_serve.research.iconbench.svg_rendering import RESVG

SIZE = 16
GROUPS = {
    "groups": {"0": "animals-nature", "1": "food-drink", "2": "symbols"},
    "subgroups": {
        "0": "animal-mammal",
        "1": "animal-bird",
        "2": "animal-amphibian",
        "3": "animal-reptile",
        "4": "food-fruit",
        "5": "food-prepared",
        "6": "keycap",
    },
}
# Label, group, sub-group, in Unicode's order.
EMOJI = (
    ("dog", 0, 0),
    ("cat", 0, 0),
    ("chick", 0, 1),
    ("frog", 0, 2),
    ("crocodile", 0, 3),
    ("red apple", 1, 4),
    ("hot dog", 1, 5),
    ("keycap: #", 2, 6),
    ("keycap: *", 2, 6),
)
# What a style has no drawing of.
LACKING = {"fxemoji": ("red-apple", "hot-dog"), "emojione": ("cat",), "noto": ("dog",)}
HIDDEN = {"noto-v1": "frog"}


def emoji_data() -> list[dict[str, Any]]:
    """Emojibase data: unordered, with skin tones and an entry without group."""
    listed = [
        {"label": label, "order": n, "group": group, "subgroup": subgroup, "hexcode": f"{n:04X}"}
        for n, (label, group, subgroup) in enumerate(EMOJI)
    ]
    listed[0]["skins"] = [{"label": "dog: dark skin tone", "order": 99}]
    return [{"label": "regional indicator A", "hexcode": "1F1E6"}, *reversed(listed)]


def icon_set(style: str) -> dict[str, Any]:
    """An iconify set whose drawings are colored squares, each of its own color."""
    keys = ["dog", "cat", "chick", "frog", "crocodile", "red-apple", "hot-dog", "keycap"]
    keys = [key for key in keys if key not in LACKING.get(style, ())]
    shade = 20 * STYLES.index(style)
    icons: dict[str, dict[str, Any]] = {
        key: {"body": f'<path fill="rgb({shade},{25 * n},90)" d="M2 2h12v12H2z"/>'}
        for n, key in enumerate(keys)
    }
    icons["dog-dark"] = {"body": '<path d="M0 0h16v16H0z"/>'}
    if style in HIDDEN:
        icons[HIDDEN[style]]["hidden"] = True
    return {"prefix": style, "icons": icons, "width": 16, "height": 16}


def small_selection() -> Selection:
    return select(read_emoji(GROUPS, emoji_data()), {style: icon_set(style) for style in STYLES})


def packed(files: Mapping[str, object]) -> bytes:
    """An npm archive of JSON files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, document in files.items():
            data = json.dumps(document).encode()
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def small_packages() -> dict[Package, bytes]:
    """Each package with its archive."""
    found = {}
    for style in STYLES:
        info = {
            "name": style.title(),
            "author": {"name": "Somebody", "url": f"https://example.org/{style}"},
            "license": {"title": "MIT", "spdx": "MIT"},
        }
        data = packed({"icons.json": icon_set(style), "info.json": info, "other.json": {}})
        found[_package(f"@iconify-json/{style}", data, style)] = data
    data = packed({"meta/groups.json": GROUPS, "en/data.json": emoji_data(), "de/data.json": []})
    found[_package("emojibase-data", data)] = data
    return found


def _package(name: str, data: bytes, style: str = "") -> Package:
    return Package(
        name=name,
        version="1.0.0",
        integrity=integrity_of(data),
        size_bytes=len(data),
        style=style,
    )


def small_pins(packages: Mapping[Package, bytes]) -> Pins:
    return Pins(
        packages=tuple(packages),
        selection=digest(small_selection()),
        pixels="",
        size=SIZE,
        resvg=RESVG,
    )


def other_integrity(package: Package) -> Package:
    return replace(package, integrity=integrity_of(b"something else"))


class Registry(ThreadingHTTPServer):
    """Serves archives; ``statuses`` are returned first, whatever is requested."""

    def __init__(self, packages: Mapping[Package, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {package.url(""): data for package, data in packages.items()}
        self.statuses: list[int] = []
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        data = self.server.files.get(self.path.removeprefix("/elsewhere"))
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        if status == CUT_OFF:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"only this")
            return
        self.send_response(404 if data is None else status)
        if status == 302:
            self.send_header("Location", f"{self.server.url}/elsewhere{self.path}")
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, *_: object) -> None:
        pass


CUT_OFF = 0  # in ``statuses``: the connection ends in the middle


@contextmanager
def running_registry(packages: Mapping[Package, bytes]) -> Iterator[Registry]:
    with Registry(packages) as registry:
        thread = threading.Thread(target=registry.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield registry
        finally:
            registry.shutdown()
            thread.join()
