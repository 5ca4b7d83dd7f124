"""Compare the features of scaled decoding with those of full decoding, on large photographs.

Large photographs are made of real ones, since none are at hand, in two ways:

    mosaic     real photographs side by side at their own size, so that the detail of each pixel is
               that of a camera's JPEG; what it shows is a contact sheet.
    enlarged   one real photograph, enlarged with Lanczos, with sensor noise of 4 levels added; what
               it shows is natural.

Both are stored as JPEG (quality 90), at sizes that are no multiples of 8. The class is that of a
ridge regression on the training images' features, over the classes of all folders.

    python -m benchmarks.decoding_agreement ../shared/data/flowers ../shared/data/trash
"""

import argparse
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from prompt_serve import preprocess
from prompt_serve.bundle import SHIPPED, open_bundle, shipped_bundle
from prompt_serve.engines.encoders import Encoders
from prompt_serve.engines.onnx_session import available_cores
from prompt_serve.preprocess import Preprocessing, decode_image, pixels_from_bytes
from prompt_serve.types import FloatArray

MEGAPIXELS = (2.0, 6.0, 12.0)
NOISE = 4.0
PER_CLASS = 40  # training images
RIDGE = 0.1  # of the mean variance
_ASPECT = 4 / 3
_TILE = 213

Make = Callable[[Sequence[Image.Image], float, np.random.Generator], Image.Image]


def photographs(folder: Path) -> list[Image.Image]:
    """Return the photographs of the test part that are at least as large as a tile."""
    images = [decode_image(path.read_bytes()) for path in sorted(folder.glob("test/*/*"))]
    return [image for image in images if min(image.size) >= _TILE]


def size_of(megapixels: float) -> tuple[int, int]:
    """Return an odd width and height."""
    height = round((megapixels * 1e6 / _ASPECT) ** 0.5) | 1
    return round(height * _ASPECT) | 1, height


def mosaic(
    images: Sequence[Image.Image], megapixels: float, rng: np.random.Generator
) -> Image.Image:
    """Return photographs side by side."""
    whole = Image.new("RGB", size_of(megapixels))
    for top in range(0, whole.height, _TILE):
        for left in range(0, whole.width, _TILE):
            image = images[int(rng.integers(len(images)))]
            whole.paste(image.crop((0, 0, _TILE, _TILE)), (left, top))
    return whole


def enlarged(
    images: Sequence[Image.Image], megapixels: float, rng: np.random.Generator
) -> Image.Image:
    """Return one photograph, enlarged, with noise."""
    width, height = size_of(megapixels)
    image = images[int(rng.integers(len(images)))]
    scale = max(width / image.width, height / image.height)
    image = image.crop((0, 0, round(width / scale), round(height / scale)))
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    noise = rng.normal(0, NOISE, (height, width, 3)).astype(np.float32)
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image) -> bytes:
    """Return a JPEG as cameras write it."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def classifier(folders: Sequence[Path], encoders: Encoders) -> tuple[FloatArray, FloatArray]:
    """Fit a ridge regression of the classes on the training images' features.

    Returns:
        Weights (E, C) and biases (C,).
    """
    classes = [path for folder in folders for path in sorted(folder.glob("train/*"))]
    files = [sorted(images.iterdir())[:PER_CLASS] for images in classes]
    features = features_of(
        [path.read_bytes() for paths in files for path in paths], encoders, encoders.preprocessing
    )
    labels = np.repeat(np.arange(len(classes)), [len(paths) for paths in files])
    center = features.mean(axis=0)
    x, y = features - center, np.eye(len(classes), dtype=np.float32)[labels]
    gram = x.T @ x
    ridge = RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram), dtype=np.float32)
    weights: FloatArray = np.linalg.solve(gram + ridge, x.T @ (y - y.mean(axis=0)))
    return weights, y.mean(axis=0) - center @ weights


def features_of(
    files: Sequence[bytes], encoders: Encoders, preprocessing: Preprocessing
) -> FloatArray:
    """Return features (N, E) of unit length, one image at a time."""
    pixels = (pixels_from_bytes(data, preprocessing) for data in files)
    return np.concatenate([encoders.encode_pixels(one[np.newaxis]) for one in pixels])


def compared(
    files: Sequence[bytes],
    encoders: Encoders,
    weights: FloatArray,
    biases: FloatArray,
    floors: Sequence[int],
) -> Iterator[str]:
    """Yield a line per floor."""
    scaled = replace(encoders.preprocessing, decoding="scaled")
    full = features_of(files, encoders, replace(scaled, decoding="full"))
    for floor in floors:
        preprocess.DECODED_SIDES = floor
        features = features_of(files, encoders, scaled)
        cosines = (full * features).sum(axis=1)
        before, after = (one @ weights + biases for one in (full, features))
        same = (before.argmax(axis=1) == after.argmax(axis=1)).mean()
        width, height = decode_image(files[0], min_side=scaled.decoded_side).size
        yield (
            f"floor {floor}: {width:4} x {height:4}, cosine min {cosines.min():.5f}, "
            f"mean {cosines.mean():.5f}, top-1 {same:7.2%}"
        )


def main() -> None:
    """Print a line per backbone, kind, size and floor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="the first has the photographs")
    parser.add_argument("--images", type=int, default=100, help="per kind and size")
    parser.add_argument("--megapixels", type=float, nargs="+", default=MEGAPIXELS)
    parser.add_argument("--floors", type=int, nargs="+", default=(2, 3))
    options = parser.parse_args()
    encoders = [
        Encoders.open(
            open_bundle(shipped_bundle(name)), cuda_device=None, threads=available_cores()
        )
        for name in SHIPPED
    ]
    classifiers = [classifier(options.folders, one) for one in encoders]
    images = photographs(options.folders[0])
    kinds: dict[str, Make] = {"mosaic": mosaic, "enlarged": enlarged}
    for megapixels in options.megapixels:
        for kind, make in kinds.items():
            rng = np.random.default_rng(0)
            files = [jpeg(make(images, megapixels, rng)) for _ in range(options.images)]
            for one, fitted in zip(encoders, classifiers, strict=True):
                for line in compared(files, one, *fitted, options.floors):
                    print(f"{one.ref.id:12} {megapixels:4g} MP {kind:8} {line}", flush=True)


if __name__ == "__main__":
    main()
