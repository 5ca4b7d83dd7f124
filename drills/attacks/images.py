"""Attacks by the author of an image: any format, damaged, or far larger than its file."""

import base64
import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from drills.attacks.kind import Kind, NotMade, Target, together
from drills.faults import mutated
from tests.service.unusual_images import saved

TASK = "drill-0"
BUDGET_BYTES = 400 * 2**20
_MODES = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "AVIF": ("RGB", "RGBA"),
    "GIF": ("P", "L", "RGB", "1"),
    "BMP": ("RGB", "L", "P", "1", "RGBA"),
    "TIFF": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16", "I", "F", "CMYK", "YCbCr", "LAB"),
    "PPM": ("RGB", "L", "1", "I"),
}
_ANIMATED = ("GIF", "WEBP", "PNG", "TIFF", "AVIF")
_TIFF_COMPRESSIONS = (None, "raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd")
_END = b"\xff\xd9"

Draws = random.Random


@dataclass(frozen=True)
class _Images:
    """Attack that sends images in every form of a body, some of them many times in one request."""

    make: Callable[[Draws], bytes]

    async def __call__(self, target: Target, draws: Draws, count: int) -> None:
        seeds = [draws.getrandbits(64) for _ in range(count)]
        await together(self._send(target, seed) for seed in seeds)

    async def _send(self, target: Target, seed: int) -> None:
        try:
            kind, path, body, shown = await target.make(_request, self.make, seed)
        except NotMade:  # libavif's encoder crashes on some animations
            return
        name = f"{shown}, {self.make.__name__} of {seed}"
        await target.ask("POST", path, name=name, content=body, headers={"content-type": kind})


def _request(make: Callable[[Draws], bytes], seed: int) -> tuple[str, str, bytes, str]:
    """Return content type, path, body and description of a request with an image."""
    draws = random.Random(seed)
    image = make(draws)
    kind, body = _in_any_form(image, draws)
    path = draws.choice((f"/v1/classify?task={TASK}", "/v1/embed"))
    return kind, path, body, f"{image[:12]!r} of {len(image):,} bytes in {kind}"


def _in_any_form(image: bytes, draws: Draws) -> tuple[str, bytes]:
    """Return a content type and a body with an image, once or many times."""
    times = draws.choice((1, 1, 1, 4, 64)) if len(image) < 300_000 else 1
    match draws.randrange(4):
        case 0:
            return "image/png", image
        case 1:
            return "application/octet-stream", image
        case 2:
            text = base64.b64encode(image).decode()
            return "application/json", json.dumps({"images": [text] * times}).encode()
        case _:
            head = b'--b\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n'
            return "multipart/form-data; boundary=b", (head + image + b"\r\n") * times + b"--b--"


def large_image(draws: Draws) -> bytes:
    """Return an image that declares or holds far more than its bytes."""
    return draws.choice((declaring, bomb))(draws)


def damaged_image(draws: Draws) -> bytes:
    """Return a file that is cut, changed, repeated, or has the head of one with the end of it."""
    data = draws.choice((any_image, any_image, declaring, many_scans, bomb))(draws)
    match draws.randrange(4):
        case 0:
            return data[: draws.randint(0, len(data))]
        case 1:
            return mutated(data, draws)
        case 2:
            at = draws.randint(0, len(data))
            return data[:at] + draws.randbytes(draws.choice((1, 100, 5_000))) + data[at:]
        case _:
            return data[: draws.randint(1, 60)] + any_image(draws)[draws.randint(0, 60) :]


def any_image(draws: Draws) -> bytes:
    """Return an image of any format, mode, size, content and options that Pillow writes."""
    kind = draws.choice(list(_MODES))
    mode = draws.choice(_MODES[kind])
    longest = draws.choice((1, 8, 60, 400, 1500, 3000))
    size = (draws.randint(1, longest), draws.randint(1, longest))
    if draws.random() < 0.1:
        size = draws.choice(((1, 16_000), (16_000, 1), (3, 9_000)))
    image = _drawn(mode, size, draws)
    options = _options(kind, draws)
    if kind in _ANIMATED and draws.random() < 0.25:
        frames = [_drawn(mode, size, draws) for _ in range(draws.randint(1, 6))]
        options |= {"save_all": True, "append_images": frames}
    try:
        return saved(image, kind, **options)
    # Pillow writes not all of these together, and says so in many ways.
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, SyntaxError, struct.error):
        return saved(image.convert("RGB"), "PNG" if kind == "AVIF" else kind)


def _drawn(mode: str, size: tuple[int, int], draws: Draws) -> Image.Image:
    """Return noise, blocks or one color of a mode."""
    rng = np.random.default_rng(draws.getrandbits(32))
    small = draws.choice(((1, 1), (4, 4), size))
    if mode in ("I;16", "I", "F"):
        top = {"I;16": 65_535, "I": draws.choice((200, 65_535, 2**31 - 1)), "F": 1}[mode]
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        numbers = (rng.random(small[::-1]) * top).astype(kind)
        if mode == "F" and draws.random() < 0.3:
            numbers.flat[0] = draws.choice((np.nan, np.inf, -np.inf, 1e30))
        image = Image.fromarray(numbers)
        return image if image.size == size else image.resize(size, Image.Resampling.NEAREST)
    pixels = rng.integers(0, 256, (*small[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
    if mode in ("RGBA", "LA"):
        image.putalpha(draws.choice((0, 1, 128, 255)))
    if mode == "LAB":  # from RGB, Pillow converts only by color profiles
        return Image.merge("LAB", image.split())
    return image.convert(mode)


def _options(kind: str, draws: Draws) -> dict[str, Any]:
    options: dict[str, Any] = {}
    match kind:
        case "JPEG":
            options = {
                "progressive": draws.random() < 0.5,
                "quality": draws.choice((1, 30, 75, 95, 100)),
                "subsampling": draws.choice((0, 1, 2)),
                "restart_marker_rows": draws.choice((0, 0, 1)),
            }
        case "PNG":
            options = {"compress_level": draws.choice((0, 1, 9))}
            if draws.random() < 0.2:
                options["transparency"] = draws.choice((0, b"\0\xff", 70_000, (1, 2, 3)))
        case "WEBP":
            options = {
                "lossless": draws.random() < 0.5,
                "method": 0,
                "quality": draws.choice((1, 80)),
            }
        case "AVIF":
            options = {
                "speed": 10,
                "quality": draws.choice((5, 60)),
                "subsampling": draws.choice(("4:2:0", "4:4:4", "4:0:0")),
            }
        case "TIFF":
            options = {"compression": draws.choice(_TIFF_COMPRESSIONS)}
            if draws.random() < 0.3:
                options["strip_size"] = draws.choice((1, 100, 2**30))
    if draws.random() < 0.3:
        options["icc_profile"] = draws.randbytes(draws.choice((0, 5, 3_000, 200_000)))
    if draws.random() < 0.3:
        options["exif"] = _exif(draws)
    return options


def _exif(draws: Draws) -> bytes:
    """Return EXIF data: an orientation, nonsense, or directories that lead into each other."""
    match draws.randrange(4):
        case 0:
            exif = Image.Exif()
            exif[0x0112] = draws.choice((*range(10), 65_535))
            return exif.tobytes()
        case 1:
            return b"Exif\0\0" + draws.randbytes(draws.choice((1, 40, 5_000)))
        case 2:  # a directory that is its own successor, and its own EXIF and GPS directory
            tags = struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<HHII", 0x8825, 4, 1, 8)
            return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + tags + struct.pack("<I", 8)
        case _:  # as many entries as there can be, each of which declares gigabytes
            entries = struct.pack("<HHII", 0x010E, 2, 2**32 - 1, 8) * draws.choice((10, 5_000))
            count = len(entries) // 12
            return b"Exif\0\0II*\0" + struct.pack("<IH", 8, count) + entries + bytes(4)


def declaring(draws: Draws) -> bytes:
    """Return a small file of any format that declares a size of up to gigapixels."""
    width, height = (
        draws.choice((1, 100, 7_000, 16_383, 65_500, 65_535, 2**24, 2**31 - 1, 2**32 - 1))
        for _ in range(2)
    )
    small = Image.new("RGB", (draws.randint(1, 40), draws.randint(1, 40)), (9, 200, 3))
    match draws.randrange(8):
        case 0:
            png = bytearray(saved(small, "PNG"))
            png[16:24] = struct.pack(">II", width, height)
            png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
            return bytes(png)
        case 1:
            gif = bytearray(saved(small, "GIF"))
            size = struct.pack("<HH", min(width, 65_535), min(height, 65_535))
            gif[6:10] = size
            if draws.random() < 0.5:  # of the frame, too
                at = gif.index(b",", 13)
                gif[at + 5 : at + 9] = size
            return bytes(gif)
        case 2:
            jpeg = bytearray(saved(small, "JPEG", progressive=draws.random() < 0.5))
            at = max(jpeg.find(b"\xff\xc0"), jpeg.find(b"\xff\xc2"))
            jpeg[at + 5 : at + 9] = struct.pack(">HH", min(height, 65_535), min(width, 65_535))
            return bytes(jpeg)
        case 3:
            bmp = bytearray(saved(small, "BMP"))
            bmp[18:26] = struct.pack("<II", width, draws.choice((height, 2**32 - height)))
            return bytes(bmp)
        case 4:
            kind = draws.choice((1, 2, 3, 4, 5, 6))
            top = draws.choice((1, 200, 255, 4_095, 65_535, 2**31))
            return b"P%d\n%d %d\n%d\n" % (kind, width, height, top) + bytes(60)
        case 5:
            webp = bytearray(saved(small, "WEBP", exif=b"Exif\0\0MM"))  # in the extended format
            at = webp.index(b"VP8X") + 12
            webp[at : at + 3] = struct.pack("<I", min(width, 2**24) - 1)[:3]
            webp[at + 3 : at + 6] = struct.pack("<I", min(height, 2**24) - 1)[:3]
            return bytes(webp)
        case 6:
            return _tiff_of(width, height, draws)
        case _:
            avif = bytearray(saved(small, "AVIF", speed=10))
            at = avif.index(b"ispe") + 8
            avif[at : at + 8] = struct.pack(">II", width, height)
            return bytes(avif)


def _tiff_of(width: int, height: int, draws: Draws) -> bytes:
    """Return a TIFF whose tags say anything about its size, its bits and where its data is."""
    samples = draws.choice((1, 3, 4, 65_535))
    tags = {
        256: width,
        257: height,
        258: draws.choice((1, 8, 16, 32, 64)),
        259: draws.choice((1, 2, 3, 4, 5, 6, 7, 8, 32_773, 34_712, 50_000)),
        262: draws.choice((0, 1, 2, 3, 5, 6, 8)),
        277: samples,
        draws.choice((278, 322)): draws.choice((1, height)),
        draws.choice((273, 324)): draws.choice((0, 8, 200, 2**32 - 1)),
        draws.choice((279, 325)): draws.choice((0, 100, 2**32 - 1)),
        284: draws.choice((1, 2)),
        339: draws.choice((1, 2, 3)),
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, n) for tag, n in sorted(tags.items()))
    following = draws.choice((0, 8, 2**31))  # another directory, or this one again
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return head + entries + struct.pack("<I", following) + draws.randbytes(200)


def bomb(draws: Draws) -> bytes:
    """Return a file that is small for what it unpacks to, but within the limits or just above."""
    side = draws.choice((1_500, 3_000, 5_000, 7_000, 12_000))
    size = (side, draws.choice((side, side // 3, 200)))
    match draws.randrange(9):
        case 0:
            mode = draws.choice(("1", "L", "RGBA", "P"))
            return saved(Image.new(mode, size), "PNG", compress_level=9)
        case 1:
            compression = draws.choice(("group4", "tiff_lzw", "packbits"))
            mode = "1" if compression == "group4" else draws.choice(("1", "L", "F", "CMYK"))
            return saved(Image.new(mode, size), "TIFF", compression=compression)
        case 2:
            alpha = draws.choice(("RGB", "RGBA"))
            return saved(Image.new(alpha, size), "WEBP", lossless=True, method=0)
        case 3:
            return saved(Image.new("P", size), "GIF", transparency=0)
        case 4:
            frames = [Image.new("P", (900, 900), n % 250) for n in range(draws.choice((2, 60)))]
            return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
        case 5:
            return saved(Image.new("RGB", size), "JPEG", progressive=draws.random() < 0.7)
        case 6:
            return _run_length_bmp(size, draws)
        case 7:
            return _png_with_bombs(draws)
        case _:
            return saved(Image.new("RGB", (side // 2, side // 2)), "AVIF", speed=10)


def _run_length_bmp(size: tuple[int, int], draws: Draws) -> bytes:
    body = draws.choice((bytes(3_000), b"\0\2\xff\xff" * 9_000, b"\xff\1" * 50_000))
    depth = draws.choice(((8, 1), (4, 2)))
    info = struct.pack("<IIIHHIIIIII", 40, *size, 1, *depth, len(body), 0, 0, 256, 0)
    offset = 14 + 40 + 1024
    return struct.pack("<2sIHHI", b"BM", offset, 0, 0, offset) + info + bytes(1024) + body


def _png_with_bombs(draws: Draws) -> bytes:
    """Return a PNG with compressed texts or profiles of megabytes, or with very many chunks."""
    png = saved(Image.new("RGB", (9, 9)), "PNG")
    packed = zlib.compress(bytes(draws.choice((70_000, 5_000_000, 60_000_000))), 9)
    chunks = {
        "texts": _chunk(b"zTXt", b"a\0\0" + packed) * draws.choice((1, 20)),
        "profile": _chunk(b"iCCP", b"a\0\0" + packed),
        "international": _chunk(b"iTXt", b"a\0\1\0\0\0" + packed) * draws.choice((1, 20)),
        "exif": _chunk(b"eXIf", _exif(draws)[6:]),
        "empty": _chunk(b"prVt", b"") * draws.choice((1_000, 100_000)),
        "palette": _chunk(b"PLTE", bytes(768)) * 50 + _chunk(b"tRNS", bytes(256)),
        "animation": _chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)),
    }
    return png[:33] + chunks[draws.choice(sorted(chunks))] + png[33:]


def _chunk(tag: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))


def many_scans(draws: Draws) -> bytes:
    """Return a progressive JPEG with up to tens of thousands of scans, and what hides them."""
    side = draws.choice((16, 500, 2_000, 4_000, 6_900))
    jpeg = saved(
        _drawn(draws.choice(("RGB", "L", "CMYK")), (side, draws.choice((side, 64))), draws),
        "JPEG",
        progressive=True,
        quality=draws.choice((10, 40)),
    )
    last = jpeg.rindex(b"\xff\xda")
    header = last + 2 + int.from_bytes(jpeg[last + 2 : last + 4])
    scan = jpeg[last : header + draws.choice((0, 1, 10, 200))]
    count = draws.choice((2, 60, 95, 120, 1_000, 20_000, 60_000))
    between = draws.choice(
        (b"", b"\xff", b"\xff" * 50, b"\xff\xfe\0\2", b"\xff\xd0", b"\xff\xdd\0\4\0\1")
    )
    repeated = (scan + between) * min(count, 25_000_000 // (len(scan) + len(between)))
    end = draws.choice((_END, b"", b"\xff\xef\xff\xff" + _END, _END + bytes(50)))
    return jpeg[:-2] + repeated + end


_SETTINGS = {"max_bytes_in_flight": str(BUDGET_BYTES)}
KINDS = {
    "images": Kind("images of every format, mode and size", _Images(any_image), _SETTINGS),
    "damaged-images": Kind("images cut, changed or mixed", _Images(damaged_image), _SETTINGS),
    "large-images": Kind(
        "images that declare up to gigapixels, and bombs of every format",
        _Images(large_image),
        _SETTINGS,
    ),
    "scans": Kind("progressive JPEGs of up to 60,000 scans", _Images(many_scans), _SETTINGS),
}
