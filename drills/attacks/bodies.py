"""Attacks by bodies of every size up to the limit: JSON, forms, arrays, prompt files, archives."""

import contextlib
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable

import numpy as np

from drills.attacks.kind import Kind, Target, together
from prompt_serve.prompts.prompt_file import to_bytes
from tests.golden import GOLDEN
from tests.service.costly_inputs import costly_requests
from tests.service.watched_service import request

_LIMIT_BYTES = 31_500_000
_BUDGET_BYTES = 600 * 2**20
_JSON = "application/json"
_ROUTES = (
    ("POST", "/v1/classify", '{"tasks": ["drill-0"], "images": ', "}"),
    ("POST", "/v1/classify", '{"images": ["QUJD"], "tasks": ', "}"),
    ("POST", "/v1/embed", '{"images": ', "}"),
    ("POST", "/v1/score", '{"tasks": ["drill-0"], "embeddings": ', "}"),
    ("POST", "/v1/score", '{"embeddings": [[1]], "tags": ', "}"),
    ("POST", "/v1/tasks", '{"name": "body", "class_names": ', "}"),
    ("POST", "/v1/tasks", '{"name": "body", "class_names": ["a", "b"], "templates": ', "}"),
    ("PUT", "/v1/tasks/drill-0/tags", '{"tags": ', "}"),
    ("PUT", "/v1/tasks/body/alias", '{"of": ', "}"),
    ("POST", "/v1/classify", "", ""),
    ("POST", "/v1/tasks", "", ""),
)
# What is repeated, with what begins and ends it.
_UNITS = (
    ("[", "1,", "1]"), ("[", "1e308,", "1]"), ("[", "-0.0,", "1]"), ("[", "[1],", "[1]]"),
    ("[", "[],", "[]]"),
    ("[", "{},", "{}]"), ("[", '{"a": 1},', "1]"), ("[", '"",', '""]'), ("[", '"a",', '"a"]'),
    ("[", "null,", "null]"),
    ("[", "true,", "true]"), ("[", '"\\u0000",', '""]'), ("[", '"\\ud800",', '""]'),
    ("[", "NaN,", "1]"),
    ("[", "12345678901234567890,", "1]"), ("[", '"http://a/",', '""]'),
    ("[", '"data:;base64,",', '""]'),
    ('"', "a", '"'), ('"', "\\u0041", '"'), ('"', "\\n", '"'), ('"', "%41", '"'), ('"', "é", '"'),
    ('"data:a;base64,', "%2B", '"'),
    ('"', "\\\\", '"'), ("[" * 9, "[", "]"), ("", '{"a":', "1"), ("", " ", "1"), ("", "\n", "[]"),
    ("", "1", ""), ("1e", "9", ""),
    ("0.", "1", ""), ("-", "0", ""), ("{", '"a": 1,', '"b": 1}'), ("{", '"a": {},', '"b": 1}'),
    ("", "//", ""), ("[", ",", "]"),
    ("[[", "0.1234567,", "1]]"), ('["', "QUJD", '"]'), ('["', "QUJD\\n", '"]'), ('["', "=", '"]'),
    ('["', "-_-_", '"]'),
)  # fmt: skip
_DTYPES = ("<f4", "<f2", "<f8", ">f4", "|u1", "<i8", "|b1", "<c8", "|S1", "<U1", "|V1", "<M8[ns]")


async def _costly(target: Target, draws: random.Random, count: int) -> None:
    """Send requests that cost more than their size, in other sizes each time."""
    await target.send(_PETS, "a task")
    await _send_all(target, draws, count, costly)


async def _json(target: Target, draws: random.Random, count: int) -> None:
    await _send_all(target, draws, count, json_body)


async def _arrays(target: Target, draws: random.Random, count: int) -> None:
    await _send_all(target, draws, count, array_body)


async def _forms(target: Target, draws: random.Random, count: int) -> None:
    await _send_all(target, draws, count, form_body)


async def _archives(target: Target, draws: random.Random, count: int) -> None:
    await _send_all(target, draws, count, archive_body)


async def _send_all(
    target: Target,
    draws: random.Random,
    count: int,
    make: Callable[[random.Random], tuple[str, bytes]],
) -> None:
    seeds = [draws.getrandbits(64) for _ in range(count)]
    await together((_send(target, make, one) for one in seeds), at_once=4)


async def _send(
    target: Target, make: Callable[[random.Random], tuple[str, bytes]], seed: int
) -> None:
    name, message = await target.make(make, random.Random(seed))
    await target.send(message, f"{name}, {make.__name__} of {seed}, {len(message):,} bytes")


_PETS = request("POST", "/v1/tasks", b'{"name": "pets", "class_names": ["a", "b"]}', _JSON)


def costly(draws: random.Random) -> tuple[str, bytes]:
    """Return one of the requests that once cost far more than their size, of any size."""
    size = int(100_000 * 60 ** draws.random())
    made = costly_requests(size, draws.choice((64, 400, 1_500, 4_000)))
    name = draws.choice(sorted(made))
    return f"{name} of {size}", made[name]()


def any_size(draws: random.Random) -> int:
    """Return a size from nothing to the limit, small and large ones alike."""
    return draws.choice(
        (0, 1, int(_LIMIT_BYTES ** draws.random()), int(_LIMIT_BYTES * draws.random()))
    )


def json_body(draws: random.Random) -> tuple[str, bytes]:
    """Return a document with one value repeated up to any size, in any field of any route."""
    method, path, before, after = draws.choice(_ROUTES)
    start, unit, end = draws.choice(_UNITS)
    times = any_size(draws) // len(unit.encode())
    body = before.encode() + (start + unit * times + end + after).encode()
    encoding = draws.choice(("", "", "", "; charset=utf-8", "; charset=utf-16"))
    return f"{times} times {unit!r} to {path}", request(method, path, body, _JSON + encoding)


def array_body(draws: random.Random) -> tuple[str, bytes]:
    """Return an npy or safetensors file of any type and shape, which its data may not have."""
    path = draws.choice(("/v1/classify?task=drill-0", "/v1/embed", "/v1/score?task=drill-0"))
    dtype = np.dtype(draws.choice(_DTYPES[:5] if draws.random() < 0.7 else _DTYPES))
    side = draws.choice((224, 224, 64, 32))
    row = draws.choice(
        ((side, side, 3), (side, side, 3), (256,), (64,), (512,), (1,), (), (0,), (1, 1, 1, 1))
    )
    rows = any_size(draws) // max(1, int(np.prod(row)) * dtype.itemsize)
    data = bytes(rows * int(np.prod(row)) * dtype.itemsize)
    if draws.random() < 0.3:
        data = draws.randbytes(min(len(data), 5_000_000)).ljust(len(data), b"\0")
    if draws.random() < 0.2:
        data = data[: draws.randint(0, len(data))]
    shape = (rows, *row)
    if draws.random() < 0.5:
        header = repr({"descr": dtype.str, "fortran_order": draws.random() < 0.3, "shape": shape})
        head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
        return f"npy {dtype} {shape}", request("POST", path, head + data, "application/x-npy")
    name = draws.choice(("F32", "F16", "F64", "BF16", "U8", "I64", "BOOL"))
    more = draws.choice(
        (
            "",
            ',"__metadata__":{"fingerprint":"x"}',
            ',"b":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}',
        )
    )
    header = (
        f'{{"a":{{"dtype":"{name}","shape":{list(shape)},"data_offsets":[0,{len(data)}]}}{more}}}'
    )
    body = struct.pack("<Q", len(header)) + header.encode() + data
    return f"safetensors {name} {shape}", request("POST", path, body, "application/x-safetensors")


def form_body(draws: random.Random) -> tuple[str, bytes]:
    """Return a form of many parts, of large ones, or of what nearly ends them."""
    size = any_size(draws)
    boundary = draws.choice(("b", "b" * 70, "-", "--b--", "b b"))
    fields = ("image", "task", "tag", "top_k", "image_url", "top_tasks", "x", "", "_charset_")
    field = draws.choice(fields)
    file = draws.choice(
        ("", '; filename="a.png"', "; filename*=utf-8''a", '; filename="' + "a" * 5_000 + '"')
    )
    more = draws.choice(
        ("", "\r\ncontent-type: text/plain; charset=utf-7", "\r\n" + "a: b\r\n" * 300 + "c: d")
    )
    line = f"\r\n--{boundary}".encode()
    head = f'\r\ncontent-disposition: form-data; name="{field}"{file}{more}\r\n\r\n'.encode()
    unit = draws.choice(
        (b"a", b"\r\n", b"\r", b"-", line[:-1], line[:-1] + b"\0", b"%41", b"\xff", bytes(40))
    )
    if draws.random() < 0.5:
        body = (line + head + draws.choice((b"", b"1", b"drill-0"))) * (size // len(line + head))
        shown = "parts"
    else:
        body, shown = line + head + unit * (size // len(unit)), repr(unit)
    body = body[2:] + line + draws.choice((b"--", b"--\r\n", b"", b"-"))
    kind = f"multipart/form-data; boundary={draws.choice((boundary, boundary, boundary + 'x'))}"
    return f"{shown} as {field!r}{file[:20]}", request(
        "POST", "/v1/classify?task=drill-0", body, kind
    )


def archive_body(draws: random.Random) -> tuple[str, bytes]:
    """Return a zip whose entries, sizes, names or nesting are not what they say."""
    file = io.BytesIO()
    method = draws.choice(
        (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)
    )
    prompt = to_bytes(GOLDEN[draws.choice(sorted(GOLDEN))])
    shown = []
    with zipfile.ZipFile(file, "w", method) as archive:
        count = draws.choice((0, 1, 2, 3, 30, 1_100))
        for _ in range(count):
            name = draws.choice(_ENTRY_NAMES)
            data = _entry(draws, prompt) if count < 10 else prompt  # which compresses quickly
            shown.append(name[:20])
            info = zipfile.ZipInfo(name.replace("N", str(draws.randrange(99))))
            info.external_attr = draws.choice((0, 0o120777 << 16, 0o040755 << 16, 0xFFFFFFFF))
            info.compress_type = method
            with contextlib.suppress(ValueError, UnicodeEncodeError):
                archive.writestr(info, data)
            if file.tell() > _LIMIT_BYTES:
                break
    data = _lying(bytearray(file.getvalue()), draws)[:_LIMIT_BYTES]
    target, path = draws.choice(
        (("PUT", "/v1/tasks"), ("PUT", "/v1/tasks?atomic=false"), ("POST", "/v1/registry/import"))
    )
    return f"{len(shown)} entries {shown[:3]}", request(target, path, data, "application/zip")


_ENTRY_NAMES = (
    "taskN.safetensors", "taskN.safetensors", "../taskN.safetensors", "/taskN.safetensors",
    "a/b/taskN.safetensors",
    "registry.json", "versions/" + "0" * 64 + ".safetensors", "", ".", "..", "a\0b.safetensors",
    "a" * 60_000, "é.safetensors",
    "CON", "a\\b.safetensors", "taskN.safetensors/", "taskN.zip", "__MACOSX/._a",
    "team/taskN.safetensors", "*.safetensors", "@.safetensors",
)  # fmt: skip


def _entry(draws: random.Random, prompt: bytes) -> bytes:
    match draws.randrange(8):
        case 0:
            return bytes(draws.choice((1_000, 20_000_000)))
        case 1:
            return b'{"format": 1, "tasks": [' + b"[]," * draws.choice((3, 500_000)) + b"[]]}"
        case 2:  # an archive within
            inner = io.BytesIO()
            with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("task.safetensors", bytes(20_000_000))
            return inner.getvalue()
        case 3:
            return zlib.compress(bytes(50_000_000), 1)
        case _:
            return prompt


def _lying(data: bytearray, draws: random.Random) -> bytes:
    """Change sizes, checksums, offsets and flags of the headers of entries."""
    for _ in range(draws.choice((0, 0, 1, 5))):
        mark = draws.choice((b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"))
        at = data.find(mark, draws.randrange(len(data)) if data else 0)
        if at < 0:
            continue
        field = at + draws.randrange(4, 46)
        lie = draws.choice((0, 1, 100, 2**31 - 1, 2**32 - 1))
        data[field : field + 4] = struct.pack("<I", lie)
    if draws.random() < 0.2:
        data = data[: draws.randint(0, len(data))]
    return bytes(data) * draws.choice((1, 1, 1, 2))


_SETTINGS = {"max_bytes_in_flight": str(_BUDGET_BYTES)}
KINDS = {
    "costly": Kind("requests that once cost far more than their size", _costly, _SETTINGS),
    "json": Kind("JSON of any value, repeated up to 31 MB", _json, _SETTINGS),
    "arrays": Kind("npy and safetensors of any type and shape, up to 31 MB", _arrays, _SETTINGS),
    "forms": Kind("multipart forms up to 31 MB", _forms, _SETTINGS),
    "archives": Kind("zips that lie, are nested, or name anything", _archives, _SETTINGS),
}
