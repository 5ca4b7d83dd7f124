"""The npm packages that IconBench is built from, pinned by version and checksum."""

import base64
import hashlib
import os
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

REGISTRY = "https://registry.npmjs.org"


@dataclass(frozen=True, kw_only=True)
class Package:
    """One version of one npm package."""

    name: str  # "@iconify-json/noto"
    version: str
    integrity: str  # "sha512-" and base64, as npm writes it
    size_bytes: int  # size of the archive
    style: str = ""  # style of its drawings; empty for the Unicode data

    @property
    def file_name(self) -> str:
        """File name that ``npm pack`` gives it: ``iconify-json-noto-1.2.9.tgz``."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    def url(self, registry: str) -> str:
        base = self.name.rpartition("/")[2]
        return f"{registry.rstrip('/')}/{self.name}/-/{base}-{self.version}.tgz"

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, kw_only=True)
class Pins:
    """Packages and checksums that a build is verified against."""

    packages: tuple[Package, ...]
    selection: str  # sha256, see ``selection.digest``
    # sha256 of the pixels at ``size`` as rendered by ``resvg``; other versions may differ.
    pixels: str
    size: int
    resvg: str


@cache
def pinned() -> Pins:
    """Return the pins of this version of prompt-serve."""
    text = (resources.files(__package__) / "packages.toml").read_text(encoding="utf-8")
    document = tomllib.loads(text)
    return Pins(
        packages=tuple(Package(**entry) for entry in document["package"]), **document["built"]
    )


def integrity_of(data: bytes) -> str:
    """Return the sha512 in npm's notation."""
    return f"sha512-{base64.b64encode(hashlib.sha512(data).digest()).decode()}"


def default_registry() -> str:
    """Return ``$NPM_CONFIG_REGISTRY`` (upper or lower case), or npm's own registry."""
    found = (os.environ.get(name) for name in ("NPM_CONFIG_REGISTRY", "npm_config_registry"))
    return next((value for value in found if value), REGISTRY)
