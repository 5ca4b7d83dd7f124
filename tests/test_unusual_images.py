"""Unusual and malformed files through the one preprocessing: each decision, and no other error."""

import warnings

import pytest
from PIL import Image

from prompt_serve.errors import ImageInvalid, ImageTooLarge
from prompt_serve.preprocess import Preprocessing, pixels_from_bytes
from tests.service.unusual_images import N_FILES, RED, Unusual, saved, unusual_images

PREPROCESSING = Preprocessing(image_size=32, mean=(0, 0, 0), std=(1, 1, 1))
# JPEG's colors are a step away from those that were written.
_ROUNDING = 1


def test_every_file_is_what_was_decided_or_refused() -> None:
    corpus = unusual_images()
    wrong = [file.name for file in corpus if not _is_as_decided(file)]

    assert len(corpus) == N_FILES
    assert wrong == []


def _is_as_decided(file: Unusual) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about what is odd in these files
            pixels = pixels_from_bytes(file.data, PREPROCESSING)
    except (ImageInvalid, ImageTooLarge):
        return file.color is None
    if file.is_either:
        return True
    if file.color is None:
        return False
    return bool(abs(pixels[4, 4].astype(int) - file.color).max() <= _ROUNDING)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about EXIF that is none
@pytest.mark.parametrize("exif", [b"", b"Exif\x00\x00", b"Exif\x00\x00MM\x00*\xff\xff\xff\xff"])
def test_unreadable_exif_is_ignored(exif: bytes) -> None:

    for kind in ("JPEG", "PNG", "WEBP"):
        data = saved(Image.new("RGB", (40, 30), RED), kind, exif=exif)
        red, green, blue = pixels_from_bytes(data, PREPROCESSING)[4, 4]
        assert red > 250
        assert green < 5 > blue
