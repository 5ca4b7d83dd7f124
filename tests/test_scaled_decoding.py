"""JPEGs are decoded at the size that is needed: never below the floor, and like at full size."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prompt_serve.bundle import shipped_bundle
from prompt_serve.errors import ImageInvalid
from prompt_serve.images.jpeg_scans import MAX_SCANS, has_all_scans, is_decoded_whole
from prompt_serve.preprocess import (
    DECODED_SIDES,
    Preprocessing,
    decode_image,
    decoding_bytes,
    pixels_from_bytes,
)
from tests.test_image_formats import encoded, photo

SIDE = 32
FULL = Preprocessing(image_size=SIDE, mean=(0.5,) * 3, std=(0.25,) * 3)
SCALED = replace(FULL, decoding="scaled")
FLOOR = DECODED_SIDES * SIDE
# Widths and heights around the sizes at which another scale is taken, odd ones and strips.
SIZES = [
    *[(FLOOR * k + d, FLOOR * k + e) for k in (1, 2, 4, 8) for d, e in ((-1, 7), (0, 0), (3, 1))],
    *[(1, 1), (7, 3), (600, 400), (401, 601), (2000, 65), (64, 3000), (1, 900), (1555, 129)],
]
TURNED = [1, 2, 3, 4, 5, 6, 7, 8]


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("floor", [1, 31, FLOOR, 333])
def test_the_shorter_side_stays_above_the_floor(size: tuple[int, int], floor: int) -> None:
    data = encoded(Image.new("RGB", size, (10, 200, 90)), "JPEG")

    decoded = decode_image(data, min_side=floor)

    short = min(size)
    assert min(decoded.size) >= min(short, floor)
    scale = next(s for s in (8, 4, 2, 1) if s == 1 or short // floor >= s)
    assert decoded.size == tuple(math.ceil(side / scale) for side in size)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_other_formats_are_decoded_at_full_size(kind: str) -> None:
    data = encoded(photo(300, 411), kind)

    assert decode_image(data, min_side=8).size == (411, 300)
    assert np.array_equal(pixels_from_bytes(data, SCALED), pixels_from_bytes(data, FULL))


@pytest.mark.parametrize("size", [(64, 64), (127, 127), (500, 127), (100, 2000), (16, 90)], ids=str)
def test_small_jpegs_have_the_pixels_of_full_decoding(size: tuple[int, int]) -> None:
    data = encoded(photo(size[1], size[0]), "JPEG")

    assert np.array_equal(pixels_from_bytes(data, SCALED), pixels_from_bytes(data, FULL))


MODES: dict[str, dict[str, Any]] = {
    "RGB": {},
    "L": {},
    "CMYK": {},
    "RGB progressive": {"progressive": True},
    "RGB 4:4:4": {"subsampling": 0},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(128, 128), (801, 513), (333, 1200), (1024, 700)], ids=str)
def test_scaled_pixels_are_like_those_of_full_decoding(size: tuple[int, int], mode: str) -> None:
    image = photo(size[1], size[0]).convert(mode.split()[0])
    data = encoded(image, "JPEG", quality=92, **MODES[mode])

    full, scaled = (pixels_from_bytes(data, p).astype(int) for p in (FULL, SCALED))

    # A shift by one pixel of the square, or other colors, would be off by 10 and more.
    assert np.abs(full - scaled).mean() < 2.5


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("size", [(403, 259), (260, 900)], ids=str)
def test_scaled_images_are_turned_upright(size: tuple[int, int], orientation: int) -> None:
    data = encoded(photo(size[1], size[0]), "JPEG", quality=92, exif=turned(orientation))

    full, scaled = (pixels_from_bytes(data, p).astype(int) for p in (FULL, SCALED))

    assert decode_image(data, min_side=FLOOR).width < min(size) * 4
    assert np.abs(full - scaled).mean() < 2.5


@pytest.mark.parametrize("cut", [1, 2, 3, 9, 30, 100, 400])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_file_is_read_or_refused_as_at_full_size(cut: int, progressive: bool) -> None:
    data = encoded(photo(400, 600), "JPEG", progressive=progressive)[:-cut]

    results = []
    for side in (None, 64, 30):
        try:
            decode_image(data, min_side=side)
            results.append("read")
        except ImageInvalid:
            results.append("refused")
    assert len(set(results)) == 1


def scans(count: int, size: tuple[int, int] = (80, 60)) -> bytes:
    """A progressive JPEG with so many scans, most of them of a few bytes."""
    data = encoded(photo(size[1], size[0]), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    n_scans = data.count(b"\xff\xda")
    return data[:-2] + data[last : last + 20] * (count - n_scans) + data[-2:]


@pytest.mark.parametrize("count", [MAX_SCANS + 1, 150, 500, 501, 3000])
def test_more_scans_than_any_encoder_writes_are_refused_before_decoding(count: int) -> None:
    data = scans(count)
    assert has_all_scans(data)

    for call in (decode_image, decoding_bytes):
        with pytest.raises(ImageInvalid, match=f"more than {MAX_SCANS} scans"):
            call(data)


@pytest.mark.parametrize("count", [12, 20, 50, MAX_SCANS])
def test_as_many_scans_as_encoders_write_are_read(count: int) -> None:
    assert decode_image(scans(count)).size == (80, 60)


@pytest.mark.parametrize("options", [{"progressive": True}, {"progressive": True, "quality": 20}])
def test_memory_counts_the_coefficients_that_are_held(options: dict[str, Any]) -> None:
    image = photo(1500, 2000)
    plain, several = encoded(image, "JPEG"), encoded(image, "JPEG", **options)
    assert not is_decoded_whole(plain)
    assert is_decoded_whole(several)

    # Scaled, a plain file needs little; one of several scans still holds all coefficients.
    assert decoding_bytes(plain, min_side=180) < decoding_bytes(plain) / 10
    assert decoding_bytes(several, min_side=180) >= 1500 * 2000 * 6
    assert decoding_bytes(several, min_side=180) < decoding_bytes(several)


def test_a_cut_file_reserves_what_it_takes_at_full_size() -> None:
    data = encoded(photo(1500, 2000), "JPEG")

    assert decoding_bytes(data[:-5], min_side=180) == decoding_bytes(data)


@pytest.mark.parametrize("name", ["embedded", "embedded-vit"])
def test_shipped_bundles_are_scaled_and_older_ones_are_not(name: str) -> None:
    from prompt_serve.bundle import Manifest

    text = (shipped_bundle(name) / "manifest.json").read_text()
    manifest = Manifest.model_validate_json(text)
    older = Manifest.model_validate_json(text.replace(',\n    "decoding": "scaled"', ""))

    assert manifest.preprocessing.decoded_side == DECODED_SIDES * manifest.preprocessing.image_size
    assert older.preprocessing.decoded_side is None
    assert older.backbone == manifest.backbone
