"""Formats of photographs as people have them: HEIC, AVIF, large PNG chunks, cut JPEGs, large sizes.

The tests that decode HEIC need ``pillow-heif``, which the extra ``dev`` installs.
"""

import io
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from prompt_serve import preprocess
from prompt_serve.errors import ConfigInvalid, ImageInvalid, ImageTooLarge
from prompt_serve.images.rgb_conversion import to_rgb
from prompt_serve.preprocess import decode_image
from prompt_serve.types import PixelArray

HEIC = Path(__file__).parent / "data" / "red_blue.heic"  # 64 x 48, the left half red, then blue
HEVC_BRANDS = [b"heic", b"heix", b"mif1", b"hevc", b"heim"]
needs_heif = pytest.mark.skipif(not preprocess.reads_heif(), reason="pillow-heif is not installed")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(height: int, width: int) -> Image.Image:
    """Waves of color with some noise."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).normal(0, 8, (height, width, 3))
    waves = np.stack([np.sin(x / 17 + y / 31), np.cos(y / 13), np.sin(x / 50)], axis=-1)
    return Image.fromarray(np.clip(128 + 100 * waves + noise, 0, 255).astype(np.uint8))


def rgb(data: bytes) -> PixelArray:
    return np.asarray(decode_image(data))


@needs_heif
@pytest.mark.parametrize("brand", HEVC_BRANDS)
def test_heic_is_read(brand: bytes) -> None:
    data = HEIC.read_bytes()
    pixels = rgb(data[:8] + brand + data[12:])
    assert pixels.shape == (48, 64, 3)
    np.testing.assert_allclose(pixels[20, 10].astype(int), (220, 30, 30), atol=4)
    np.testing.assert_allclose(pixels[20, 50].astype(int), (30, 30, 220), atol=4)


@needs_heif
@pytest.mark.parametrize("orientation", [1, 3, 6, 8, 2])
def test_heic_is_turned_upright_once(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = photo(48, 64)
    heic = rgb(encoded(image, "HEIF", quality=95, exif=exif.tobytes()))
    png = rgb(encoded(image, "PNG", exif=exif))
    assert heic.shape == png.shape
    assert np.abs(heic.astype(int) - png).mean() < 8  # HEIC is lossy; a wrong turn is off by 60


@needs_heif
@pytest.mark.parametrize("end", [20, 100, 300, 450, -10])
def test_damaged_heic_and_large_heic_are_refused(end: int) -> None:
    data = HEIC.read_bytes()
    with pytest.raises(ImageInvalid, match="damaged or cut short"):
        decode_image(data[:end])
    with pytest.raises(ImageTooLarge, match="64 x 48"):
        decode_image(data, max_pixels=64 * 48 - 1)


@pytest.mark.parametrize("brand", HEVC_BRANDS)
def test_without_pillow_heif_the_error_says_what_to_install(brand: bytes) -> None:
    code = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from prompt_serve.preprocess import decode_image\n"
        "from prompt_serve.image_folders import image_suffixes\n"
        "assert '.heic' not in image_suffixes()\n"
        "decode_image(sys.stdin.buffer.read())"
    )
    data = HEIC.read_bytes()
    ran = subprocess.run(
        [sys.executable, "-c", code], input=data[:8] + brand + data[12:], capture_output=True
    )
    assert b"HEIC, which cannot be read here; to read HEIC: pip install" in ran.stderr


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "CMYK"])
def test_avif_is_read(mode: str) -> None:
    image = photo(40, 60).convert(mode)
    pixels = rgb(encoded(image, "AVIF", quality=95))
    expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(pixels - expected).mean() < 6


def _large_text(kind: str) -> bytes:
    """A PNG with a chunk of 3 MB, or of 80 MB where only so much is refused."""
    info, options = PngInfo(), {}
    text = "prompt " * 450_000
    match kind:
        case "tEXt":
            info.add_text("workflow", "x" * 80_000_000)
        case "zTXt":
            info.add_text("parameters", text, zip=True)
        case "iTXt":
            info.add_itxt("XML:com.adobe.xmp", text, zip=True)
        case "iCCP":
            options["icc_profile"] = bytes(3_000_000)
    return encoded(photo(30, 40), "PNG", pnginfo=info, **options)


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "iCCP"])
def test_png_with_large_texts_or_profiles_is_read(kind: str) -> None:
    data = _large_text(kind)
    with (
        pytest.raises(ValueError, match=r"too large|Too much"),
        Image.open(io.BytesIO(data)) as raw,
    ):
        raw.load()  # what Pillow refuses
    np.testing.assert_array_equal(rgb(data), np.asarray(photo(30, 40)))


def test_a_damaged_png_with_a_large_profile_is_refused() -> None:
    data = _large_text("iCCP")
    for end in (len(data) // 2, len(data) - 500, len(data) - 40):
        with pytest.raises(ImageInvalid, match="damaged or cut short"):
            decode_image(data[:end])


JPEGS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "full color": {"subsampling": 0},
    "optimized": {"optimize": True},
    "restarts": {"restart_marker_rows": 1},
    "many restarts": {"restart_marker_blocks": 3},
    "gray": {"gray": True},
}


def jpeg(height: int, width: int, *, gray: bool = False, **options: Any) -> bytes:
    image = photo(height, width)
    return encoded(image.convert("L") if gray else image, "JPEG", quality=90, **options)


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("size", [(300, 400), (101, 133), (224, 224), (16, 16)])
def test_a_jpeg_without_its_last_two_bytes_is_read_whole(size: tuple[int, int], kind: str) -> None:
    data = jpeg(*size, **JPEGS[kind])
    for missing in (1, 2):
        np.testing.assert_array_equal(rgb(data[:-missing]), rgb(data))


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("missing", [3, 5, 10, 50])
def test_a_jpeg_without_its_last_bytes_keeps_all_rows_but_the_last(kind: str, missing: int) -> None:
    data = jpeg(300, 400, **JPEGS[kind])
    np.testing.assert_array_equal(rgb(data[:-missing])[:-18], rgb(data)[:-18])


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("size", [(300, 400), (64, 64), (16, 16)])
def test_a_jpeg_cut_anywhere_is_refused_or_has_its_rows(size: tuple[int, int], kind: str) -> None:
    data = jpeg(*size, **JPEGS[kind])
    whole, kept = rgb(data), size[0] - min(18, size[0] // 8)
    refused = 0
    ends = range(len(data) // 50, len(data), len(data) // 50)
    for end in ends:
        try:
            pixels = rgb(data[:end])
        except ImageInvalid:
            refused += 1
        else:
            np.testing.assert_array_equal(pixels[:kept], whole[:kept])
    assert refused > 0.8 * len(ends)


def test_a_cut_jpeg_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = jpeg(300, 400, exif=exif)
    assert decode_image(data[:-10]).size == (300, 400)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("value", ["599", "600", "000600", "1", "100000000000"])
def test_the_size_limit_is_a_setting(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own, which the setting raises
    monkeypatch.setenv("PROMPT_SERVE_MAX_IMAGE_PIXELS", value)
    data = encoded(photo(20, 30), "PNG")
    if int(value) < 600:
        with pytest.raises(ImageTooLarge, match="PROMPT_SERVE_MAX_IMAGE_PIXELS"):
            decode_image(data)
    else:
        assert decode_image(data).size == (30, 20)


@pytest.mark.parametrize("value", ["", "0", "-5", "200 MP", "1e8", "٣"])
def test_an_invalid_size_limit_is_one_error(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("PROMPT_SERVE_MAX_IMAGE_PIXELS", value)
    with pytest.raises(ConfigInvalid, match="expected a number of pixels"):
        decode_image(encoded(photo(20, 30), "PNG"))


@pytest.mark.parametrize("largest", [1, 7, 100, 1023, 4095, 65_534])
@pytest.mark.parametrize("magic", [b"P5", b"P6"])
def test_numbers_of_any_range_are_read_as_pillow_reads_them(magic: bytes, largest: int) -> None:
    width, height, channels = 31, 9, 3 if magic == b"P6" else 1
    rng = np.random.default_rng(largest)
    # Some numbers are above the largest that the header promises.
    numbers = rng.integers(0, min(largest + 20, 65_535), width * height * channels)
    body = numbers.astype(">u2" if largest > 255 else "u1").tobytes()
    data = magic + b"\n%d %d\n%d\n" % (width, height, largest) + body

    with Image.open(io.BytesIO(data)) as image:
        expected = to_rgb(image)

    np.testing.assert_array_equal(rgb(data), np.asarray(expected))
    with pytest.raises(ImageInvalid, match="damaged"):
        decode_image(data[:-1])


def _run_length_bmp(width: int, height: int, body: bytes) -> bytes:
    info = struct.pack("<IIIHHIIIIII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    head = struct.pack("<2sIHHI", b"BM", 14 + 40 + 1024 + len(body), 0, 0, 14 + 40 + 1024)
    return head + info + bytes(1024) + body


@pytest.mark.parametrize(
    "data",
    [
        b"P1\n7000 7000\n" + b"0 1 " * 100,
        b"P2\n7000 7000\n255\n" + b"7 " * 100,
        b"P3\n5000 9000\n65535\n" + b"9 8 7 " * 100,
        b"P3\n10 10\n255\n" + b"9 8 7 " * 500_000,
        b"P1\n1000 501\n" + b"0" * 501_000,
        _run_length_bmp(7000, 7000, b"\x00\x00" * 300),
        _run_length_bmp(10, 10, b"\x00\x02\x00\x00" * 600_000),
    ],
    ids=["P1", "P2", "P3", "long P3", "just above", "BMP", "long BMP"],
)
def test_large_files_that_python_would_decode_are_refused_by_their_header(data: bytes) -> None:
    with pytest.raises(ImageTooLarge, match=r"slow to decode.* Save it as PNG"):
        decode_image(data)


def test_small_files_that_python_decodes_are_read() -> None:
    bmp = _run_length_bmp(20, 20, b"\x14\x05\x00\x00" * 20 + b"\x00\x01")

    assert decode_image(bmp).size == (20, 20)
    assert decode_image(b"P2\n3 1\n7\n0 7 3\n").getpixel((1, 0)) == (255, 255, 255)
