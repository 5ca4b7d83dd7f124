"""Trusted keys: which signatures a service accepts, from a file or folder of public keys.

The keys are read at every check, so a key is added, rotated or revoked without a restart.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prompt_serve.errors import ConfigInvalid, SignatureInvalid
from prompt_serve.signing.keys import PUBLIC_SUFFIX, PublicKey, check_installed, parse_public_key
from prompt_serve.signing.signature import signature_of, verify

_REVOKED = "@revoked"  # in front of a line, as in OpenSSH's known_hosts


@dataclass(frozen=True)
class TrustedKeys:
    """Public keys, those that were revoked apart."""

    keys: Sequence[PublicKey]
    revoked: Sequence[PublicKey]

    def verify(self, data: bytes) -> PublicKey:
        """Return the trusted key that signed a prompt file.

        Raises:
            PromptFileInvalid: the data is not a prompt file.
            SignatureInvalid: no trusted key signed it, or its key was revoked.
        """
        signature = signature_of(data)
        revoked = {key.id: key for key in self.revoked}
        if signature is not None and signature.key_id in revoked:
            key = revoked[signature.key_id]
            raise SignatureInvalid(
                f"The prompt file is signed by the key {key}, which was revoked; trusted is: "
                f"{', '.join(map(str, self.keys))}. Check the file and sign it with a trusted key.",
                key=key.id,
                expected=[key.id for key in self.keys],
            )
        return verify(data, self.keys)


def read_trusted_keys(path: Path) -> TrustedKeys:
    """Read a file of public keys, or all files of a folder whose names end in ``.pub``.

    A line holds one key. Blank lines and comments (``#``) are ignored, and ``@revoked`` in front of
    a key revokes it, wherever else it may be listed.

    Raises:
        ConfigInvalid: a line is no Ed25519 key, or there is no key that is not revoked.
        DependencyMissing: the extra ``signing`` is not installed.
    """
    check_installed()
    trusted: dict[str, PublicKey] = {}
    revoked: dict[str, PublicKey] = {}
    faults = []
    for file, number, line in _lines(path):
        is_revoked = line.startswith(f"{_REVOKED} ")
        try:
            key = parse_public_key(line.removeprefix(f"{_REVOKED} ").strip())
        except ValueError as error:
            faults.append(f"{file}, line {number}: {error}")
            continue
        (revoked if is_revoked else trusted)[key.id] = key
    if faults:
        raise ConfigInvalid("The trusted keys are invalid:", faults)
    keys = [key for key in trusted.values() if key.id not in revoked]
    if not keys:
        raise ConfigInvalid(
            f"{path} has no trusted key; expected public keys, as `prompt-serve keygen` writes "
            f"them, in a file or in files of a folder that end in {PUBLIC_SUFFIX}."
        )
    return TrustedKeys(keys, list(revoked.values()))


class SignaturePolicy:
    """Requirement that what is served was signed, for its name, by a key that is trusted now.

    Args:
        path: of the trusted keys; None: anything is accepted, signed or not.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    @property
    def required(self) -> bool:
        """True if prompt files have to be signed."""
        return self._path is not None

    def check(self, data: bytes) -> None:
        """Raise SignatureInvalid unless a trusted key signed a prompt file, if that is required."""
        if self._path is not None:
            read_trusted_keys(self._path).verify(data)

    def check_name(self, name: str, signed_name: str) -> None:
        """Raise SignatureInvalid if a file that was signed as one task is to be served as another.

        Args:
            name: of the task.
            signed_name: in the document of the prompt file, which the signature covers.
        """
        if self.required and name != signed_name:
            raise SignatureInvalid(
                f"The prompt file was signed as task {signed_name!r} and cannot be served as "
                f"{name!r}. Use its name, or sign it for this one: prompt-serve sign FILE --key "
                f"KEY --name {name}"
            )

    def refuse_unsigned(self, name: str) -> None:
        """Raise SignatureInvalid if signatures are required: the task ``name`` would have none."""
        if self.required:
            raise SignatureInvalid(
                f"Task {name!r} would not be signed, and this service serves signed prompt files "
                f"only. Train and sign it: prompt-serve train DATASET --method zero-shot --sign "
                f"KEY, then upload the file."
            )


ANY_FILE = SignaturePolicy(None)


def _lines(path: Path) -> Iterator[tuple[Path, int, str]]:
    """Yield file, number and text of every line that is neither blank nor a comment."""
    files = sorted(path.glob(f"*{PUBLIC_SUFFIX}")) if path.is_dir() else [path]
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigInvalid(f"The trusted keys in {file} cannot be read: {error}.") from error
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip() and not line.lstrip().startswith("#"):
                yield file, number, line.strip()
