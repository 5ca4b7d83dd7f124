"""The signature inside a prompt file (specified in ``docs/prompt-file.md``).

It is one more member of the metadata. It covers every other byte of the file, its own key
included: the message is made from the file with zeros in place of the signature's digits.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from prompt_serve.errors import PromptFileInvalid, SignatureInvalid
from prompt_serve.prompts.prompt_file import check_kind
from prompt_serve.signing.keys import PublicKey, SigningKey

MEMBER = "prompt_serve_signature"
_DOMAIN = b"prompt-serve prompt file signature 1\n"  # a signature made for anything else fails
_DIGITS = 128  # hexadecimal digits of a signature
_VALUE = re.compile(rf"ed25519 (SHA256:[A-Za-z0-9+/]{{43}}) ([0-9a-f]{{{_DIGITS}}})")
# Quotes inside a JSON string are escaped, so this is never a part of one.
_METADATA = re.compile(rb'"__metadata__"[ \t\r\n]*:[ \t\r\n]*\{')


@dataclass(frozen=True)
class Signature:
    """Signature of a file: the key that it names, its 64 bytes, and the message it is for."""

    key_id: str
    value: bytes
    message: bytes


def sign(data: bytes, key: SigningKey) -> bytes:
    """Return a prompt file with a signature, in place of any that it has.

    Raises:
        PromptFileInvalid: the data is not a prompt file.
    """
    header, tensors = _parts(remove_signature(data))
    blank = _member(key.public.id, "0" * _DIGITS)
    found = _METADATA.search(header)
    if found is None:
        raise PromptFileInvalid("The header has no metadata that a signature could be added to.")
    header = header[: found.end()] + blank + b"," + header[found.end() :]
    unsigned = _joined(header, tensors)
    digits = key.sign(_message(unsigned)).hex()
    return unsigned.replace(blank, _member(key.public.id, digits), 1)


def remove_signature(data: bytes) -> bytes:
    """Return a prompt file without its signature: byte by byte the file that was signed.

    Raises:
        PromptFileInvalid: the data is not a prompt file.
        SignatureInvalid: its signature is not written as specified.
    """
    header, tensors = _parts(data)
    written = _written(header)
    if written is None:
        return data
    member = _member(*written)
    return _joined(header.replace(member + b",", b"", 1), tensors)


def signature_of(data: bytes) -> Signature | None:
    """Return the signature of a prompt file, not verified; None if the file is not signed.

    Raises:
        PromptFileInvalid: the data is not a prompt file.
        SignatureInvalid: its signature is not written as specified.
    """
    header, _ = _parts(data)
    written = _written(header)
    if written is None:
        return None
    key_id, digits = written
    start = 8 + header.index(_member(key_id, digits)) + len(_member(key_id, "")) - len('"')
    blank = data[:start] + b"0" * _DIGITS + data[start + _DIGITS :]
    return Signature(key_id, bytes.fromhex(digits), _message(blank))


def verify(data: bytes, keys: Sequence[PublicKey]) -> PublicKey:
    """Return the key that signed a prompt file.

    Args:
        data: the file.
        keys: those that may have signed it.

    Raises:
        PromptFileInvalid: the data is not a prompt file.
        SignatureInvalid: it is not signed by one of the keys, or was changed since.
    """
    signature = signature_of(data)
    expected = ", ".join(map(str, keys)) or "none"
    facts = {"expected": [key.id for key in keys]}
    if signature is None:
        raise SignatureInvalid(
            f"The prompt file is not signed; expected a signature of a trusted key: {expected}. "
            f"Sign it with `prompt-serve sign FILE --key KEY`.",
            **facts,
        )
    key = next((key for key in keys if key.id == signature.key_id), None)
    if key is None:
        raise SignatureInvalid(
            f"The prompt file is signed by the key {signature.key_id}; trusted is: {expected}. "
            f"Sign it with a trusted key, or trust this one.",
            key=signature.key_id,
            **facts,
        )
    if not key.verifies(signature.value, signature.message):
        raise SignatureInvalid(
            f"The prompt file is not what the key {key} signed: it was changed since. Send the "
            f"file as it was signed, or sign it again.",
            key=key.id,
            **facts,
        )
    return key


def _written(header: bytes) -> tuple[str, str] | None:
    """Return key and digits of the signature in a header; None without one."""
    metadata = json.loads(header)["__metadata__"]
    if MEMBER not in metadata:
        return None
    match = _VALUE.fullmatch(str(metadata[MEMBER]))
    if match is None or header.count(_member(match[1], match[2]) + b",") != 1:
        raise SignatureInvalid(
            f"The signature of the prompt file is damaged; expected the member {MEMBER!r} as in "
            f"docs/prompt-file.md. Sign the file again.",
        )
    return match[1], match[2]


def _member(key_id: str, digits: str) -> bytes:
    return f'"{MEMBER}":"ed25519 {key_id} {digits}"'.encode()


def _message(data: bytes) -> bytes:
    return _DOMAIN + hashlib.sha256(data).digest()


def _parts(data: bytes) -> tuple[bytes, bytes]:
    """Return the header, without its length, and the tensors."""
    check_kind(data)
    end = 8 + int.from_bytes(data[:8], "little")
    return data[8:end], data[end:]


def _joined(header: bytes, tensors: bytes) -> bytes:
    header = header.rstrip(b" ")
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + tensors
