"""Render the benchmark's images to files in several processes; an interrupted run resumes."""

import hashlib
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from prompt_serve.errors import DatasetInvalid
from prompt_serve.files import atomic_file
from prompt_serve.research.iconbench.selection import Drawing
from prompt_serve.research.iconbench.svg_rendering import RESVG, draw, on_background
from prompt_serve.training.progress import Advance, no_advance

PER_JOB = 32  # drawings; one takes 10 to 100 ms


@dataclass(frozen=True, kw_only=True)
class _RenderBatch:
    """Some drawings and their files."""

    svgs: tuple[str, ...]
    paths: tuple[Path, ...]
    size: int


def draw_files(
    drawings: Sequence[Drawing],
    folder: Path,
    *,
    size: int,
    workers: int = 1,
    advance: Advance = no_advance,
) -> str:
    """Render each drawing (size, size) on white, unless its file exists and is intact.

    Returns:
        sha256 over all pixels, in hexadecimal. It depends on the SVG and the version of resvg, not
        on how Pillow compresses PNG.

    Raises:
        DatasetInvalid: resvg cannot render one of them.
    """
    for style in {drawing.style for drawing in drawings}:
        (folder / "drawings" / style).mkdir(parents=True, exist_ok=True)
    digests: list[str] = []
    for some in _done(list(_jobs(drawings, folder, size)), workers):
        digests += some
        advance(len(some))
    lines = sorted(f"{d.path} {pixels}\n" for d, pixels in zip(drawings, digests, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def forget_others(folder: Path, style: str, source: str) -> None:
    """Remove a style's files if they were rendered from another source, and record this one.

    Args:
        folder: folder of the benchmark.
        style: style of the files.
        source: everything that a file depends on besides its name.
    """
    drawn = folder / "drawings" / style
    note = drawn / "drawn_from.txt"
    if note.is_file() and note.read_text(encoding="utf-8") == source:
        return
    for path in drawn.glob("*.png"):
        path.unlink()
    drawn.mkdir(parents=True, exist_ok=True)
    note.write_text(source, encoding="utf-8")


def _jobs(drawings: Sequence[Drawing], folder: Path, size: int) -> Iterator[_RenderBatch]:
    for start in range(0, len(drawings), PER_JOB):
        some = drawings[start : start + PER_JOB]
        yield _RenderBatch(
            svgs=tuple(drawing.svg for drawing in some),
            paths=tuple(folder / drawing.path for drawing in some),
            size=size,
        )


def _done(jobs: Sequence[_RenderBatch], workers: int) -> Iterator[list[str]]:
    if workers == 1:
        yield from map(_draw_job, jobs)
        return
    # resvg holds the GIL while it renders, so threads would not help. A process forked while torch
    # runs threads may hang, so spawn new ones.
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=fresh) as pool:
        try:
            yield from pool.map(_draw_job, jobs)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _draw_job(job: _RenderBatch) -> list[str]:
    return [
        hashlib.sha256((_kept(path, job.size) or _drawn(svg, path, job.size)).tobytes()).hexdigest()
        for svg, path in zip(job.svgs, job.paths, strict=True)
    ]


def _kept(path: Path, size: int) -> Image.Image | None:
    try:
        with Image.open(path) as image:
            image.load()
            return image if image.size == (size, size) and image.mode == "RGB" else None
    except OSError:
        return None


def _drawn(svg: str, path: Path, size: int) -> Image.Image:
    try:
        image = on_background(draw(svg, size))
    except ValueError as error:
        raise DatasetInvalid(f"resvg {RESVG} cannot render {path.name}: {error}") from error
    with atomic_file(path) as temporary:
        image.save(temporary, format="PNG")
    return image
