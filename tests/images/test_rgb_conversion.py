"""Conversion in bands gives the pixels of the whole image at once; it copies nothing needlessly."""

import numpy as np
import pytest
from PIL import Image

from prompt_serve.images.rgb_conversion import to_rgb

# Several bands, the last of them incomplete; and images smaller than one.
SIZES = [(1500, 1501), (3_000_000, 1), (1, 3000), (33, 21)]


def noise(size: tuple[int, int], mode: str) -> Image.Image:
    rng = np.random.default_rng(size[0])
    width, height = size
    if mode == "F":
        return Image.fromarray(rng.random((height, width), dtype=np.float32) * 1.2 - 0.1)
    if mode == "F, to 255":
        return Image.fromarray(rng.random((height, width), dtype=np.float32) * 300)
    if mode == "F, not a number":
        values = rng.random((height, width), dtype=np.float32)
        values[-1, -1] = np.nan
        return Image.fromarray(values)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65_536, (height, width), dtype=np.uint16))
    if mode in ("I", "I, to 255"):
        top = 256 if "255" in mode else 80_000
        return Image.fromarray(rng.integers(-50, top, (height, width), dtype=np.int32))
    return Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8)).convert(mode)


def eight_bit(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Scale a whole image of more than 8 bits, in float64."""
    values = np.asarray(image, dtype=np.float64)
    largest = values.max()
    if image.mode == "F":
        top = 1.0 if largest <= 1.0 else 255.0
    else:
        top = 255.0 if image.mode == "I" and largest <= 255 else 65_535.0
    with np.errstate(invalid="ignore"):
        return np.clip(values * (255.0 / top), 0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_bands_composite_as_the_whole_image_does(size: tuple[int, int], mode: str) -> None:
    image = noise(size, mode)
    rgba = image.convert("RGBA")
    whole = Image.alpha_composite(Image.new("RGBA", size, (255, 255, 255, 255)), rgba)

    np.testing.assert_array_equal(np.asarray(to_rgb(image)), np.asarray(whole.convert("RGB")))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("mode", "clear"), [("P", 3), ("P", bytes(range(256))), ("L", 7)])
def test_a_clear_color_is_composited_in_every_band(
    size: tuple[int, int], mode: str, clear: int | bytes
) -> None:
    image = noise(size, mode)
    image.info["transparency"] = clear
    rgba = image.convert("RGBA")
    whole = Image.alpha_composite(Image.new("RGBA", size, (255, 255, 255, 255)), rgba)

    np.testing.assert_array_equal(np.asarray(to_rgb(image)), np.asarray(whole.convert("RGB")))


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["F", "F, to 255", "F, not a number", "I;16", "I", "I, to 255"])
def test_bands_are_scaled_as_the_whole_image_is(size: tuple[int, int], mode: str) -> None:
    image = noise(size, mode)
    expected = np.repeat(eight_bit(image)[..., np.newaxis], 3, axis=2)

    np.testing.assert_array_equal(np.asarray(to_rgb(image)), expected)


@pytest.mark.parametrize("size", SIZES)
def test_an_rgb_image_is_not_copied(size: tuple[int, int]) -> None:
    image = noise(size, "RGB")

    assert to_rgb(image) is image
