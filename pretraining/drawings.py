"""The drawings behind the stored features, at the 64 pixels that the small ViT sees.

Row for row the images whose 1,280 features `image_features` stored, so that those are the teacher's
answers. Plain drawings keep their transparency: training lays them on any ground. Each is drawn a
second time larger and scaled down by Pillow, as the product scales what users send.
"""

from concurrent.futures import ProcessPoolExecutor, as_completed
from zlib import crc32

import numpy as np
from PIL import Image

from pretraining.icons import Icon, list_sets, read_set
from pretraining.image_features import SLOW_TO_DRAW, draw_views
from pretraining.workdir import WorkDir, written_whole
from prompt_serve.research.iconbench.styles import UNSEEN_STYLES
from prompt_serve.research.iconbench.svg_rendering import draw

SIZE = 64
LARGER_SIZES = (96, 128, 160, 224)
LARGER_SIZE_IF_SLOW = 96


def draw_sets(work: WorkDir, processes: int = 2) -> None:
    """`drawings/<set>.npz` for every set with stored features, the unseen styles included.

    Each file holds `pixels` (N, 64, 64, 4) uint8, aligned with the features, and `scaled`
    (M, 64, 64, 4): the M rows of view 0 again, drawn larger (not of the unseen styles).
    """
    missing = [
        icon_set.prefix
        for icon_set in list_sets(work.iconify)
        if (work.features / f"{icon_set.prefix}.npz").exists()
        and not (work.drawings / f"{icon_set.prefix}.npz").exists()
    ]
    missing.sort(key=lambda prefix: prefix not in SLOW_TO_DRAW)
    with ProcessPoolExecutor(processes) as pool:
        jobs = [pool.submit(_draw_set, work, prefix) for prefix in missing]
        for job in as_completed(jobs):
            print(f"drawings: {job.result()}", flush=True)


def _draw_set(work: WorkDir, prefix: str) -> str:
    stored = np.load(work.features / f"{prefix}.npz")
    names, views = stored["names"].tolist(), stored["views"]
    icons = {icon.name: icon for icon in read_set(work.iconify, prefix)}
    starts = np.flatnonzero(views == 0)
    counts = np.diff([*starts, len(views)])
    pixels, scaled = [], []
    for start, count in zip(starts, counts, strict=True):
        icon = icons[names[start]]
        pixels.append(np.asarray(draw(icon.svg, SIZE)))
        augmented = list(draw_views(icon, int(count)))[1:]
        pixels += [np.asarray(_shrink(image.convert("RGBA"))) for image in augmented]
        if prefix not in UNSEEN_STYLES:
            scaled.append(np.asarray(_drawn_larger(icon)))
    empty = np.zeros((0, SIZE, SIZE, 4), np.uint8)
    with written_whole(work.drawings / f"{prefix}.npz") as draft:
        np.savez(draft, pixels=np.stack(pixels), scaled=np.stack(scaled) if scaled else empty)
    return f"{prefix} {len(pixels)}"


def _drawn_larger(icon: Icon) -> Image.Image:
    """Return a size that depends only on the drawing, so that runs are reproducible."""
    choice = crc32(f"{icon.prefix}/{icon.key}/larger".encode()) % len(LARGER_SIZES)
    slow = icon.prefix in SLOW_TO_DRAW
    return _shrink(draw(icon.svg, LARGER_SIZE_IF_SLOW if slow else LARGER_SIZES[choice]))


def _shrink(image: Image.Image) -> Image.Image:
    """Resize to 64 pixels; Pillow weighs the colors of an RGBA image by their opacity."""
    return image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
