"""Download the pinned packages and verify them byte for byte.

A download stays in memory until its checksum is verified and is then stored in one step, so the
download folder contains only complete, valid files, and an interrupted run resumes.
"""

import logging
import ssl
import tarfile
import time
from collections.abc import Callable, Collection, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path

import httpx

from prompt_serve.errors import DatasetMissing, DownloadFailed, PromptServeError
from prompt_serve.files import atomic_file
from prompt_serve.research.iconbench.packages import Package, integrity_of
from prompt_serve.training.progress import Advance, no_advance

logger = logging.getLogger(__name__)

ATTEMPTS = 4
TIMEOUT_S = 60.0  # without any data
_TRANSIENT = frozenset((408, 425, 429, *range(500, 600)))
_Sleep = Callable[[float], object]


def fetch(
    packages: Sequence[Package],
    folder: Path,
    *,
    registry: str,
    offline: bool = False,
    advance: Advance = no_advance,
    sleep: _Sleep = time.sleep,
) -> dict[Package, Path]:
    """Return the archive of each package, downloaded unless ``folder`` has it.

    Args:
        packages: packages with their checksums.
        folder: folder of archives, named as by ``npm pack``.
        registry: URL of an npm registry.
        offline: use only archives in ``folder``.
        advance: called with the bytes of each finished archive.
        sleep: waits between attempts.

    Raises:
        DatasetMissing: an archive is not available, or is not the pinned one.
        DownloadFailed: the registry did not send it.
    """
    found = {}
    with httpx.Client(timeout=TIMEOUT_S, follow_redirects=True, verify=_tls()) as client:
        for package in packages:
            path = folder / package.file_name
            if not _is_stored(package, path):
                if offline:
                    raise DatasetMissing(_not_stored(package, path), name=str(package))
                _store(_download(package, registry, client, sleep), path)
            found[package] = path
            advance(package.size_bytes)
    return found


def read_members(package: Package, path: Path, names: Collection[str]) -> dict[str, bytes]:
    """Read the named files below ``package/`` in an archive. Nothing is unpacked to disk.

    Raises:
        DatasetMissing: the archive is not the pinned one, or lacks one of the files.
    """
    data = path.read_bytes()
    if (came := integrity_of(data)) != package.integrity:
        raise DatasetMissing(_differs(package, str(path), came), name=str(package))
    found = {}
    with tarfile.open(fileobj=BytesIO(data), mode="r:gz") as archive:
        for member in archive:
            name = member.name.partition("/")[2]
            if name in names and (file := archive.extractfile(member)) is not None:
                found[name] = file.read()
    if absent := sorted(set(names) - set(found)):
        raise DatasetMissing(
            f"{path} ({package}) has no file {', '.join(absent)}.", name=str(package)
        )
    return found


@cache
def _tls() -> ssl.SSLContext:
    """Load the certificates once per process; this takes longer than a small download."""
    return httpx.create_ssl_context()


def _is_stored(package: Package, path: Path) -> bool:
    if not path.is_file():
        return False
    if path.stat().st_size == package.size_bytes and integrity_of(path.read_bytes()) == (
        package.integrity
    ):
        return True
    logger.warning("%s is not the pinned %s and is downloaded again", path, package)
    return False


def _store(data: bytes, path: Path) -> None:
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def _download(package: Package, registry: str, client: httpx.Client, sleep: _Sleep) -> bytes:
    url = package.url(registry)
    reason = ""
    kind: type[PromptServeError] = DownloadFailed
    for attempt in range(ATTEMPTS):
        if attempt:
            sleep(2.0 ** (attempt - 1))
        try:
            data = _body(package, url, client)
        except httpx.HTTPStatusError as error:
            reason = f"the response was {error.response.status_code}"
            if error.response.status_code not in _TRANSIENT:
                break
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
                kind = DatasetMissing
                break
        else:
            if (came := integrity_of(data)) == package.integrity:
                return data
            raise DatasetMissing(_differs(package, url, came), name=str(package))
    raise kind(
        f"{package} could not be downloaded from {url}: {reason}. Name another registry with "
        f"--registry, or download it elsewhere (npm pack {package}), put {package.file_name} in a "
        f"folder and name the folder with --cache.",
        name=str(package),
    )


def _body(package: Package, url: str, client: httpx.Client) -> bytes:
    """Download ``url``, at most one byte more than expected, which fails the checksum."""
    data = bytearray()
    with client.stream("GET", url) as response:
        response.raise_for_status()
        for piece in response.iter_bytes():
            data += piece
            if len(data) > package.size_bytes:
                break
    return bytes(data[: package.size_bytes + 1])


def _differs(package: Package, where: str, came: str) -> str:
    return (
        f"{where} is not {package} as it was pinned, and is not used: expected "
        f"{package.size_bytes:,} bytes with {package.integrity}, got {came}. Try again, or name "
        f"another registry with --registry: the benchmark is built from exactly these files."
    )


def _not_stored(package: Package, path: Path) -> str:
    return (
        f"{package} is not in {path.parent} (expected {path.name}, {package.size_bytes:,} bytes). "
        f"Run prompt-serve data iconbench without --offline, or download it with npm pack "
        f"{package}."
    )
