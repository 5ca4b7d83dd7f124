"""Images resized by the client have the pixels of training and serving, to the bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prompt_serve.client import Client
from prompt_serve.client.images import ImageFile, UnreadableImage, pack, preprocessing_of, resized
from prompt_serve.errors import ConfigInvalid
from prompt_serve.preprocess import Preprocessing, pixels_from_bytes
from prompt_serve.schemas import ServiceInfo
from prompt_serve.training.data.dataset import ImageSet, LabeledImage
from prompt_serve.training.data.pixels import image_pixels
from prompt_serve.types import PixelArray
from tests.client.fake_service import FakeService
from tests.test_image_formats import encoded, photo

SIDE = 32
SIZES = [(640, 480), (401, 1203), (77, 64), (2500, 90), (33, 1600), (1555, 1029)]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True, "quality": 60}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "avif": ("AVIF", {"speed": 10}),
    "tiff": ("TIFF", {}),
    "gif": ("GIF", {}),
}
MODES = ["RGB", "L", "CMYK", "RGBA", "LA", "P", "1", "I;16"]


def preprocessing(resize_mode: Any = "shortest", interpolation: Any = "bicubic") -> Preprocessing:
    return Preprocessing(
        image_size=SIDE,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        decoding="scaled",
        resize_mode=resize_mode,
        interpolation=interpolation,
    )


def in_training(data: bytes, folder: Path, to: Preprocessing) -> PixelArray:
    path = folder / "image"
    path.write_bytes(data)
    image = LabeledImage(path=path, label=0)
    pixels = image_pixels(ImageSet(class_names=("a",), items=(image,)), to, workers=1)
    plain: PixelArray = pixels.plain(0, 1)[0]
    return plain


def check_parity(data: bytes, folder: Path, to: Preprocessing) -> None:
    served = pixels_from_bytes(data, to)
    sent = resized(data, to)
    assert np.array_equal(pixels_from_bytes(sent, to), served)
    assert np.array_equal(in_training(data, folder, to), served)
    assert len(sent) <= max(len(data), SIDE * SIDE)
    assert len(sent) < SIDE * SIDE * 3 + 1000


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_format_and_size(tmp_path: Path, kind: str, size: tuple[int, int]) -> None:
    name, options = KINDS[kind]
    data = encoded(photo(size[1], size[0]), name, **options)

    check_parity(data, tmp_path, preprocessing())


@pytest.mark.parametrize("mode", MODES)
def test_every_mode(tmp_path: Path, mode: str) -> None:
    image = photo(300, 411)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L"), dtype=np.uint16) * 257)
    kind = "TIFF" if mode == "CMYK" else "PNG"

    check_parity(encoded(image.convert(mode), kind), tmp_path, preprocessing())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_orientation(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation

    check_parity(encoded(photo(301, 553), kind, exif=exif.tobytes()), tmp_path, preprocessing())


@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_every_way_of_resizing(tmp_path: Path, resize_mode: str, interpolation: str) -> None:
    data = encoded(photo(333, 801), "JPEG")

    check_parity(data, tmp_path, preprocessing(resize_mode, interpolation))


def packed(*images: Any) -> list[ImageFile | UnreadableImage]:
    found: list[ImageFile | UnreadableImage] = []
    for part in pack(
        enumerate(images),
        max_images=10,
        request_bytes=10**6,
        max_bytes=10**6,
        resize=preprocessing(),
    ):
        found += part if isinstance(part, list) else [part]
    return found


def test_small_files_and_urls_are_sent_as_they_are() -> None:
    small = encoded(Image.new("RGB", (300, 300)), "PNG")
    assert len(small) <= SIDE * SIDE

    file, url = packed(small, "https://example.org/a.jpg")

    assert isinstance(file, ImageFile)
    assert file.data == small
    assert isinstance(url, ImageFile)
    assert url.data == b"https://example.org/a.jpg"


@pytest.mark.parametrize("end", [1500, 3000, -2000])
def test_a_damaged_image_is_an_error_of_its_own(end: int) -> None:
    good = encoded(photo(300, 400), "PNG")

    bad, other = packed(good[:end], good)

    assert isinstance(bad, UnreadableImage)
    assert bad.error.code == "image-invalid"
    assert isinstance(other, ImageFile)


def test_an_image_of_more_pixels_than_are_decoded_here_is_an_error_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PROMPT_SERVE_MAX_IMAGE_PIXELS", "1000")

    [found] = packed(encoded(photo(300, 400), "PNG"))

    assert isinstance(found, UnreadableImage)
    assert found.error.code == "image-too-large"


LIMITS = ("max_body_bytes", "max_images", "max_image_pixels", "max_tasks", "max_queue_images")


def info(**fields: Any) -> ServiceInfo:
    return ServiceInfo.model_validate(
        {
            "version": "9",
            "backbone": {
                "id": "a",
                "fingerprint": "0" * 64,
                "text_width": 1,
                "embed_dim": 1,
                "context_length": 2,
            },
            "precision": "fp32",
            "image_size": SIDE,
            "logit_scale": 1.0,
            "provider": "",
            "tasks": 0,
            "revision": 0,
            "limits": dict.fromkeys(LIMITS, 1),
            **fields,
        }
    )


GOOD = {"interpolation": "bilinear", "resize_mode": "squash", "decoding": "scaled"}


def test_the_client_resizes_as_the_service_says() -> None:
    found = preprocessing_of(info(resizing=GOOD))

    assert (found.image_size, found.interpolation, found.resize_mode, found.decoding) == (
        SIDE,
        *GOOD.values(),
    )


@pytest.mark.parametrize("field", GOOD)
def test_a_service_that_resizes_in_an_unknown_way_is_refused(field: str) -> None:
    with pytest.raises(ConfigInvalid, match="version 9"):
        preprocessing_of(info(resizing={**GOOD, field: "another"}))


def test_a_service_of_an_earlier_version_is_refused_before_anything_is_sent(
    service: FakeService,
) -> None:
    with Client(service.url, resize=True) as client, pytest.raises(ConfigInvalid, match="--resize"):
        client.classify(encoded(photo(200, 200), "PNG"), "pets")
