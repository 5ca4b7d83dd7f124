"""Requests with faults of every kind, for hypothesis: none of them may be answered with 5xx."""

import base64
import io
import json
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
from hypothesis import strategies as st
from safetensors.numpy import save

from prompt_serve.prompts.prompt_file import METADATA_KEY, to_bytes
from prompt_serve.service.http.tensor_bodies import NPY, SAFETENSORS
from tests.golden import GOLDEN
from tests.service.prompts import picture

JSON = "application/json"
OCTETS = "application/octet-stream"
ZIP = "application/zip"
TASK = "generated"


@dataclass(frozen=True)
class Call:
    """Request as it is sent; ``path`` is escaped already and has the query."""

    method: str
    path: str
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


Strategy = st.SearchStrategy[Any]


def call(method: str, path: str, content: bytes = b"", kind: str = "") -> Call:
    return Call(method, path, content, {"content-type": kind} if kind else {})


# Values

HUGE = st.sampled_from(
    [2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400, -(10**4299)]
)
integers = st.one_of(st.integers(-3, 3), HUGE, st.integers())
TEXTS = st.sampled_from(
    ["", " ", "\0", "a\0b", "\n", "\r\n", "\x7f", "\u2028", "\ufeff", "..", "../..", "%00", "é",
     "\U0001f600", "a" * 129, "a" * 5000, "null", "NaN", "1e999", "-0", "0x10", "1_000", "١", "*",
     "@", "a@b", TASK + "@", TASK + "@zzzzzzzz", TASK + "@" + "0" * 64, TASK + "@" + "0" * 65]
)  # fmt: skip
texts = st.one_of(TEXTS, st.text(max_size=20))
leaves = st.one_of(
    st.none(), st.booleans(), integers, st.floats(), texts, st.just("\ud800"), st.just({"a": {}})
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def nested(depth: int) -> Any:
    found: Any = 1
    for _ in range(depth):
        found = [found]
    return found


deep_values = st.sampled_from([10, 100, 250, 300, 900]).map(nested)


@st.composite
def mutated(draw: st.DrawFn, sources: Strategy) -> bytes:
    """Draw bytes with a few of them changed, cut out or inserted."""
    data = bytearray(draw(sources))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        what = draw(st.sampled_from(["set", "cut", "insert", "end"]))
        if what == "set" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif what == "cut":
            del data[at : at + draw(st.integers(1, 40))]
        elif what == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=20))
        else:
            del data[at:]
    return bytes(data)


# Bodies

DTYPES = (
    "<f4", ">f4", "<f8", "<f2", "<f16", "|u1", "|i1", "<i8", ">u8", "|b1", "<c8", "<c16", "|O",
    "|S5", "<U7", "|V8", "<M8[ns]", "<m8[D]", "<M8", "", "f", "float32", "bfloat16", "<f3", "O8",
    "<U2147483648", "|V99999999999", "|S0", "<U0", "|V0", "f4,f4", "\\x00",
)  # fmt: skip
STRUCTURED: tuple[Any, ...] = (
    [("a", "<f4")], [("a", "<f4"), ("a", "<f4")], [("", "|O")], [("a", [("b", "<f4")])], [],
    [("a", "<f4", (2, 2))], [("a", "<f4", (-1,))], [("a", "<f4", (10**12,))], {"names": ["a"]},
    ("<f4", (2,)), ("<f4", (2**40,)), None, 5,
)  # fmt: skip
shapes = st.one_of(
    st.lists(integers, max_size=5).map(tuple),
    st.sampled_from(
        [(1, 32, 32, 3), (0,), (), (0, 32, 32, 3), (2**40, 0), (True,), (1.5,), "x", None, [1], -1]
    ),
)


@st.composite
def npy(draw: st.DrawFn) -> bytes:
    """Draw an npy file whose header says anything."""
    header: dict[Any, Any] = {
        "descr": draw(st.sampled_from(DTYPES) | st.sampled_from(STRUCTURED)),
        "fortran_order": draw(st.booleans() | values),
        "shape": draw(shapes),
    }
    if draw(st.booleans()):
        header[draw(texts)] = draw(leaves)
    if draw(st.booleans()):
        header.pop(draw(st.sampled_from(sorted(map(str, header)))), None)
    text = repr(header) if draw(st.booleans()) else draw(texts | st.just("(" * 500))
    encoded = text.encode(draw(st.sampled_from(["latin-1", "utf-8"])), "replace") + b"\n"
    version = draw(st.sampled_from([(1, 0), (2, 0), (3, 0), (0, 0), (9, 9), (1, 1)]))
    length = draw(st.sampled_from([len(encoded), 0, 1, 65_535, len(encoded) + 1]))
    packed = struct.pack("<H" if version[0] == 1 else "<I", length)
    data = draw(st.binary(max_size=40) | st.just(bytes(32 * 32 * 3)))
    return b"\x93NUMPY" + bytes(version) + packed + encoded + data


def _valid_npy() -> list[bytes]:
    arrays = [np.zeros((1, 32, 32, 3), "u1"), np.ones((2, 64), "f4"), np.full((3,), np.nan, "f8")]
    files = []
    for array in arrays:
        file = io.BytesIO()
        np.lib.format.write_array(file, array, allow_pickle=False)
        files.append(file.getvalue())
    return files


@st.composite
def safetensors(draw: st.DrawFn) -> bytes:
    """Draw a safetensors file whose header says anything."""
    dtypes = ["F32", "F64", "F16", "BF16", "U8", "I64", "BOOL", "F8_E4M3", "C64", "F4", "", "x"]
    tensor = {
        "dtype": draw(st.sampled_from(dtypes) | leaves),
        "shape": draw(st.lists(integers, max_size=4) | values),
        "data_offsets": draw(st.lists(integers, min_size=2, max_size=2) | values),
    }
    header: dict[str, Any] = {draw(texts): tensor, "__metadata__": draw(values)}
    if draw(st.booleans()):
        del header["__metadata__"]
    encoded = json.dumps(header).encode()
    length = draw(st.sampled_from([len(encoded), 0, 2**63, 2**64 - 1, len(encoded) + 8]))
    return struct.pack("<Q", length) + encoded + draw(st.binary(max_size=40))


def _multipart(draw: st.DrawFn) -> tuple[bytes, str]:
    boundary = draw(st.sampled_from(["x", "", "a b", "\xff", '"x"', "-" * 300, "x;y"]))
    parts = b""
    for _ in range(draw(st.integers(0, 3))):
        name = draw(
            st.sampled_from(["image", "task", "tag", "top_k", "image_url", "_charset_", ""])
        )
        extra = draw(
            st.sampled_from(
                [
                    "",
                    '; filename="a.png"',
                    "; filename*=UTF-8''%ff",
                    "; filename",
                    '; name="b"',
                    '; filename="',
                    "\r\nContent-Transfer-Encoding: base64",
                    "\r\n: x",
                    "\r\nx",
                    "\r\nContent-Type: text/plain; charset=utf-16",
                    "\r\nContent-Type: x;charset=none",
                ]
            )
        )
        content = draw(st.sampled_from([picture(1), b"", b"\xff\xfe", b"5", b"1e9", b"a\0b"]))
        head = f'Content-Disposition: form-data; name="{name}"{extra}'.encode("latin-1")
        line = boundary.encode("latin-1")
        parts += b"--" + line + b"\r\n" + head + b"\r\n\r\n" + content + b"\r\n"
    end = draw(st.sampled_from(["--", "", "\r\n", "x"])).encode()
    body = parts + b"--" + boundary.encode("latin-1") + end
    kind = draw(
        st.sampled_from(
            [
                "multipart/form-data; boundary={}",
                "multipart/form-data",
                "multipart/form-data; {}",
                "multipart/form-data; boundary={}; charset=none",
                "multipart/mixed; boundary={}",
                "multipart/form-data; boundary=other",
                "multipart/form-data; boundary*=utf-8''%ff",
            ]
        )
    )
    return body, kind.format(boundary).strip()


@st.composite
def multipart_calls(draw: st.DrawFn) -> Call:
    body, kind = _multipart(draw)
    if draw(st.booleans()):
        body = draw(mutated(st.just(body)))
    path = draw(st.sampled_from(["/v1/classify?task=" + TASK, "/v1/embed", "/classify"]))
    return call("POST", path, body, kind)


@st.composite
def tensor_calls(draw: st.DrawFn) -> Call:
    kind = draw(st.sampled_from([NPY, SAFETENSORS]))
    good = _valid_npy() if kind == NPY else [save({"x": np.ones((1, 64), "f4")})]
    made = npy() if kind == NPY else safetensors()
    body = draw(made | mutated(st.sampled_from(good)))
    path = draw(st.sampled_from(["/v1/classify", "/v1/embed", "/v1/score"]))
    query = "" if path == "/v1/embed" else f"?task={TASK}"
    return call("POST", path + query, body, kind)


BODIES: dict[str, dict[str, Any]] = {
    "POST /v1/tasks": {"name": TASK, "class_names": ["a", "b"], "templates": ["a {}"], "tags": []},
    f"PUT /v1/tasks/{TASK}/tags": {"tags": ["eu"]},
    f"PATCH /v1/tasks/{TASK}/tags": {"add": ["eu"], "remove": []},
    "PUT /v1/tasks/copy/alias": {"of": TASK},
    f"PUT /v1/tasks/{TASK}/pinned": {"pinned": False},
    f"POST /v1/tasks/{TASK}/rollback": {"version": "0" * 64},
    "POST /v1/classify": {"images": ["AAAA"], "tasks": [TASK], "tags": [], "top_k": 1},
    "POST /classify": {"images": ["AAAA"], "tasks": [TASK], "top_k": 1},
    "POST /v1/embed": {"images": ["AAAA"], "task": TASK},
    "POST /v1/score": {"embeddings": [[1.0] * 64], "tasks": [TASK], "fingerprint": "x"},
}


@st.composite
def json_calls(draw: st.DrawFn) -> Call:
    """Draw a JSON body with a field of any value, or a body that is anything."""
    route = draw(st.sampled_from(sorted(BODIES)))
    method, path = route.split()
    body: Any = {**BODIES[route]}
    what = draw(st.sampled_from(["field", "item", "any", "deep", "bytes", "many"]))
    name = draw(st.sampled_from(sorted(body)))
    if what == "field":
        body[name] = draw(values)
    elif what == "item":
        body[name] = [draw(values)]
    elif what == "many":
        body[name] = [f"t{n}" for n in range(draw(st.sampled_from([51, 1000, 5000])))]
    elif what == "deep":
        body[name] = draw(deep_values)
    elif what == "any":
        body = draw(values)
    text = json.dumps(body)
    encodings = ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-7", "latin-1"]
    data = text.encode(draw(st.sampled_from(encodings)), "replace")
    if what == "bytes":
        data = draw(mutated(st.just(data)) | st.binary(max_size=40))
    kinds = [JSON, JSON, JSON + "; charset=utf-16", JSON + "; charset=none", "application/x+json",
             "text/json", "application/vnd.bentoml+pickle", "application/msgpack", ""]  # fmt: skip
    return call(method, path, data, draw(st.sampled_from(kinds)))


READS = (
    "/v1/tasks", "/v1/audit", f"/v1/tasks/{TASK}/history", f"/v1/tasks/{TASK}",
    f"/v1/tasks/{TASK}/file", "/v1/info", "/v1/registry/export", "/readyz",
)  # fmt: skip
PARAMETERS = (
    "limit", "cursor", "search", "tag", "before", "subject", "action", "task", "top_k",
    "top_tasks", "atomic", "fingerprint", "who", "writable",
)  # fmt: skip


def cursor(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@st.composite
def query_calls(draw: st.DrawFn) -> Call:
    """Draw parameters of any text, and cursors of any value."""
    anything = st.one_of(texts, integers.map(str), st.floats().map(str))
    cursors = values.map(lambda value: cursor([value])) | values.map(cursor) | anything
    pairs = draw(st.lists(st.tuples(st.sampled_from(PARAMETERS), anything), max_size=3))
    if draw(st.booleans()):
        pairs.append(("cursor", draw(cursors)))
    if draw(st.booleans()):
        count = draw(st.sampled_from([2, 51, 1000]))
        pairs += [("tag", f"t{n}") for n in range(count)]
    query = urlencode([(k, v.encode("utf-8", "surrogatepass")) for k, v in pairs])
    if draw(st.booleans()):
        return call("GET", f"{draw(st.sampled_from(READS))}?{query}")
    writes = ["PUT /v1/tasks", f"PUT /v1/tasks/{TASK}", "POST /v1/classify", "POST /v1/score"]
    method, path = draw(st.sampled_from(writes)).split()
    return call(method, f"{path}?{query}", b"x", draw(st.sampled_from([OCTETS, "image/png", NPY])))


ROUTES = (
    "GET /v1/tasks/{}", "GET /v1/tasks/{}/file", "GET /v1/tasks/{}/history", "PUT /v1/tasks/{}",
    "DELETE /v1/tasks/{}", "POST /v1/tasks/{}/rollback", "PUT /v1/tasks/{}/alias",
    "PUT /v1/tasks/{}/tags", "PATCH /v1/tasks/{}/tags", "PUT /v1/tasks/{}/pinned",
    "DELETE /v1/versions/{}", "GET /v1/{}", "POST /v1/{}", "GET /{}", "POST /{}", "GET /v1/ui/{}",
    "GET /v1/docs/{}", "GET /v1/ui/samples/{}", "GET /bentoml/{}", "GET /static_content/{}",
)  # fmt: skip


@st.composite
def path_calls(draw: st.DrawFn) -> Call:
    """Draw paths with control characters, invalid UTF-8, escapes and slashes of any kind."""
    method, path = draw(st.sampled_from(ROUTES)).split()
    raw = draw(texts.map(lambda t: t.encode("utf-8", "surrogatepass")) | st.binary(max_size=12))
    inner = quote(raw, safe="/" if draw(st.booleans()) else "")
    content = b"{}" if method in ("POST", "PUT", "PATCH") else b""
    return call(method, path.format(inner), content, draw(st.sampled_from([JSON, OCTETS])))


HEADERS = (
    "if-match", "if-none-match", "content-type", "accept", "x-request-id", "range", "expect-ct",
    "accept-encoding", "origin", "traceparent", "authorization", "x-api-key", "content-encoding",
)  # fmt: skip
_latin = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=20
)
header_texts = st.one_of(
    st.sampled_from(
        ["*", '"x"', 'W/"x"', ",", '"' + "0" * 64 + '"', "bytes=0-", "gzip", "Basic x", "Bearer",
         "Bearer ps_x", "multipart/form-data", "image/", "/", "*/*;q=x", "text/html", "a" * 4000,
         "00-00-00-00", "application/x-ndjson", NPY, SAFETENSORS, "Basic //8="]
    ),
    _latin,
    st.tuples(st.sampled_from(["Basic", "Bearer", "bytes", "W/"]), _latin).map(
        lambda parts: " ".join(parts).strip()
    ),
)  # fmt: skip


@st.composite
def header_calls(draw: st.DrawFn) -> Call:
    routes = [*BODIES, *(f"GET {path}" for path in READS), f"PUT /v1/tasks/{TASK}",
              f"DELETE /v1/tasks/{TASK}-none"]  # fmt: skip
    route = draw(st.sampled_from(routes))
    method, path = route.split()
    headers = draw(st.dictionaries(st.sampled_from(HEADERS), header_texts, max_size=4))
    body = json.dumps(BODIES[route]).encode() if route in BODIES else b""
    return Call(method, path, body, {"content-type": JSON, **headers} if body else headers)


def _prompt_file(fields: Mapping[str, object]) -> bytes:
    data = to_bytes(GOLDEN["zero_shot"])
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][METADATA_KEY])
    return save({}, {METADATA_KEY: json.dumps({**header, **fields})})


FIELDS = (
    "format_version", "name", "method", "class_names", "templates", "class_position", "backbone",
    "text", "probe", "training", "metrics", "created", "tool_version", "image", "temperature",
    "unknown_below", "classes", "sketch", "unlike_below", "other",
)  # fmt: skip


@st.composite
def prompt_files(draw: st.DrawFn) -> bytes:
    if draw(st.booleans()):
        return draw(mutated(st.sampled_from([to_bytes(prompt) for prompt in GOLDEN.values()])))
    changed = st.dictionaries(st.sampled_from(FIELDS), values | deep_values, max_size=2)
    return _prompt_file(draw(changed))


@st.composite
def upload_calls(draw: st.DrawFn) -> Call:
    name = draw(st.sampled_from([TASK, "other"]))
    return call("PUT", f"/v1/tasks/{name}", draw(prompt_files()), OCTETS)


@st.composite
def zip_calls(draw: st.DrawFn) -> Call:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", draw(st.sampled_from([0, 8]))) as archive:
        for _ in range(draw(st.integers(0, 3))):
            path = draw(
                st.sampled_from(
                    [
                        "a.safetensors",
                        "../a.safetensors",
                        "b/a.safetensors",
                        "registry.json",
                        "versions/" + "0" * 64 + ".safetensors",
                        "",
                        "/",
                        "a\0.safetensors",
                        "é",
                    ]
                )
                | texts
            )
            content = draw(prompt_files() | values.map(lambda v: json.dumps(v).encode()))
            try:
                archive.writestr(path, content)
            except (UnicodeEncodeError, ValueError, IndexError, UserWarning):
                continue
    data = draw(mutated(st.just(file.getvalue())))
    routes = ["PUT /v1/tasks", "PUT /v1/tasks?atomic=false", "POST /v1/registry/import"]
    method, path = draw(st.sampled_from(routes)).split()
    return call(method, path, data, ZIP)


KINDS: dict[str, Callable[[], Strategy]] = {
    "tensors": tensor_calls,
    "multipart": multipart_calls,
    "JSON": json_calls,
    "queries": query_calls,
    "paths": path_calls,
    "headers": header_calls,
    "prompt files": upload_calls,
    "zips": zip_calls,
}
