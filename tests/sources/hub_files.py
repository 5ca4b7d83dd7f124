"""The part of the Hugging Face Hub's HTTP API that lists and reads the files of a data set.

The client is ``huggingface_hub``'s own ``HfFileSystem``: repository and revision, tree, paths-info,
and ``resolve`` with a redirect to another path and byte ranges.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

REVISION = "c0ffee" + "0" * 34


@dataclass
class Hub:
    """Data sets by name, as files by path; ``requests`` are the paths that were asked for."""

    url: str = ""
    datasets: dict[str, dict[str, bytes]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def add(self, name: str, root: Path) -> None:
        """Publish the files of a folder as a data set."""
        self.datasets[name] = {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file()
        }

    def entry(self, name: str, path: str) -> dict[str, Any] | None:
        """Return the entry of a file or folder in a tree; None if there is none."""
        files = self.datasets[name]
        if path in files:
            oid = hashlib.sha1(files[path]).hexdigest()
            return {"type": "file", "path": path, "size": len(files[path]), "oid": oid}
        if any(file.startswith(f"{path}/") for file in files):
            oid = hashlib.sha1(path.encode()).hexdigest()
            return {"type": "directory", "path": path, "size": 0, "oid": oid}
        return None

    def tree(self, name: str, path: str, *, recursive: bool) -> list[dict[str, Any]] | None:
        """Return the entries below a folder; None if there is none."""
        before = f"{path}/" if path else ""
        found: dict[str, None] = {}
        for file in self.datasets[name]:
            if not file.startswith(before):
                continue
            parts = file.removeprefix(before).split("/")
            for depth in range(1, len(parts) + 1 if recursive else 2):
                found[before + "/".join(parts[:depth])] = None
        return [entry for one in sorted(found) if (entry := self.entry(name, one))] or None


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            path = url.path  # a revision may have an escaped slash
            hub.requests.append(path)
            if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(/revision/[^/]+)?", path):
                if self._known(match[1]):
                    self._json({"id": match[1], "sha": REVISION, "private": False, "tags": []})
            elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/[^/]+(?:/(.*))?", path):
                if self._known(match[1]):
                    recursive = "recursive=true" in url.query.lower()
                    tree = hub.tree(match[1], unquote(match[2] or ""), recursive=recursive)
                    self._missing("EntryNotFound") if tree is None else self._json(tree)
            elif match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/[^/]+/(.*)", path):
                if self._known(match[1]):
                    if unquote(match[2]) not in hub.datasets[match[1]]:
                        self._missing("EntryNotFound")
                    else:
                        self._send(302, b"", {"Location": f"/cdn/{match[1]}/{match[2]}"})
            elif match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.*)", path):
                self._file(hub.datasets[match[1]][unquote(match[2])])
            else:
                self._missing("RepoNotFound")

        def do_POST(self) -> None:
            path = urlsplit(self.path).path
            hub.requests.append(path)
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            match = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/paths-info/[^/]+", path)
            assert match, path
            if self._known(match[1]):
                entries = [hub.entry(match[1], one) for one in body["paths"]]
                self._json([entry for entry in entries if entry])

        def _known(self, name: str) -> bool:
            if name not in hub.datasets:
                self._missing("RepoNotFound")
            return name in hub.datasets

        def _missing(self, code: str) -> None:
            self._send(404, b"{}", {"X-Error-Code": code})

        def _json(self, document: Any) -> None:
            self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

        def _file(self, data: bytes) -> None:
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if match is None:
                self._send(200, data, {})
                return
            first, last = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
            where = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
            self._send(206, data[first : last + 1], where)

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Run a hub without any data sets."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
