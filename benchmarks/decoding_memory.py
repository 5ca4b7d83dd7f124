"""Measure the memory that decoding takes at its peak, per pixel, for each format and mode.

``prompt_serve.preprocess`` reserves so many bytes per pixel of each format before it decodes.

    python -m benchmarks.decoding_memory [PART_OF_A_NAME]
"""

import io
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from prompt_serve.preprocess import decoding_bytes

SIDE = 4000
_DECODE = """
import sys
from pathlib import Path
from prompt_serve.preprocess import Preprocessing, pixels_from_bytes

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

data = sys.stdin.buffer.read()
preprocessing = Preprocessing(
    image_size=224, mean=(0, 0, 0), std=(1, 1, 1), decoding=sys.argv[1]
)
before = peak()
pixels_from_bytes(data, preprocessing)
print(peak() - before)
"""


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return an image as a file of a format."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def files() -> Iterator[tuple[str, bytes]]:
    """Yield names and large image files of every format and mode that is read."""
    rng = np.random.default_rng(0)
    tile = Image.fromarray(rng.integers(0, 256, (500, 500, 3), dtype=np.uint8))
    rgb = tile.resize((SIDE, SIDE))
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray(np.full((SIDE, SIDE), 30_000, np.uint16))
    floats = Image.fromarray(np.full((SIDE, SIDE), 0.5, np.float32))
    yield "JPEG", saved(rgb, "JPEG")
    yield "JPEG 4:4:4", saved(rgb, "JPEG", subsampling=0)
    yield "JPEG progressive", saved(rgb, "JPEG", progressive=True, subsampling=0)
    yield "JPEG turned", saved(rgb, "JPEG", exif=turned)
    yield "JPEG cut", saved(rgb, "JPEG", subsampling=0, progressive=True)[:-8]
    yield "JPEG CMYK", saved(rgb.convert("CMYK"), "JPEG")
    for mode in ("RGB", "RGBA", "LA", "L", "1"):
        yield f"PNG {mode}", saved(rgb.convert(mode), "PNG", compress_level=1)
    yield "PNG P", saved(rgb.convert("P"), "PNG", transparency=0, compress_level=1)
    yield "PNG turned RGBA", saved(rgb.convert("RGBA"), "PNG", exif=turned, compress_level=1)
    yield "PNG 16-bit", saved(deep, "PNG", compress_level=1)
    yield "WEBP RGB", saved(rgb, "WEBP")
    yield "WEBP RGBA lossless", saved(rgb.convert("RGBA"), "WEBP", lossless=True, method=0)
    yield "WEBP turned", saved(rgb.convert("RGBA"), "WEBP", exif=turned)
    yield "AVIF RGB", saved(rgb, "AVIF", speed=10)
    yield "AVIF RGBA", saved(rgb.convert("RGBA"), "AVIF", speed=10, subsampling="4:4:4")
    yield "GIF", saved(rgb.convert("P"), "GIF", transparency=0)
    for mode in ("RGB", "RGBA", "L"):
        yield f"BMP {mode}", saved(rgb.convert(mode), "BMP")
    for mode in ("RGB", "RGBA", "CMYK"):
        yield f"TIFF {mode}", saved(rgb.convert(mode), "TIFF")
        options = {"compression": "tiff_deflate", "strip_size": 2**30}
        yield f"TIFF {mode} one strip", saved(rgb.convert(mode), "TIFF", **options)
    yield "TIFF float", saved(floats, "TIFF")
    yield "TIFF float one strip", saved(floats, "TIFF", compression="tiff_lzw", strip_size=2**30)
    yield "TIFF 16-bit", saved(deep, "TIFF")
    yield "TIFF turned", saved(rgb, "TIFF", exif=turned)
    yield "PPM", saved(rgb, "PPM")
    yield "PPM 12-bit", b"P6\n%d %d\n4095\n" % rgb.size + bytes(6 * SIDE * SIDE)
    yield "PGM 16-bit", saved(deep, "PPM")
    yield "PFM", saved(floats, "PPM")


def peak_bytes(data: bytes, decoding: str) -> int:
    """Return the growth of the memory of a process that decodes one image."""
    command = [sys.executable, "-c", _DECODE, decoding]
    done = subprocess.run(command, input=data, capture_output=True, check=True)
    return int(done.stdout)


def main() -> None:
    """Print a line per file."""
    print(f"{'file':24} {'bytes per pixel':>16} {'reserved':>9} {'file, MiB':>10}")
    part = sys.argv[1] if len(sys.argv) > 1 else ""
    for name, data in files():
        if part not in name:
            continue
        for decoding, min_side in (("full", None), ("scaled", 448))[: 1 + ("JPEG" in name)]:
            peak = peak_bytes(data, decoding) / SIDE**2
            reserved = decoding_bytes(data, min_side=min_side) / SIDE**2
            late = "" if peak <= reserved else "  TOO LITTLE"
            shown = name if decoding == "full" else f"{name}, scaled"
            print(
                f"{shown:24} {peak:16.1f} {reserved:9.1f} {len(data) / 2**20:10.1f}{late}",
                flush=True,
            )


if __name__ == "__main__":
    main()
