"""Copies of images that are not files of their own: of object stores, tables and archives.

Training reads a file several times: to decode it once as a check, to find equal ones, for every
augmented view. The copies are in the cache ``images``. A copy is found again by the name of its
source and the version of the file it came from, so that it is never stale.
"""

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from prompt_serve.errors import DatasetInvalid
from prompt_serve.files import atomic_file
from prompt_serve.sources.files import read_file, version_of
from prompt_serve.sources.shard import digest
from prompt_serve.training.data.cache_folder import cache_folder, cache_limit, mark_used, trim
from prompt_serve.training.progress import SILENT, Progress


class ImageStore:
    """Keeps copies of images, and removes those that were not used for longest.

    A dataset in use is kept whole, even if it alone is larger than ``cache_limit``.

    Args:
        workers: files read at once.
        progress: shows a bar while files are read.
    """

    def __init__(self, *, workers: int = 4, progress: Progress = SILENT) -> None:
        self._workers, self.progress = workers, progress
        self._used: dict[Path, int] = {}  # bytes

    @cached_property
    def _folder(self) -> Path:
        return cache_folder("images")

    def place(self, source: str, version: str | None) -> Path:
        """Return where the copy of a source is, or will be."""
        name = digest(source, version or "")
        return self._folder / name[:2] / name

    def holds(self, copy: Path, version: str | None) -> bool:
        """Return if there is a copy; one without a version may be stale, and counts as none."""
        if version is None or not copy.is_file():
            return False
        mark_used(copy)
        self._used[copy] = copy.stat().st_size
        return True

    def keep(self, copy: Path, data: bytes) -> None:
        """Write a copy.

        Raises:
            DatasetInvalid: the cache cannot be written.
        """
        try:
            with atomic_file(copy, mode=0o600) as temporary:
                temporary.write_bytes(data)
        except OSError as error:
            raise DatasetInvalid(
                f"{self._folder} cannot be written: {error.strerror or error}. Images that are not "
                f"files of this machine are copied there; choose another folder with "
                f"PROMPT_SERVE_CACHE.",
                [],
            ) from error
        self._used[copy] = len(data)

    def document(self, source: str, version: str | None) -> Any:
        """Return what was kept with ``keep_document``; None if there is nothing."""
        copy = self.place(source, version)
        if not self.holds(copy, version):
            return None
        try:
            return json.loads(copy.read_bytes())
        except ValueError:
            return None

    def keep_document(self, source: str, version: str | None, document: Any) -> None:
        """Keep what is known of a source, as JSON."""
        self.keep(self.place(source, version), json.dumps(document).encode())

    def fetch(
        self, urls: Iterable[str], versions: Mapping[str, str | None] | None = None
    ) -> dict[str, Path]:
        """Return the copies of files of object stores by URL, without those that do not exist.

        Args:
            urls: of the files.
            versions: of all of them, where they are known.

        Raises:
            DatasetInvalid: a file cannot be read, or the cache cannot be written.
        """
        urls = list(dict.fromkeys(urls))

        def copy_of(url: str) -> Path | None:
            try:
                version = version_of(url) if versions is None else versions[url]
                copy = self.place(url, version)
                if not self.holds(copy, version):
                    self.keep(copy, read_file(url))
            except FileNotFoundError:
                return None
            finally:
                advance(1)
            return copy

        with (
            self.progress.bar("reading images", len(urls), "img") as advance,
            ThreadPoolExecutor(self._workers, "fetch") as pool,
        ):
            found = zip(urls, pool.map(copy_of, urls), strict=True)
            return {url: copy for url, copy in found if copy is not None}

    def trim(self) -> None:
        """Remove copies beyond the limit; those in use are the last to go, and stay."""
        if self._used:
            trim(self._folder, max(cache_limit(), sum(self._used.values())))
