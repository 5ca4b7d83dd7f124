"""Images of every supported form are sent with the pixels of their file."""

import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prompt_serve.client import Client
from prompt_serve.client.images import ImageFile, UnreadableImage, pack
from prompt_serve.errors import ImageInvalid
from prompt_serve.images.image_source import one_or_many, read_image, source_of
from prompt_serve.preprocess import decode_image
from prompt_serve.types import PixelArray
from tests.client.fake_service import FakeService, numbered_image


@pytest.fixture
def pixels(rng: np.random.Generator) -> PixelArray:
    return rng.integers(0, 256, (7, 5, 3), dtype=np.uint8)


def test_all_forms_of_a_picture_have_the_same_pixels(pixels: PixelArray, tmp_path: Path) -> None:
    picture = Image.fromarray(pixels)
    path = tmp_path / "picture.png"
    picture.save(path)
    data = path.read_bytes()
    forms: list[Any] = [str(path), path, data, bytearray(data), memoryview(data), picture, pixels]
    forms += [io.BytesIO(data), np.asfortranarray(pixels)]

    for form in forms:
        np.testing.assert_array_equal(np.asarray(decode_image(read_image(form))), pixels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I", "F", "HSV"])
def test_pictures_of_every_mode_can_be_sent(mode: str, pixels: PixelArray) -> None:
    picture = Image.fromarray(pixels).convert("L").convert("RGB").convert(mode)

    assert decode_image(read_image(picture)).size == (5, 7)


def test_a_turned_photograph_is_sent_as_its_file_would_be_read(
    pixels: PixelArray, tmp_path: Path
) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees
    Image.fromarray(pixels).save(path, exif=exif)

    with Image.open(path) as picture:
        sent = decode_image(read_image(picture))

    np.testing.assert_array_equal(np.asarray(sent), np.asarray(decode_image(path.read_bytes())))


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("/nowhere/cat.jpg", "No such file"),
        (".", "Is a directory"),
        ("nul\0byte", "cannot be read"),
        (None, "'NoneType' is not an image"),
        (3, "'int' is not an image"),
        (io.StringIO("text"), "binary mode"),
        (np.zeros((2, 2, 3)), r"float64 \(2, 2, 3\); expected uint8"),
        (np.zeros((2, 2), np.uint8), r"uint8 \(2, 2\); expected"),
        (np.zeros((0, 2, 3), np.uint8), r"uint8 \(0, 2, 3\); expected"),
    ],
)
def test_an_invalid_image_is_an_error_that_says_what_is_valid(image: Any, reason: str) -> None:
    with pytest.raises(ImageInvalid, match=reason):
        read_image(image)


def test_a_closed_file_and_a_truncated_picture_are_bad_images(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:-1000])
    closed = io.BytesIO(b"x")
    closed.close()

    with Image.open(path) as truncated, pytest.raises(ImageInvalid, match="PIL image"):
        read_image(truncated)
    with pytest.raises(ImageInvalid, match="closed file"):
        read_image(closed)


def test_one_image_is_distinguished_from_several(pixels: PixelArray) -> None:
    single: list[Any] = ["a.jpg", Path("a.jpg"), b"x", io.BytesIO(b"x"), pixels]
    several: list[Any] = [["a.jpg"], (b"x",), iter([b"x"]), np.stack([pixels, pixels])]

    assert all(one_or_many(images)[0] for images in [*single, Image.fromarray(pixels)])
    assert not any(one_or_many(images)[0] for images in several)


def test_sources_are_paths_where_there_are_any(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(numbered_image(1))

    with path.open("rb") as file, Image.open(path) as picture:
        assert [source_of(x) for x in ("a.png", Path("a.png"), b"", file, picture)] == [
            "a.png",
            "a.png",
            "",
            str(path),
            str(path),
        ]


def test_requests_are_filled_up_to_their_limits() -> None:
    sizes = [1000, 1000, 1000, 9000, 100, 20_000, 100]
    images = [(i, bytes(size)) for i, size in enumerate(sizes)]

    packed = list(pack(images, max_images=2, request_bytes=5000, max_bytes=15_000))

    shapes = [[f.index for f in p] if isinstance(p, list) else -p.index for p in packed]
    # 0 and 1 fill a request by count, 3 goes alone, 5 is refused and leaves the others be.
    assert shapes == [[0, 1], [2], [3], -5, [4, 6]]
    assert all(isinstance(p, UnreadableImage | list) for p in packed)


def test_images_are_read_when_their_request_is_made(tmp_path: Path) -> None:
    reads: list[int] = []

    class Counted(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            reads.append(len(reads))
            return super().read(size)

    files = [(i, Counted(b"x" * 100)) for i in range(10)]
    requests = pack(files, max_images=2, request_bytes=10_000, max_bytes=10_000)

    next(requests)
    assert len(reads) == 3  # two, and the one that did not fit
    assert len([f for r in requests for f in r if isinstance(f, ImageFile)]) == 8  # type: ignore[union-attr]  # all are read


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_file_name_of_another_encoding_is_no_obstacle(
    service: FakeService, client: Client, tmp_path: Path
) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b'/caf\xe9 "1".png')
    Path(path).write_bytes(numbered_image(5))

    result = client.classify(path, "pets")

    assert result.predictions is not None
    assert result.filename == 'caf? "1".png'
