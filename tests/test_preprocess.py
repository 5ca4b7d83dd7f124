import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from open_clip.transform import image_transform
from PIL import Image

from prompt_serve.errors import ImageInvalid, ImageTooLarge
from prompt_serve.preprocess import Preprocessing, decode_image, pixels_from_bytes, to_pixels

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
SMALL = Preprocessing(image_size=32, mean=MEAN, std=STD)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, size=(height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_pixels_are_those_of_open_clip(
    rng: np.random.Generator, interpolation: Any, resize_mode: Any
) -> None:
    preprocessing = Preprocessing(
        image_size=64, mean=MEAN, std=STD, interpolation=interpolation, resize_mode=resize_mode
    )
    theirs = image_transform(
        64, is_train=False, mean=MEAN, std=STD, interpolation=interpolation, resize_mode=resize_mode
    )
    # Up to 1:16; of longer strips we cut the ends off first, and open_clip does not.
    sizes = [(64, 64), (64, 65), (33, 200), (201, 67), (1, 16), *rng.integers(20, 300, (12, 2))]
    for width, height in sizes:
        image = noise(rng, int(width), int(height))
        expected = theirs(image).permute(1, 2, 0).numpy() * STD + MEAN

        pixels = to_pixels(image, preprocessing)

        np.testing.assert_array_equal(
            pixels, np.rint(expected * 255), err_msg=f"{width} x {height}"
        )


def test_exif_orientation_is_applied(rng: np.random.Generator) -> None:
    image = noise(rng, 40, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: rotate clockwise to see it upright

    decoded = decode_image(encoded(image, "PNG", exif=exif))

    np.testing.assert_array_equal(np.asarray(decoded), np.rot90(np.asarray(image), k=-1))


def test_transparent_pixels_are_laid_on_white() -> None:
    clear_red = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half_black = Image.new("LA", (4, 4), (0, 127))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 255] * 256)

    assert decode_image(encoded(clear_red, "PNG")).getpixel((0, 0)) == (255, 255, 255)
    assert decode_image(encoded(half_black, "PNG")).getpixel((0, 0)) == (128, 128, 128)
    assert decode_image(encoded(palette, "PNG", transparency=0)).getpixel((0, 0)) == (255,) * 3
    assert decode_image(encoded(palette, "PNG")).getpixel((0, 0)) == (0, 0, 255)


def test_cmyk_gray_and_one_bit_images_become_rgb() -> None:
    for mode, color, kind, expected in (
        ("CMYK", (0, 255, 255, 0), "TIFF", (255, 0, 0)),
        ("L", 77, "PNG", (77, 77, 77)),
        ("1", 1, "PNG", (255, 255, 255)),
    ):
        data = encoded(Image.new(mode, (4, 4), color), kind)
        assert decode_image(data).getpixel((0, 0)) == expected


@pytest.mark.parametrize(("stored", "expected"), [(65_535, 255), (32_896, 128), (200, 1), (0, 0)])
def test_16_bit_gray_is_scaled_not_cut(stored: int, expected: int) -> None:
    image = Image.fromarray(np.full((4, 4), stored, dtype=np.uint16))

    assert decode_image(encoded(image, "PNG")).getpixel((0, 0)) == (expected,) * 3


def test_an_animation_is_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])

    assert decode_image(data).getpixel((0, 0)) == (255, 0, 0)


def test_a_long_strip_keeps_its_middle_and_stays_small(rng: np.random.Generator) -> None:
    strip = noise(rng, 1, 20_000)

    pixels = to_pixels(strip, SMALL)

    assert pixels.shape == (32, 32, 3)
    middle = strip.crop((0, 10_000 - 8, 1, 10_000 + 8))
    np.testing.assert_array_equal(pixels, to_pixels(middle, SMALL))


def test_a_bomb_is_refused_by_its_declared_size() -> None:
    # A PNG of 67 bytes that declares 10,000,000,000 pixels and holds none.
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))
        for tag, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    )

    with pytest.raises(ImageTooLarge):
        decode_image(png)


def test_the_pixel_limit_names_both_numbers() -> None:
    data = encoded(Image.new("RGB", (30, 20)), "PNG")

    with pytest.raises(ImageTooLarge, match=r"30 x 20 = 600 pixels; at most 599") as caught:
        decode_image(data, max_pixels=599)

    assert caught.value.facts == {"width": 30, "height": 20, "max_pixels": 599}
    assert decode_image(data, max_pixels=600).size == (30, 20)


# Pillow warns of a TIFF directory that ends too early, and then raises.
@pytest.mark.filterwarnings("ignore:.*EXIF data:UserWarning")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_files_cut_short_are_invalid_wherever_they_end(rng: np.random.Generator, kind: str) -> None:
    data = encoded(noise(rng, 50, 50), kind)

    for end in (1, 10, len(data) // 4, len(data) // 2, len(data) * 3 // 4):
        with pytest.raises(ImageInvalid, match="image"):
            decode_image(data[:end])


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>"],
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(ImageInvalid, match="image"):
        decode_image(data)


def test_bytes_to_pixels_in_one_step(rng: np.random.Generator) -> None:
    image = noise(rng, 48, 40)

    pixels = pixels_from_bytes(encoded(image, "PNG"), SMALL)

    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, to_pixels(image, SMALL))
