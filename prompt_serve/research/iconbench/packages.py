"""The npm packages that IconBench is made of, each pinned by version and checksum."""

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
    integrity: str  # "sha512-" and base64, as npm has it
    size_bytes: int  # of the archive
    style: str = ""  # whose drawings it holds; empty for the Unicode data

    @property
    def file_name(self) -> str:
        """As ``npm pack`` calls it: ``iconify-json-noto-1.2.9.tgz``."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    def url(self, registry: str) -> str:
        base = self.name.rpartition("/")[2]
        return f"{registry.rstrip('/')}/{self.name}/-/{base}-{self.version}.tgz"

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, kw_only=True)
class Pins:
    """All that a build has to agree with."""

    packages: tuple[Package, ...]
    selection: str  # sha256, see ``selection.digest``
    # sha256 of the pixels at ``size`` as drawn by ``resvg``; other versions may draw otherwise.
    pixels: str
    size: int
    resvg: str


@cache
def pinned() -> Pins:
    """What this version of prompt-serve is pinned to."""
    text = (resources.files(__package__) / "packages.toml").read_text(encoding="utf-8")
    document = tomllib.loads(text)
    return Pins(
        packages=tuple(Package(**entry) for entry in document["package"]), **document["built"]
    )


def integrity_of(data: bytes) -> str:
    """sha512 as npm writes it."""
    return f"sha512-{base64.b64encode(hashlib.sha512(data).digest()).decode()}"


def default_registry() -> str:
    """``$NPM_CONFIG_REGISTRY`` in either spelling, else npm's own."""
    found = (os.environ.get(name) for name in ("NPM_CONFIG_REGISTRY", "npm_config_registry"))
    return next((value for value in found if value), REGISTRY)
