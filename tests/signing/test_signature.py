"""Signatures: every byte of a file is covered, and only the key that signed it passes."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="the extra signing is not installed")

from prompt_serve.errors import ConfigInvalid, PromptFileInvalid, SignatureInvalid
from prompt_serve.prompts.prompt_file import Prompt, from_bytes, to_bytes
from prompt_serve.signing.keys import (
    SigningKey,
    generate_key,
    parse_public_key,
    public_path_of,
    read_signing_key,
)
from prompt_serve.signing.signature import MEMBER, remove_signature, sign, signature_of, verify
from prompt_serve.signing.trusted_keys import SignaturePolicy, read_trusted_keys
from tests.golden import GOLDEN
from tests.required import program_missing

# A prompt whose free-form document holds what a parser of signatures might trip over.
TRICKY = replace(
    GOLDEN["low_rank"],
    training={
        "note": f'"__metadata__":{{"{MEMBER}":"ed25519 SHA256:{"A" * 43} {"0" * 128}",',
        "zeros": "0" * 400,
        MEMBER: f'"{MEMBER}":"ed25519 ',
    },
    metrics={"name": "☃ \\ \" ' {}"},
)
PROMPTS = {**GOLDEN, "tricky": TRICKY}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[SigningKey]:
    folder = tmp_path_factory.mktemp("keys")
    paths = [folder / f"key{n}" for n in range(3)]
    for path in paths:
        generate_key(path, path.name)
    return [read_signing_key(path) for path in paths]


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_a_signed_file_holds_the_same_prompt_and_gives_the_unsigned_file_back(
    prompt: Prompt, keys: list[SigningKey]
) -> None:
    data = to_bytes(prompt)
    signed = sign(data, keys[0])

    assert to_bytes(from_bytes(signed)) == data
    assert remove_signature(signed) == data
    assert remove_signature(data) == data
    assert verify(signed, [key.public for key in keys]) == keys[0].public
    assert sign(data, keys[0]) == signed  # equal files and keys, equal bytes
    assert int.from_bytes(signed[:8], "little") % 8 == 0


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_a_file_is_signed_again_by_another_key(prompt: Prompt, keys: list[SigningKey]) -> None:
    data = to_bytes(prompt)

    assert sign(sign(data, keys[0]), keys[1]) == sign(data, keys[1])


@pytest.mark.parametrize("name", ["low_rank", "tricky"])
def test_a_change_of_any_byte_is_noticed(name: str, keys: list[SigningKey]) -> None:
    signed = sign(to_bytes(PROMPTS[name]), keys[0])
    trusted = [key.public for key in keys]
    for position in range(len(signed)):
        for flip in (0x01, 0x20, 0x80):  # 0x20 is the case of a letter
            changed = bytearray(signed)
            changed[position] ^= flip
            with pytest.raises((SignatureInvalid, PromptFileInvalid)):
                verify(bytes(changed), trusted)


def test_more_or_less_of_a_file_is_noticed(keys: list[SigningKey]) -> None:
    signed = sign(to_bytes(TRICKY), keys[0])
    trusted = [keys[0].public]
    end = 8 + int.from_bytes(signed[:8], "little")
    others = [signed[:cut] for cut in range(0, len(signed), 7)]
    others += [signed + b"\0", signed + signed, signed + bytes(8)]
    longer = (end - 8 + 8).to_bytes(8, "little") + signed[8:end] + b" " * 8 + signed[end:]
    for other in [*others, longer]:
        with pytest.raises((SignatureInvalid, PromptFileInvalid)):
            verify(other, trusted)


def _header(data: bytes) -> tuple[bytes, bytes]:
    end = 8 + int.from_bytes(data[:8], "little")
    return data[8:end], data[end:]


def _with_header(header: bytes, tensors: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + tensors


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(lambda h: h.replace(b'"ed25519 ', b'"ed25519  ', 1), id="a second space"),
        pytest.param(lambda h: h.replace(b'"ed25519 ', b'"Ed25519 ', 1), id="another algorithm"),
        pytest.param(lambda h: h.replace(b'":"ed25519', b'": "ed25519', 1), id="a space of JSON"),
        pytest.param(lambda h: h.replace(b'":"ed25519', b'":"\\u0065d25519', 1), id="an escape"),
        pytest.param(
            lambda h: h.replace(f'"{MEMBER}":'.encode(), f'"{MEMBER}":"x","{MEMBER}":'.encode(), 1),
            id="two members, the signature last",
        ),
        pytest.param(
            lambda h: h.replace(
                b'{"' + MEMBER.encode(), b'{"' + MEMBER.encode() + b'":7,"' + MEMBER.encode(), 1
            ),
            id="two members, a number first",
        ),
        pytest.param(
            lambda h: h.replace(b'"__metadata__":', b'"__metadata__":{},"__metadata__":', 1),
            id="two metadata",
        ),
    ],
)
def test_a_signature_that_is_written_otherwise_is_refused(
    forge: Callable[[bytes], bytes], keys: list[SigningKey]
) -> None:
    header, tensors = _header(sign(to_bytes(GOLDEN["low_rank"]), keys[0]))
    forged = forge(header)
    assert forged != header

    with pytest.raises((SignatureInvalid, PromptFileInvalid)):
        verify(_with_header(forged, tensors), [keys[0].public])


def test_a_signature_of_one_file_does_not_fit_another(keys: list[SigningKey]) -> None:
    trusted = [keys[0].public]
    files = {name: sign(to_bytes(prompt), keys[0]) for name, prompt in GOLDEN.items()}
    digits = {name: _digits(data) for name, data in files.items()}
    for name, data in files.items():
        for other in set(files) - {name}:
            if files[other] == data:
                continue
            with pytest.raises(SignatureInvalid, match="was changed since"):
                verify(data.replace(digits[name], digits[other]), trusted)


def _digits(data: bytes) -> bytes:
    found = signature_of(data)
    assert found is not None
    return found.value.hex().encode()


def test_errors_name_the_expected_key(keys: list[SigningKey]) -> None:
    data = to_bytes(GOLDEN["low_rank"])
    trusted = [keys[1].public, keys[2].public]
    for wrong in (data, sign(data, keys[0])):
        with pytest.raises(SignatureInvalid, match=r"key1 \(SHA256:.*key2 \(SHA256:") as refused:
            verify(wrong, trusted)
        assert refused.value.facts["expected"] == [key.id for key in trusted]
    with pytest.raises(SignatureInvalid, match="not signed"):
        verify(remove_signature(sign(data, keys[1])), trusted)


def test_trusted_keys_are_added_rotated_and_revoked_while_in_use(
    tmp_path: Path, keys: list[SigningKey]
) -> None:
    data = to_bytes(GOLDEN["low_rank"])
    old, new = (sign(data, key) for key in keys[:2])
    path = tmp_path / "trusted"
    policy = SignaturePolicy(path)

    path.write_text(f"# release\n\n{keys[0].public.line}\n")
    policy.check(old)
    with pytest.raises(SignatureInvalid, match="trust this one"):
        policy.check(new)

    path.write_text(f"{keys[0].public.line}\n{keys[1].public.line}\r\n")
    policy.check(old)
    policy.check(new)

    # Revoked, wherever else it is listed.
    path.write_text(
        f"{keys[0].public.line}\n@revoked {keys[0].public.line}\n{keys[1].public.line}\n"
    )
    policy.check(new)
    with pytest.raises(SignatureInvalid, match=r"key0 \(SHA256:\S+\), which was revoked"):
        policy.check(old)
    with pytest.raises(SignatureInvalid, match="key1") as refused:
        policy.check(data)
    assert refused.value.facts["expected"] == [keys[1].public.id]


def test_a_folder_holds_a_file_per_key(tmp_path: Path, keys: list[SigningKey]) -> None:
    for n, key in enumerate(keys):
        (tmp_path / f"{n}.pub").write_text(key.public.line)
    (tmp_path / "notes.txt").write_text("not a key")

    trusted = read_trusted_keys(tmp_path)

    assert {key.id for key in trusted.keys} == {key.public.id for key in keys}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQ== someone\n",
        "ssh-ed25519\n",
        "ssh-ed25519 ***\n",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA==\n",
        "@revokedssh-ed25519 AAAA\n",
        "-----BEGIN PUBLIC KEY-----\n",
        "\ufeff ssh-ed25519\n",
    ],
)
def test_files_without_a_trusted_key_trust_nobody(text: str, tmp_path: Path) -> None:
    path = tmp_path / "trusted"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(ConfigInvalid):
        read_trusted_keys(path)
    with pytest.raises(ConfigInvalid):
        SignaturePolicy(path).check(to_bytes(GOLDEN["low_rank"]))


def test_only_revoked_keys_trust_nobody(tmp_path: Path, keys: list[SigningKey]) -> None:
    path = tmp_path / "trusted"
    path.write_text(f"@revoked {keys[0].public.line}\n")

    with pytest.raises(ConfigInvalid, match="no trusted key"):
        read_trusted_keys(path)


def test_without_a_requirement_everything_passes() -> None:
    policy = SignaturePolicy(None)
    policy.check(b"anything")
    policy.check_name("a", "b")
    policy.refuse_unsigned("a")


def test_private_keys_are_private_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "release.key"
    public = generate_key(path, "release")

    assert path.stat().st_mode & 0o777 == 0o600
    assert parse_public_key(public_path_of(path).read_text().strip()) == public
    before = path.read_bytes()
    with pytest.raises(ConfigInvalid, match="exists"):
        generate_key(path, "release")
    path.unlink()
    with pytest.raises(ConfigInvalid, match=r"release\.key\.pub exists"):
        generate_key(path, "release")
    path.write_bytes(before)
    assert read_signing_key(path).public == public


@pytest.mark.parametrize("name", ["", "two words", "line\nbreak", "x" * 101, "tab\t"])
def test_names_of_keys_fit_into_a_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="name"):
        generate_key(tmp_path / "key", name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"-----BEGIN OPENSSH PRIVATE KEY-----\nx"])
def test_files_that_are_no_private_key_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(ConfigInvalid, match="private key"):
        read_signing_key(path)


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "encrypted"])
def test_keys_of_openssh_are_the_same_keys(kind: str, tmp_path: Path) -> None:
    if shutil.which("ssh-keygen") is None:
        program_missing("KEYS OF OPENSSH ARE NOT TESTED HERE: apt-get install openssh-client")
    path = tmp_path / "key"
    phrase = "secret" if kind == "encrypted" else ""
    algorithm = "rsa" if kind == "rsa" else "ed25519"
    make = ["ssh-keygen", "-q", "-t", algorithm, "-N", phrase, "-C", "me", "-f", os.fspath(path)]
    subprocess.run(make, check=True)
    if kind != "ed25519":
        with pytest.raises(ConfigInvalid, match=r"Ed25519"):
            read_signing_key(path)
        return

    key = read_signing_key(path)
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", os.fspath(path)], check=True, capture_output=True, text=True
    ).stdout
    assert key.public.id in shown.split()
    assert key.public.name == "me"
    data = sign(to_bytes(GOLDEN["low_rank"]), key)
    assert read_trusted_keys(public_path_of(path)).verify(data) == key.public


def test_the_message_is_the_one_that_the_format_specifies(keys: list[SigningKey]) -> None:
    """Recompute the message of docs/prompt-file.md from the JSON of the header alone."""
    data = sign(to_bytes(TRICKY), keys[0])
    header, _ = _header(data)
    value = json.loads(header)["__metadata__"][MEMBER]
    algorithm, key_id, digits = value.split(" ")
    assert (algorithm, key_id) == ("ed25519", keys[0].public.id)
    assert data.count(digits.encode()) == 1
    blank = data.replace(digits.encode(), b"0" * 128)
    message = b"prompt-serve prompt file signature 1\n" + hashlib.sha256(blank).digest()
    assert keys[0].public.verifies(bytes.fromhex(digits), message)
