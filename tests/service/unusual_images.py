"""Three hundred malformed or unusual image files, made from a few seeds.

Each says whether it is an image, and of what color in its upper left part: what ``preprocess``
decides about orientation, transparency, color spaces, depth and animation.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

Color = tuple[int, int, int]
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
N_FILES = 300


@dataclass(frozen=True)
class Unusual:
    """A file, and the ``color`` of its upper left part; None if the file is not an image.

    ``is_either``: cut files of some formats are still images, as far as they go.
    """

    name: str
    data: bytes
    color: Color | None = None
    is_either: bool = False


def unusual_images() -> list[Unusual]:
    """Return the corpus; always the same."""
    made = [*_no_images(), *_declared_sizes(), *_unusual_ones(), *_orientations(), *_depths()]
    rng = np.random.default_rng(0)
    seeds = _seeds(rng)
    damaged = _damaged(seeds, rng)
    while len(made) < N_FILES:
        made.append(next(damaged))
    return made


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _seeds(rng: np.random.Generator) -> dict[str, bytes]:
    noise = Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8))
    return {
        "jpeg": saved(noise, "JPEG"),
        "progressive": saved(noise, "JPEG", progressive=True),
        "png": saved(noise, "PNG"),
        "webp": saved(noise, "WEBP"),
        "gif": saved(noise, "GIF"),
        "bmp": saved(noise, "BMP"),
        "tiff": saved(noise, "TIFF"),
        "tiff-lzw": saved(noise, "TIFF", compression="tiff_lzw"),
        "ppm": saved(noise, "PPM"),
    }


def _damaged(seeds: dict[str, bytes], rng: np.random.Generator) -> Iterator[Unusual]:
    """Files cut at many points, with changed bytes, or with the header of another format."""
    names = list(seeds)
    while True:
        for name in names:
            data = seeds[name]
            end = int(rng.integers(1, len(data)))
            yield Unusual(f"{name} cut at {end}", data[:end], is_either=True)
            spoiled = bytearray(data)
            for place in rng.integers(0, len(data), 12):
                spoiled[place] = int(rng.integers(256))
            yield Unusual(f"{name} spoiled", bytes(spoiled), is_either=True)
            other = seeds[names[int(rng.integers(len(names)))]]
            yield Unusual(f"{name} with another body", data[:30] + other[30:], is_either=True)


def _no_images() -> list[Unusual]:
    texts = {
        "empty": b"",
        "a zero": b"\x00",
        "zeros": bytes(5000),
        "text": b"hello",
        "html": b"<!doctype html><html><body>404</body></html>",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "pdf": b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n",
        "zip": b"PK\x03\x04" + bytes(100),
        "gzip": b"\x1f\x8b\x08" + bytes(50),
        "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
        "script": b"#!/bin/sh\necho\n",
        "mp4": b"\x00\x00\x00\x18ftypmp42" + bytes(50),
        "heic": b"\x00\x00\x00\x18ftypheic" + bytes(50),
        "psd": b"8BPS\x00\x01" + bytes(50),
        "ico": b"\x00\x00\x01\x00\x01\x00" + bytes(50),
        "jpeg's head": b"\xff\xd8\xff\xe0",
        "png's head": b"\x89PNG\r\n\x1a\n",
        "gif's head": b"GIF89a" + bytes(7),
        "webp's head": b"RIFF\x24\x00\x00\x00WEBPVP8 ",
        "tiff's head": b"II*\x00\x08\x00\x00\x00\x00\x00",
        "ppm's head": b"P6\n9 9\n255\n",
        "bmp's head": b"BM" + bytes(60),
    }
    return [Unusual(name, data) for name, data in texts.items()]


def _declared_sizes() -> list[Unusual]:
    """Files that declare more than they contain, or more than the limit."""
    sizes = [(100_000, 100_000), (2**31 - 1, 1), (1, 2**31 - 1), (2**31 - 1, 2**31 - 1), (0, 5)]
    files = [Unusual(f"png of {w} x {h}", _png(w, h)) for w, h in sizes]
    flat = Image.new("1", (9000, 9000))
    files.append(Unusual("png bomb", saved(flat, "PNG", compress_level=9)))
    files.append(Unusual("tiff bomb", saved(flat, "TIFF", compression="group4")))
    files.append(Unusual("gif bomb", b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + bytes(40)))
    info = struct.pack("<IIIIiiHHI", 0, 0, 54, 40, 90_000, 90_000, 1, 24, 0)
    files.append(Unusual("bmp bomb", b"BM" + info + bytes(40)))
    files.append(Unusual("ppm bomb", b"P6\n99999 99999\n255\n" + bytes(10)))
    text = zlib.compress(bytes(20_000_000), 1)
    for tag in (b"zTXt", b"iCCP"):
        data = _png(4, 4, _chunk(tag, b"x\x00\x00" + text))
        files.append(Unusual(f"png with a bomb in {tag.decode()}", data, is_either=True))
    return files


def _unusual_ones() -> list[Unusual]:
    red = Image.new("RGB", (40, 30), RED)
    frames = [Image.new("RGB", (40, 30), color) for color in (RED, BLUE, WHITE)]
    clear = Image.new("RGBA", (40, 30), (*BLUE, 0))
    palette = Image.new("P", (40, 30), 0)
    palette.putpalette([*BLUE, *RED] * 128)
    cmyk = Image.new("CMYK", (40, 30), (0, 255, 255, 0))
    pages = {"save_all": True, "append_images": frames[1:]}
    animated = {"save_all": True, "append_images": frames[1:], "duration": 50}
    one = Image.new("RGB", (1, 1), RED)
    return [
        *(Unusual(f"1 x 1 {kind}", saved(one, kind), RED) for kind in ("PNG", "GIF", "BMP", "PPM")),
        Unusual("1 x 1 JPEG", saved(one, "JPEG"), (254, 0, 0)),
        Unusual("1 x 3000", saved(Image.new("RGB", (1, 3000), RED), "PNG"), RED),
        Unusual("3000 x 1", saved(Image.new("RGB", (3000, 1), RED), "PNG"), RED),
        Unusual("animated GIF", saved(frames[0], "GIF", **animated), RED),
        Unusual("animated WebP", saved(frames[0], "WEBP", lossless=True, **animated), RED),
        Unusual("animated PNG", saved(frames[0], "PNG", **animated), RED),
        Unusual("many-paged TIFF", saved(frames[0], "TIFF", **pages), RED),
        Unusual("CMYK JPEG", saved(cmyk, "JPEG", quality=100), (254, 0, 0)),
        Unusual("CMYK TIFF", saved(cmyk, "TIFF"), RED),
        Unusual("clear PNG", saved(clear, "PNG"), WHITE),
        Unusual("clear WebP", saved(clear, "WEBP", lossless=True), WHITE),
        Unusual("clear TIFF", saved(clear, "TIFF"), WHITE),
        Unusual("gray with alpha", saved(Image.new("LA", (40, 30), (0, 0)), "PNG"), WHITE),
        Unusual("gray", saved(Image.new("L", (40, 30), 77), "PNG"), (77, 77, 77)),
        Unusual("gray JPEG", saved(Image.new("L", (40, 30), 77), "JPEG"), (77, 77, 77)),
        Unusual("one bit", saved(Image.new("1", (40, 30), 1), "PNG"), WHITE),
        Unusual("palette", saved(palette, "PNG"), BLUE),
        Unusual("palette with a clear color", saved(palette, "PNG", transparency=0), WHITE),
        Unusual("palette with alphas", saved(palette, "PNG", transparency=bytes([0, 255])), WHITE),
        Unusual("GIF with a clear color", saved(palette, "GIF", transparency=0), WHITE),
        Unusual("progressive JPEG", saved(red, "JPEG", progressive=True, quality=95), (254, 0, 0)),
        Unusual("JPEG with a profile", saved(red, "JPEG", icc_profile=bytes(500)), (254, 0, 0)),
        Unusual("PNG with a profile", saved(red, "PNG", icc_profile=bytes(500)), RED),
        Unusual("PNG with broken EXIF", saved(red, "PNG", exif=b"Exif\x00\x00nonsense"), RED),
        Unusual("PNG with bytes behind it", saved(red, "PNG") + bytes(1000), RED),
        Unusual("PPM with a comment", b"P3\n# red\n1 1\n255\n255 0 0\n", RED),
        Unusual("PGM", b"P5\n2 2\n255\n" + bytes([77] * 4), (77, 77, 77)),
        Unusual("PBM", b"P1\n2 2\n0 0 0 0\n", WHITE),
    ]  # fmt: skip


def _orientations() -> Iterator[Unusual]:
    """EXIF orientations 1 to 8 and invalid ones; upright, each image is red in its upper left."""
    upright = np.zeros((40, 40, 3), dtype=np.uint8)
    upright[..., 2] = 255
    upright[:20, :20] = RED
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, k=-1),
        9: upright,
        0: upright,
    }
    for orientation, pixels in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = Image.fromarray(np.ascontiguousarray(pixels))
        for kind in ("PNG", "WEBP", "TIFF"):
            options = {"lossless": True} if kind == "WEBP" else {}
            data = saved(image, kind, exif=exif, **options)
            yield Unusual(f"{kind} of orientation {orientation}", data, RED)


def _depths() -> Iterator[Unusual]:
    for value, level in ((0, 0), (32_896, 128), (65_535, 255)):
        gray = Image.fromarray(np.full((30, 40), value, dtype=np.uint16))
        for kind in ("PNG", "TIFF"):
            yield Unusual(f"16-bit {kind} of {value}", saved(gray, kind), (level,) * 3)
    floats = Image.fromarray(np.full((30, 40), 0.5, dtype=np.float32))
    yield Unusual("float TIFF", saved(floats, "TIFF"), (128, 128, 128))
    yield Unusual("16-bit PGM", b"P5\n2 2\n65535\n" + struct.pack(">4H", *[32_896] * 4), (128,) * 3)
    yield Unusual("16-bit RGB PNG", _png16(), (128, 128, 128))


def _png16() -> bytes:
    row = b"\x00" + struct.pack(">3H", 32_896, 32_896, 32_896) * 4
    return _png_of(4, 4, 16, zlib.compress(row * 4))


def _png(width: int, height: int, *chunks: bytes) -> bytes:
    rows = zlib.compress((b"\x00" + bytes(3 * 4)) * 4)
    return _png_of(width, height, 8, rows, *chunks)


def _png_of(width: int, height: int, depth: int, rows: bytes, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    body = (_chunk(b"IHDR", header), *chunks, _chunk(b"IDAT", rows), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def _chunk(tag: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))
