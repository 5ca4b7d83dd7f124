"""Requests that once cost far more than their size, for every route that takes a body."""

import base64
import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from PIL import Image
from safetensors import numpy as safetensors_numpy

from prompt_serve.prompts.prompt_file import to_bytes
from tests.golden import GOLDEN
from tests.service.unusual_images import saved
from tests.service.watched_service import request

JSON, NPY, SAFETENSORS = "application/json", "application/x-npy", "application/x-safetensors"
OCTETS, FORM = "application/octet-stream", "multipart/form-data; boundary=b"
CLASSIFY, SCORE = "/v1/classify?task=pets", "/v1/score?task=pets"

Make = Callable[[], bytes]


def costly_requests(size: int, side: int) -> dict[str, Make]:
    """Return functions that make the requests, by name.

    Args:
        size: of large bodies, in bytes.
        side: of large images, in pixels.
    """
    return {
        **{f"image: {name}": _image(make) for name, make in _images(side).items()},
        **{f"json: {name}": make for name, make in _json(size).items()},
        **{f"form: {name}": make for name, make in _forms(size).items()},
        **{f"tensor: {name}": make for name, make in _tensors(size).items()},
        **{f"prompt: {name}": make for name, make in _prompts(size).items()},
        **{f"zip: {name}": make for name, make in _zips(size).items()},
        **{f"chunks: {name}": make for name, make in _chunks(size).items()},
    }


def _image(make: Make) -> Make:
    return lambda: request("POST", CLASSIFY, make(), "image/any")


def _images(side: int) -> dict[str, Make]:
    size = (side, side)
    floats = np.full(size[::-1], 0.25, np.float32)
    deep = np.full(size[::-1], 30_000, np.uint16)
    one_strip = {"compression": "tiff_lzw", "strip_size": 2**30}
    scans = {"progressive": True, "quality": 30}
    return {
        "webp": lambda: saved(Image.new("RGB", size, (1, 2, 3)), "WEBP", lossless=True, method=0),
        "webp, alpha": lambda: saved(
            Image.new("RGBA", size, (1, 2, 3, 4)), "WEBP", lossless=True, method=0
        ),
        "png of one bit": lambda: saved(Image.new("1", size), "PNG"),
        "png, alpha": lambda: saved(Image.new("RGBA", size, (9, 9, 9, 9)), "PNG"),
        "png, clear color": lambda: saved(Image.new("P", size), "PNG", transparency=0),
        "png of 16 bits": lambda: saved(Image.fromarray(deep), "PNG"),
        "tiff of floats": lambda: saved(Image.fromarray(floats), "TIFF", **one_strip),
        "tiff, cmyk": lambda: saved(Image.new("CMYK", size), "TIFF", **one_strip),
        "jpeg": lambda: saved(Image.new("RGB", size), "JPEG"),
        "jpeg, progressive": lambda: saved(Image.new("RGB", size), "JPEG", **scans),
        "jpeg cut": lambda: saved(Image.new("RGB", size), "JPEG", **scans)[:-4],
        "webp, noise": lambda: saved(_noise(side), "WEBP", quality=40, method=0),
        "jpeg, noise": lambda: saved(_noise(side), "JPEG", quality=40),
        "jpeg, scans": lambda: _jpeg_of_scans(side, 100),
        "jpeg, too many scans": lambda: _jpeg_of_scans(side, 20_000),
        "avif, noise": lambda: saved(_noise(side), "AVIF", speed=10, quality=30),
        "avif, alpha": lambda: saved(Image.new("RGBA", size, (1, 2, 3, 4)), "AVIF", speed=10),
        "avif": lambda: saved(Image.new("RGB", size), "AVIF", speed=10),
        "gif": lambda: saved(Image.new("P", size), "GIF", transparency=0),
        "bmp, run-length": lambda: _run_length(side, bytes(2000)),
        "plain ppm": lambda: b"P3\n%d %d\n255\n" % size + b"1 2 3 " * 300,
        "small plain ppm": lambda: b"P3\n400 400\n255\n" + b"1 2 3 " * 160_000,
        "ppm of 12 bits": lambda: b"P6\n700 700\n4095\n" + bytes(2 * 3 * 700 * 700),
        "png of chunks": lambda: _png_of_chunks(side),
    }


def _run_length(side: int, body: bytes) -> bytes:
    info = struct.pack("<IIIHHIIIIII", 40, side, side, 1, 8, 1, len(body), 0, 0, 256, 0)
    offset = 14 + 40 + 1024
    return struct.pack("<2sIHHI", b"BM", offset, 0, 0, offset) + info + bytes(1024) + body


def _noise(side: int) -> Image.Image:
    tile = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    return Image.fromarray(tile).resize((side, side))


def _jpeg_of_scans(side: int, count: int) -> bytes:
    """A progressive JPEG with so many scans, most of them of a few bytes."""
    jpeg = saved(_noise(side), "JPEG", progressive=True, quality=30)
    last = jpeg.rindex(b"\xff\xda")
    scan = jpeg[last : last + 20]
    return jpeg[:-2] + scan * (count - jpeg.count(b"\xff\xda")) + jpeg[-2:]


def _png_of_chunks(side: int) -> bytes:
    png = saved(Image.new("RGB", (8, 8)), "PNG")
    chunk = struct.pack(">I4sI", 0, b"prVt", 0x0A0A0A0A)
    return png[:33] + chunk * (side * 10) + png[33:]


def _json(size: int) -> dict[str, Make]:
    def classify(images: str, **more: object) -> Make:
        document = json.dumps({"tasks": ["pets"], **more})[:-1] + f', "images": [{images}]}}'
        return lambda: request("POST", "/v1/classify", document.encode(), JSON)

    def post(path: str, body: bytes, method: str = "POST") -> Make:
        return lambda: request(method, path, body, JSON)

    base64_text = base64.b64encode(bytes(size // 2)).decode()
    names = ",".join(f'"class {index}"' for index in range(min(2_000, size // 5_000)))
    zero_shot = f'{{"name":"many","class_names":[{names}]}}'.encode()
    row = "[" + ",".join(["0.12345678901234567"] * 32) + "]"
    rows = ",".join([row] * min(4096, size // len(row)))
    return {
        "one large image": classify(f'"{base64_text}"'),
        "a large image with line breaks": classify(f'"{"QUJD" * 19 + chr(92) + "n"}"'),
        "base64 that is none": classify('"' + "!" * (size // 2) + '"'),
        "escapes": classify('"' + "\\u0041" * (size // 8) + '"'),
        "percent escapes": classify('"data:a/b;base64,' + "%41" * (size // 4) + '"'),
        "empty images": classify(",".join(['""'] * (size // 4))),
        "empty lists": classify(",".join(["[]"] * 190_000)),
        "many empty lists": classify(",".join(["[]"] * (size // 4))),
        "deep": classify("[" * (size // 2)),
        "white space": classify(" " * size),
        "tasks": classify('"QUJD"', tasks=["x" * 100] * (size // 200)),
        "embeddings": post("/v1/score", b'{"tasks":["pets"],"embeddings":[%b]}' % rows.encode()),
        "embeddings of nothing": post(
            "/v1/score", b'{"tasks":["pets"],"embeddings":[' + b"[]," * (size // 4) + b"[]]}"
        ),
        "zero-shot": post("/v1/tasks", zero_shot),
        "zero-shot of escapes": post(
            "/v1/tasks", b'{"name":"a","class_names":["' + b"\\u0041" * (size // 8) + b'"]}'
        ),
        "zero-shot of nothing": post(
            "/v1/tasks", b'{"name":"a","class_names":[' + b'"",' * (size // 4) + b'""]}'
        ),
        "tags": post("/v1/tasks/pets/tags", b'{"tags":[' + b'"a",' * 190_000 + b'"a"]}', "PUT"),
        "alias": post("/v1/tasks/x/alias", b'{"of":"' + b"x" * size + b'"}', "PUT"),
        "no json": post("/v1/tasks/x/alias", b"{" + b"x" * size, "PUT"),
    }  # fmt: skip


def _forms(size: int) -> dict[str, Make]:
    def form(*parts: bytes, kind: str = FORM) -> Make:
        body = b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"
        return lambda: request("POST", CLASSIFY, body, kind)

    def field(content: bytes, name: bytes = b"task", more: bytes = b"") -> bytes:
        head = b'Content-Disposition: form-data; name="' + name + b'"' + more
        return head + b"\r\n\r\n" + content

    file = b'; filename="a.png"'
    return {
        "half a boundary": form(field(b"\r\n--a" * (size // 5), b"image", file)),
        "line breaks": form(field(b"\r\n" * (size // 2), b"image", file)),
        "dashes": form(field(b"\r\n-" * (size // 3), b"image", file)),
        "fields": form(*[field(b"x")] * 12_000),
        "a large field": form(field(b"x" * 900_000)),
        "escaped fields": form(*[field(b"%41" * 1000)] * 300),
        "another charset": form(field(b"x" * 900_000), kind=FORM + "; charset=punycode"),
        "a large header": form(field(b"x", b"n" * (size // 2))),
        "options": form(field(b"x", more=b"; a=b" * (size // 10))),
        "many headers": form(b"A: b\r\n" * (size // 6) + field(b"x")),
        "files": form(*[field(b"x", b"image", file)] * 64),
        "no boundary": lambda: request("POST", CLASSIFY, bytes(size), FORM),
    }


def _tensors(size: int) -> dict[str, Make]:
    def npy(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], path: str) -> Make:
        file = io.BytesIO()
        np.save(file, array)
        return lambda: request("POST", path, file.getvalue(), NPY)

    def safetensors(header: bytes, path: str = SCORE) -> Make:
        body = len(header).to_bytes(8, "little") + header
        return lambda: request("POST", path, body, SAFETENSORS)

    entry = b'"t%d":{"dtype":"F16","shape":[0],"data_offsets":[0,0]},'
    entries = b"".join(entry % index for index in range(size // 60))
    deep_shape = b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1," * 400 + b"), }"
    head = b"\x93NUMPY\x01\x00" + len(deep_shape).to_bytes(2, "little") + deep_shape
    return {
        "float64 pixels": npy(np.zeros((size // (8 * 32 * 32 * 3), 32, 32, 3)), CLASSIFY),
        "uint8 pixels": npy(np.zeros((size // (32 * 32 * 3), 32, 32, 3), np.uint8), CLASSIFY),
        "fortran pixels": npy(
            np.asfortranarray(np.zeros((size // (8 * 32 * 32 * 3), 32, 32, 3))), CLASSIFY
        ),
        "float64 embeddings": npy(np.ones((4096, 32)), SCORE),
        "many scores": npy(np.ones((4096, 32)), f"{SCORE[:-4]}many&top_k=60"),
        "many embeddings": npy(np.ones((size // 256, 32)), SCORE),
        "axes": lambda: request("POST", CLASSIFY, head + bytes(4), NPY),
        "header of empty lists": safetensors(b'{"a":[' + b"[]," * (size // 4) + b"[]]}"),
        "tensors": safetensors(b"{" + entries + b'"z":' + entry[6:-1] + b"}"),
        "deep header": safetensors(b"[" * (size // 2)),
    }


def _prompts(size: int) -> dict[str, Make]:
    def upload(data: bytes) -> Make:
        return lambda: request("PUT", "/v1/tasks/costly", data, OCTETS)

    def document(text: bytes) -> Make:
        header = b'{"__metadata__":{"prompt_serve":"' + text + b'"}}'
        return upload(len(header).to_bytes(8, "little") + header)

    names = tuple(f"class number {index}" for index in range(min(100_000, size // 30)))
    many = replace(GOLDEN["zero_shot"], class_names=names, probe=np.zeros(len(names), np.float16))
    metrics = replace(
        GOLDEN["zero_shot"], metrics={"a": [[]] * 150_000}, training={"b": [0] * 150_000}
    )
    tensors = {
        f"text.{index}": np.zeros(0, np.float16) for index in range(min(100_000, size // 30))
    }
    return {
        "many classes": upload(to_bytes(many)),
        "many metrics": upload(to_bytes(metrics)),
        "empty lists": document(b"[" + b"[]," * (size // 4) + b"[]]"),
        "just few enough lists": document(b"[" + b"[]," * 240_000 + b"[]]"),
        "escapes": document(b"[" + b"\\u005b\\u005d\\u002c" * (size // 20) + b"]"),
        "escaped text": document(b"\\u0041" * (2**21)),
        "deep": document(b"[" * 400_000),
        "white space": document(b" " * (2**23)),
        "tensors": upload(safetensors_numpy.save(tensors, {"prompt_serve": "{}"})),
        "other metadata": upload(
            safetensors_numpy.save({}, {str(index): "" for index in range(120_000)})
        ),
        "zeros": upload(bytes(size)),
        "text": upload(b"{" * size),
    }  # fmt: skip


def _zips(size: int) -> dict[str, Make]:
    def zipped(entries: Iterator[tuple[str, bytes]], path: str, method: str) -> Make:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in entries:
                archive.writestr(name, data)
        return lambda: request(method, path, file.getvalue(), OCTETS)

    directory = (b"PK\x01\x02" + bytes(42)) * (size // 46)
    end = b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, 1, 1, len(directory), 0, 0)
    prompt = to_bytes(GOLDEN["low_rank"])
    task = {"name": "a", "version": "0" * 64, "updated": "", "pinned": False, "tags": []}
    index = json.dumps({"format": 1, "tool_version": "", "tasks": [task] * 70_000}).encode()
    return {
        "directory": lambda: request("PUT", "/v1/tasks", directory + end, OCTETS),
        "files": zipped(((f"{n}.safetensors", b"") for n in range(900)), "/v1/tasks", "PUT"),
        "a bomb": zipped(iter([("a.safetensors", bytes(2**28))]), "/v1/tasks", "PUT"),
        "a prompt": zipped(iter([("costly.safetensors", prompt)]), "/v1/tasks", "PUT"),
        "an index": zipped(iter([("registry.json", index)]), "/v1/registry/import", "POST"),
        "an index of lists": zipped(
            iter([("registry.json", b'{"tasks":[' + b"[]," * 5_000_000 + b"[]]}")]),
            "/v1/registry/import",
            "POST",
        ),
    }


def _chunks(size: int) -> dict[str, Make]:
    """Bodies in chunks, each of which the protocol handles on its own."""

    def chunked(chunk: bytes, path: str, kind: str) -> Make:
        lines = (f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close")
        more = (f"Content-Type: {kind}", "Transfer-Encoding: chunked", "", "")
        head = "\r\n".join((*lines, *more)).encode()
        framed = b"%x\r\n%s\r\n" % (len(chunk), chunk)
        return lambda: head + framed * (size // len(framed)) + b"0\r\n\r\n"

    return {
        "of a byte": chunked(b"a", CLASSIFY, "image/png"),
        "of a byte of JSON": chunked(b" ", "/v1/classify", JSON),
        "of 100 bytes": chunked(b"a" * 100, CLASSIFY, "image/png"),
        "of 140 bytes": chunked(b"a" * 140, CLASSIFY, "image/png"),
        "of 4 KiB": chunked(b"a" * 4096, CLASSIFY, "image/png"),
    }
