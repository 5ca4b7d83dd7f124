"""Prompt files that no trusted key released as they are, by all ways into a service that asks for
signatures.

The service has been given one file per task. Whatever is sent then, nothing else may be stored.
"""

import asyncio
import hashlib
import json
import random
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from drills.attacks.apart import apart, small_oracle
from drills.attacks.kind import Kind, Target, zipped
from drills.attacks.tenancy import word
from prompt_serve.signing.keys import SigningKey, generate_key, read_signing_key
from prompt_serve.signing.signature import sign

_CHECK_EVERY = 25  # instances
_ORDER = 2**252 + 27742317777372353535851937790883648493  # of the group of Ed25519
_DIGITS = re.compile(rb"[0-9a-f]{128}")
_MEMBER = re.compile(rb'"prompt_serve_signature":"ed25519 (SHA256:[^ ]{43}) ([0-9a-f]{128})",')
_JSON = {"content-type": "application/json"}
_ZIP = {"content-type": "application/zip"}


@dataclass(frozen=True)
class Release:
    """Keys, the file of each task that was released, and another that was signed but not sent."""

    keys: Mapping[str, SigningKey]  # ours and next are trusted, former is revoked, theirs unknown
    unsigned: Mapping[str, Sequence[bytes]]  # two files by task
    current: Mapping[str, bytes]
    trusted: Path


async def attack(target: Target, draw: random.Random, count: int) -> None:
    """Send what was not released."""
    with tempfile.TemporaryDirectory(prefix="drill-keys-") as folder:
        release = await asyncio.to_thread(_release, Path(folder))
        async with apart(target, {"trusted_keys": str(release.trusted)}) as own:
            for name, data in release.current.items():
                answer = await own.ask("PUT", f"/v1/tasks/{name}", name="release", content=data)
                if answer.status_code not in (200, 201):
                    own.fault("wrong", f"a released file is refused: {answer.text[:300]}")
            await _release_and_revoke(own, release)
            for n in range(count):
                await _instance(own, draw, release)
                if n % _CHECK_EVERY == _CHECK_EVERY - 1 or n == count - 1:
                    await _check(own, release)


def _release(folder: Path) -> Release:
    keys = {}
    for name in ("ours", "next", "former", "theirs"):
        generate_key(folder / name, name)
        keys[name] = read_signing_key(folder / name)
    trusted = folder / "trusted_keys"
    trusted.write_text(
        "".join(f"{keys[name].public.line}\n" for name in ("ours", "next", "former"))
    )
    unsigned = {
        name: [file.data for file in files[:2]] for name, files in small_oracle().files.items()
    }
    # The second file of each was released with a key that is revoked by now.
    current = {name: sign(files[0], keys["ours"]) for name, files in unsigned.items()}
    return Release(keys, unsigned, current, trusted)


async def _release_and_revoke(own: Target, release: Release) -> None:
    """Serve a file of each task that a key signed which is revoked then, and replace it."""
    for name, (_, second) in release.unsigned.items():
        for data in (sign(second, release.keys["former"]), release.current[name]):
            answer = await own.ask("PUT", f"/v1/tasks/{name}", name="release", content=data)
            if answer.status_code != 200:
                own.fault("wrong", f"a released file is refused: {answer.text[:300]}")
    revoke(release)


def revoke(release: Release) -> None:
    """Revoke the key of the former files."""
    former = release.keys["former"].public.line
    lines = release.trusted.read_text().replace(former, f"@revoked {former}")
    release.trusted.write_text(lines)


async def _instance(own: Target, draw: random.Random, release: Release) -> None:
    name = draw.choice(list(release.current))
    kind, make = draw.choice(list(_FORGERIES.items()))
    data = make(draw, release, name)
    if data in release.current.values():
        return
    send = draw.choice(_WAYS)
    status, text = await send(own, draw, release, name, data)
    if status < 400 and '"error":{' not in text:
        own.fault("wrong", f"{status} to {kind} of {name} by {send.__name__}: {text[:300]}")


async def _check(own: Target, release: Release) -> None:
    """Compare all that is served with what was released."""
    listed = (await own.ask("GET", "/v1/tasks?limit=1000", name="check")).json()["tasks"]
    for task in listed:
        file = await own.ask("GET", f"/v1/tasks/{task['name']}/file", name="check")
        if file.content != release.current.get(task["name"]):
            own.fault("wrong", f"{task['name']} is served at {task['version']}")
    if len(listed) != len(release.current):
        own.fault("wrong", f"served are {[task['name'] for task in listed]}")


# What is sent.


def _flip(draw: random.Random, release: Release, name: str) -> bytes:
    data = bytearray(release.current[name])
    for _ in range(draw.choice((1, 1, 3))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


def _length(draw: random.Random, release: Release, name: str) -> bytes:
    """Cut a file, extend it, or say that its header is longer or shorter."""
    data = release.current[name]
    size = int.from_bytes(data[:8], "little")
    other = max(0, size + draw.choice((-8, -1, 1, 8)))
    return draw.choice(
        (
            data[: draw.randrange(len(data))],
            data + draw.randbytes(draw.choice((1, 8))),
            data + bytes(8),
            other.to_bytes(8, "little") + data[8:],
            (size + 8).to_bytes(8, "little") + data[8 : 8 + size] + b" " * 8 + data[8 + size :],
            (size + 8).to_bytes(8, "little") + b" " * 8 + data[8:],
        )
    )


def _unsigned(draw: random.Random, release: Release, name: str) -> bytes:
    return draw.choice(release.unsigned[name])


def _by_another_key(draw: random.Random, release: Release, name: str) -> bytes:
    key = release.keys[draw.choice(("theirs", "former"))]
    return sign(draw.choice(release.unsigned[name]), key)


def _named_as_trusted(draw: random.Random, release: Release, name: str) -> bytes:
    """Sign with a key of the attacker's own under the name of a trusted one."""
    data = sign(release.unsigned[name][1], release.keys["theirs"])
    theirs, ours = (release.keys[one].public.id.encode() for one in ("theirs", "ours"))
    return data.replace(theirs, ours)


def _copied_signature(draw: random.Random, release: Release, name: str) -> bytes:
    """Give a file the signature of another one."""
    data = sign(release.unsigned[name][1], release.keys["theirs"])
    other = _MEMBER.search(release.current[draw.choice(list(release.current))])
    assert other is not None
    return _MEMBER.sub(other[0].replace(b"\\", b"\\\\"), data, count=1)


def _two_signatures(draw: random.Random, release: Release, name: str) -> bytes:
    """Add a signature to one that is there, before or after it, for the same file or another."""
    data = sign(release.unsigned[name][draw.randrange(2)], release.keys["theirs"])
    released = release.current[name]
    theirs, ours = _MEMBER.search(data), _MEMBER.search(released)
    assert theirs is not None
    assert ours is not None
    base, first, second = draw.choice(
        (
            (data, ours[0], theirs[0]),
            (data, theirs[0], ours[0]),
            (released, ours[0], theirs[0]),
            (released, theirs[0], ours[0]),
            (released, ours[0], ours[0]),
        )
    )
    return _with_header(base, lambda header: _MEMBER.sub(first + second, header, count=1))


def _other_form(draw: random.Random, release: Release, name: str) -> bytes:
    """Write the header of a released file in another way, with the same meaning for JSON."""

    def spaced(header: bytes) -> bytes:
        return header.replace(b'":"', b'": "', 1)

    def escaped(header: bytes) -> bytes:
        return header.replace(b"ed25519", b"\\u0065d25519", 1)

    def upper(header: bytes) -> bytes:
        return _DIGITS.sub(lambda match: match[0].upper(), header, count=1)

    def escaped_member(header: bytes) -> bytes:
        return header.replace(b"prompt_serve_signature", b"prompt\\u005fserve_signature", 1)

    def moved(header: bytes) -> bytes:
        member = _MEMBER.search(header)
        assert member is not None
        rest = header.replace(member[0], b"", 1).rstrip()
        return re.sub(rb"\}", b"," + member[0].rstrip(b",") + b"}", rest, count=1)

    def twice(header: bytes) -> bytes:
        return header.rstrip()[:-1] + b',"__metadata__":{}}'

    def added(header: bytes) -> bytes:
        return header.replace(b'"__metadata__":{', b'"__metadata__":{"note":"x",', 1)

    def sorted_again(header: bytes) -> bytes:
        return json.dumps(json.loads(header), separators=(",", ":"), sort_keys=True).encode()

    ways = (spaced, escaped, upper, escaped_member, moved, twice, added, sorted_again)
    return _with_header(release.current[name], draw.choice(ways))


def _same_signature_modulo_the_order(draw: random.Random, release: Release, name: str) -> bytes:
    """Add the order of the group to the second half: verifiers that are lax accept it."""
    data = release.current[name]
    digits = _DIGITS.search(data)
    assert digits is not None
    value = bytes.fromhex(digits[0].decode())
    scalar = int.from_bytes(value[32:], "little") + _ORDER * draw.randint(1, 14)
    other = value[:32] + (scalar % 2**256).to_bytes(32, "little")
    return data.replace(digits[0], other.hex().encode())


def _made_up_signature(draw: random.Random, release: Release, name: str) -> bytes:
    """Sign with points of small order, zeros, or at random."""
    data = sign(release.unsigned[name][1], release.keys["ours"])
    points = (bytes(32), b"\x01" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f", draw.randbytes(32))
    value = draw.choice(points) + draw.choice((bytes(32), b"\x01" + bytes(31), draw.randbytes(32)))
    return _DIGITS.sub(value.hex().encode(), data, count=1)


def _tensors_of_another(draw: random.Random, release: Release, name: str) -> bytes:
    data, other = release.current[name], release.unsigned[name][1]
    end, start = (8 + int.from_bytes(one[:8], "little") for one in (data, other))
    return data[:end] + other[start:]


def _of_another_task(draw: random.Random, release: Release, name: str) -> bytes:
    """A file that was released, but as another task."""
    other = draw.choice([one for one in release.current if one != name])
    return sign(release.unsigned[other][1], release.keys["ours"])


_FORGERIES: Mapping[str, Callable[[random.Random, Release, str], bytes]] = {
    "flipped bits": _flip,
    "another length": _length,
    "no signature": _unsigned,
    "a signature by another key": _by_another_key,
    "a signature in the name of a trusted key": _named_as_trusted,
    "a copied signature": _copied_signature,
    "two signatures": _two_signatures,
    "another form of the header": _other_form,
    "a malleable signature": _same_signature_modulo_the_order,
    "a made-up signature": _made_up_signature,
    "the tensors of another file": _tensors_of_another,
    "a file of another task": _of_another_task,
}


def _with_header(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    end = 8 + int.from_bytes(data[:8], "little")
    header = change(data[8:end]).rstrip(b" ")
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


# How it is sent.

Answer = tuple[int, str]


async def _upload(
    own: Target, draw: random.Random, release: Release, name: str, data: bytes
) -> Answer:
    under = draw.choice((name, name, name, name.upper(), f"{name}-{word(draw, 3)}", f"a/{name}"))
    condition = draw.choice(({}, {"if-match": "*"}, {"if-none-match": "*"}))
    answer = await own.ask(
        "PUT", f"/v1/tasks/{under}", name="upload", content=data, headers=condition
    )
    return answer.status_code, answer.text


async def _upload_zip(
    own: Target, draw: random.Random, release: Release, name: str, data: bytes
) -> Answer:
    """Among files that were released, so that all would be stored or none."""
    others = {one: release.current[one] for one in release.current if one != name}
    files = {f"{one}.safetensors": content for one, content in {**others, name: data}.items()}
    query = draw.choice(("", "?atomic=true", "?atomic=false", "?namespace=a"))
    if query == "?namespace=a":
        files = {f"{name}.safetensors": release.current[name]}
    answer = await own.ask(
        "PUT", f"/v1/tasks{query}", name="zip", content=zipped(files), headers=_ZIP
    )
    return answer.status_code, answer.text


async def _import(
    own: Target, draw: random.Random, release: Release, name: str, data: bytes
) -> Answer:
    tasks, files = [], {}
    for one, content in {**release.current, name: data}.items():
        version = hashlib.sha256(content).hexdigest()
        files[f"versions/{version}.safetensors"] = content
        under = f"{one}-{word(draw, 3)}" if one == name and draw.random() < 0.3 else one
        tasks.append({"name": under, "version": version, "updated": ""})
    files["registry.json"] = json.dumps({"format": 1, "tool_version": "1", "tasks": tasks}).encode()
    answer = await own.ask(
        "POST", "/v1/registry/import", name="import", content=zipped(files), headers=_ZIP
    )
    return answer.status_code, answer.text


async def _alias(
    own: Target, draw: random.Random, release: Release, name: str, data: bytes
) -> Answer:
    """Point a new name at what was released, or an old one at what was released for another."""
    others = [one for one in release.current if one != name]
    under = draw.choice((word(draw), f"{name}-2", name.upper(), draw.choice(others)))
    body = json.dumps({"of": name}).encode()
    answer = await own.ask(
        "PUT", f"/v1/tasks/{under}/alias", name="alias", content=body, headers=_JSON
    )
    return answer.status_code, answer.text


async def _roll_back(
    own: Target, draw: random.Random, release: Release, name: str, data: bytes
) -> Answer:
    """Return to the version whose key was revoked."""
    former = sign(release.unsigned[name][1], release.keys["former"])
    version = hashlib.sha256(former).hexdigest()
    answer = await own.ask(
        "POST",
        f"/v1/tasks/{name}/rollback",
        name="rollback",
        content=json.dumps({"version": version[: draw.choice((8, 64))]}).encode(),
        headers=_JSON,
    )
    return answer.status_code, answer.text


async def _create(
    own: Target, draw: random.Random, release: Release, name: str, data: bytes
) -> Answer:
    body = {"name": draw.choice((name, word(draw))), "class_names": ["a", word(draw)]}
    answer = await own.ask(
        "POST", "/v1/tasks", name="create", content=json.dumps(body).encode(), headers=_JSON
    )
    return answer.status_code, answer.text


_WAYS = (_upload, _upload, _upload, _upload_zip, _import, _alias, _roll_back, _create)


KINDS: Mapping[str, Kind] = {
    "signatures": Kind("prompt files that nobody released as they are", attack),
}
