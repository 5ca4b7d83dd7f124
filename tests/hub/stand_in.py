"""A stand-in of the Hugging Face Hub: the part of its HTTP API that its client uses for models."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_of_me"
READ_TOKEN = "hf_read_only"
USER = "me"
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


@dataclass
class Repo:
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # oldest first
    messages: list[str] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    lfs: set[str] = field(default_factory=set)  # names stored as LFS objects

    def __post_init__(self) -> None:
        self.commit({}, "initial commit")

    def commit(self, files: dict[str, bytes], message: str, branch: str = "main") -> str:
        oid = hashlib.sha1(f"{len(self.commits)}{message}".encode()).hexdigest()
        before = self.commits.get(self.branches.get(branch, ""), {})
        self.commits[oid] = {**before, **files}
        self.messages.append(message)
        self.branches[branch] = oid
        return oid

    def at(self, revision: str) -> str | None:
        oid = self.branches.get(revision, revision)
        return oid if oid in self.commits else None

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.branches["main"]]


@dataclass
class Hub:
    """Repositories by their names, and the requests that came."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # of LFS, by sha256
    requests: list[str] = field(default_factory=list)
    agents: set[str] = field(default_factory=set)
    lfs_suffix: str = ".bin"  # files with it go to LFS
    failing: int | None = None  # status of every answer
    damages: int = 0  # bytes of a file after which all are sent as zero
    failing_upload: int | None = None  # status of uploads to the large file storage


class Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815  # names of http.server

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        self.hub.agents.add(self.headers.get("User-Agent", ""))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self._chunks()
        try:
            if self.hub.failing:
                raise Refused(self.hub.failing, message="Down for maintenance")
            for pattern, method in _ROUTES:
                if found := re.fullmatch(pattern, f"{self.command} {path}"):
                    method(self, **found.groupdict())
                    return
            raise Refused(404, message=f"Not here: {path}")
        except Refused as refused:
            self._send(
                {"error": refused.message},
                status=refused.status,
                headers={"X-Error-Code": refused.code, "X-Error-Message": refused.message},
            )

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status, HTTPStatus(status).phrase)
        for name, value in (headers or {}).items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _writer(self) -> None:
        if self._token is None:
            raise Refused(401, message="Invalid credentials in Authorization header")
        if self._token != TOKEN:
            raise Refused(403, message="this token has no write access")

    def _repo(self, repo: str) -> Repo:
        found = self.hub.repos.get(repo)
        if found is None or (found.private and self._token not in (TOKEN, READ_TOKEN)):
            # As the Hub answers: nobody learns which private repositories there are.
            raise Refused(404 if self._token else 401, "RepoNotFound", "Repository not found")
        if found.gated:
            raise Refused(403, "GatedRepo", "Access to this model is restricted")
        return found

    def _commit_of(self, found: Repo, revision: str) -> str:
        oid = found.at(revision)
        if oid is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid

    # Routes

    def create(self) -> None:
        self._writer()
        asked = json.loads(self.body)
        owner = asked.get("organization") or USER
        repo = f"{owner}/{asked['name']}"
        if owner != USER:
            raise Refused(403, message=f"You don't have the rights to create under {owner}")
        if repo in self.hub.repos:
            url = f"{self.hub.url}/{repo}"
            self._send({"error": "You already created this model repo", "url": url}, status=409)
            return
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repos[repo] = Repo(private=private)
        self._send({"url": f"{self.hub.url}/{repo}", "name": repo})

    def validate(self) -> None:
        content = json.loads(self.body)["content"]
        try:
            found = _FRONT_MATTER.match(content)
            assert found is not None, "there is no metadata"
            metadata = yaml.safe_load(found[1])
            assert isinstance(metadata, dict), "the metadata are no mapping"
            assert isinstance(metadata.get("tags", []), list), "tags are no list"
        except (AssertionError, yaml.YAMLError) as error:
            self._send({"errors": [{"message": str(error)}]}, status=400)
            return
        self._send({"errors": [], "warnings": []})

    def info(self, repo: str, revision: str | None = None) -> None:
        found = self._repo(repo)
        oid = self._commit_of(found, revision or "main")
        siblings: list[dict[str, Any]] = []
        for name, data in found.commits[oid].items():
            pointer = b"oid sha256:" + hashlib.sha256(data).hexdigest().encode()
            in_git = pointer if name in found.lfs else data
            blob = hashlib.sha1(b"blob %d\0" % len(in_git) + in_git).hexdigest()
            siblings.append({"rfilename": name, "size": len(data), "blobId": blob})
            if name in found.lfs:
                digest = hashlib.sha256(data).hexdigest()
                siblings[-1]["lfs"] = {
                    "sha256": digest, "size": len(data), "pointerSize": len(pointer),
                }  # fmt: skip
        self._send(
            {"id": repo, "modelId": repo, "sha": oid, "private": found.private, "tags": [],
             "siblings": siblings, "downloads": 0, "likes": 0}
        )  # fmt: skip

    def preupload(self, repo: str, revision: str) -> None:
        self._writer()
        self._commit_of(self._repo(repo), revision)
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(self.hub.lfs_suffix) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        self._send({"files": files})

    def commit(self, repo: str, revision: str) -> None:
        self._writer()
        found = self._repo(repo)
        self._commit_of(found, revision)
        header, *operations = (json.loads(line) for line in self.body.splitlines() if line.strip())
        files = {}
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert operation["key"] == "lfsFile"
                files[value["path"]] = self.hub.objects[value["oid"]]
                found.lfs.add(value["path"])
        oid = found.commit(files, header["value"]["summary"], revision)
        self._send(
            {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{oid}"}
        )

    def resolve(self, repo: str, revision: str, name: str) -> None:
        found = self._repo(repo)
        oid = self._commit_of(found, revision)
        headers = {"X-Repo-Commit": oid}
        data = found.commits[oid].get(name)
        if data is None:
            raise Refused(404, "EntryNotFound", "Entry not found")
        if name in found.lfs:
            digest = hashlib.sha256(data).hexdigest()
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
            # Of another host, as the Hub's storage is: the client does not send its token there.
            headers |= {
                "Location": f"{self.hub.url.replace('127.0.0.1', 'localhost')}/lfs/{digest}"
            }
            self._send(b"", status=302, headers=headers)
            return
        if self.command == "GET" and self.hub.damages:
            data = data[: self.hub.damages] + bytes(len(data) - self.hub.damages)
        self._send(data, headers={**headers, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'})

    def batch(self, repo: str) -> None:
        self._writer()
        self._repo(repo)
        asked = json.loads(self.body)
        objects = [
            {
                "oid": one["oid"],
                "size": one["size"],
                "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}},
            }
            for one in asked["objects"]
        ]
        self._send({"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        if self.hub.failing_upload:
            raise Refused(self.hub.failing_upload, message="Signature does not match")
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.objects[oid] = self.body
        self._send(b"")

    def download(self, oid: str) -> None:
        assert self._token is None
        data = self.hub.objects[oid]
        if self.command == "GET" and self.hub.damages:
            data = data[: self.hub.damages] + bytes(len(data) - self.hub.damages)
        self._send(data, headers={"ETag": f'"{oid}"'})


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate),
    (rf"GET /api/models/{_REPO}", _Handler.info),
    (rf"GET /api/models/{_REPO}/revision/(?P<revision>.+)", _Handler.info),
    (rf"POST /api/models/{_REPO}/preupload/(?P<revision>.+)", _Handler.preupload),
    (rf"POST /api/models/{_REPO}/commit/(?P<revision>.+)", _Handler.commit),
    (rf"(?:GET|HEAD) /{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _Handler.resolve),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"PUT /lfs/(?P<oid>\w+)", _Handler.upload),
    (r"(?:GET|HEAD) /lfs/(?P<oid>\w+)", _Handler.download),
]


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub on a free port."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HandlerOfHub", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
