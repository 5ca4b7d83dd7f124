"""Ed25519 keys in OpenSSH's formats: generate them, read them, and name them by fingerprint.

``ssh-keygen -t ed25519`` makes such keys as well, and ``ssh-keygen -l`` prints their fingerprints.
"""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_serve.errors import ConfigInvalid, DependencyMissing
from prompt_serve.files import atomic_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PUBLIC_SUFFIX = ".pub"
_TYPE = b"ssh-ed25519"
_PREFIX = b"\x00\x00\x00\x0b" + _TYPE + b"\x00\x00\x00\x20"  # of the 32 bytes of a public key
_MAX_KEY_BYTES = 64 * 1024
_COMMENT = re.compile(r"[^\s\x00-\x1f\x7f]{1,100}")


@dataclass(frozen=True)
class PublicKey:
    """Public key: its 32 bytes, and the comment of its line, which names it in messages."""

    raw: bytes
    name: str = ""

    @property
    def id(self) -> str:
        """Fingerprint as OpenSSH prints it: ``SHA256:`` and 43 characters of base64."""
        digest = hashlib.sha256(_PREFIX + self.raw).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    @property
    def line(self) -> str:
        """The key as a line of a public key file."""
        encoded = base64.b64encode(_PREFIX + self.raw).decode()
        return f"{_TYPE.decode()} {encoded} {self.name}".rstrip()

    def __str__(self) -> str:
        return f"{self.name} ({self.id})" if self.name else self.id

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Return True if ``signature`` (64 bytes) is that of the message."""
        from cryptography.exceptions import InvalidSignature

        key: Any = _ed25519().Ed25519PublicKey.from_public_bytes(self.raw)
        try:
            key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


class SigningKey:
    """Private key.

    Args:
        private: of the package cryptography.
        name: the comment of its public key.
    """

    def __init__(self, private: "Ed25519PrivateKey", name: str = "") -> None:
        self._private = private
        self.public = PublicKey(private.public_key().public_bytes_raw(), name)

    def sign(self, message: bytes) -> bytes:
        """Return the signature (64 bytes) of a message; equal messages have equal ones."""
        signature: bytes = self._private.sign(message)
        return signature


def generate_key(path: Path, name: str) -> PublicKey:
    """Write a new private key to ``path``, readable by its owner alone, and ``path``.pub beside it.

    Args:
        path: file of the private key; neither it nor the public one may exist.
        name: comment of the key, without spaces.

    Raises:
        ConfigInvalid: a file exists, or the name has characters that a comment may not have.
    """
    public_path = public_path_of(path)
    for one in (path, public_path):
        if one.exists():
            raise ConfigInvalid(
                f"{one} exists and is not replaced: files signed by a lost key cannot be signed "
                f"again. Choose another name."
            )
    if not _COMMENT.fullmatch(name):
        raise ConfigInvalid(
            f"The name {name!r} of the key is invalid; expected 1 to 100 characters without spaces."
        )
    from cryptography.hazmat.primitives import serialization

    private: Any = _ed25519().Ed25519PrivateKey.generate()
    encoded: bytes = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = PublicKey(private.public_key().public_bytes_raw(), name)
    with atomic_file(path, mode=0o600, sync=True) as temporary:
        temporary.write_bytes(encoded)
    with atomic_file(public_path, mode=0o644, sync=True) as temporary:
        temporary.write_text(public.line + "\n", encoding="utf-8")
    return public


def read_signing_key(path: Path) -> SigningKey:
    """Read an unencrypted private key, of OpenSSH's format or PKCS #8 in PEM.

    Raises:
        ConfigInvalid: the file has no such key.
    """
    data = _read(path, "private key")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    read: Any = (
        serialization.load_ssh_private_key
        if b"BEGIN OPENSSH PRIVATE KEY" in data
        else serialization.load_pem_private_key
    )
    try:
        private = read(data, password=None)
    # TypeError: the key is encrypted.
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigInvalid(
            f"{path} has no private key that can be read. Expected an unencrypted Ed25519 key, as "
            f"`prompt-serve keygen` writes."
        ) from error
    if not isinstance(private, _ed25519().Ed25519PrivateKey):
        raise ConfigInvalid(
            f"{path} has a key of another kind. Expected an Ed25519 key, as `prompt-serve keygen` "
            f"writes."
        )
    return SigningKey(private, _name_beside(path))


def parse_public_key(line: str) -> PublicKey:
    """Read a line of a public key file: ``ssh-ed25519``, base64, and any comment.

    Raises:
        ValueError: it is no such line.
    """
    kind, _, rest = line.partition(" ")
    encoded, _, name = rest.strip().partition(" ")
    try:
        blob = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise ValueError(f"no base64 follows the type: {error}") from None
    if kind != _TYPE.decode() or not blob.startswith(_PREFIX) or len(blob) != len(_PREFIX) + 32:
        raise ValueError(f"expected ssh-ed25519 and a key, not {line[:40]!r}")
    return PublicKey(blob.removeprefix(_PREFIX), name.strip())


def public_path_of(path: Path) -> Path:
    """Return the path of the public key beside a private one."""
    return path.with_name(path.name + PUBLIC_SUFFIX)


def check_installed() -> None:
    """Raise DependencyMissing unless the extra ``signing`` is installed."""
    _ed25519()


def _name_beside(path: Path) -> str:
    """Return the comment of the public key beside a private one; "" without such a file."""
    try:
        line = public_path_of(path).read_text(encoding="utf-8").strip()
        return parse_public_key(line).name
    except (OSError, ValueError):
        return ""


def _read(path: Path, what: str) -> bytes:
    check_installed()
    if not path.is_file():
        raise ConfigInvalid(f"There is no file {path}; expected a {what}.")
    with path.open("rb") as file:
        return file.read(_MAX_KEY_BYTES)


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise DependencyMissing(
            "Signatures need the signing extra: pip install 'prompt-serve[signing]'",
            missing="cryptography",
        ) from error
    return ed25519
