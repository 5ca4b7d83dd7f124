"""The prompt file: golden files stay readable, bytes come back exactly, bad ones are refused."""

import base64
import hashlib
import json
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from prompt_serve.encodings import Dense, Encoding, LowRank
from prompt_serve.errors import PromptFileInvalid
from prompt_serve.prompt_file import (
    MAX_CLASSES,
    Prompt,
    from_bytes,
    read_prompt_file,
    to_bytes,
    version_of,
    write_prompt_file,
)
from tests.golden import GOLDEN, half, path_of

LOW_RANK = GOLDEN["low_rank"]


def assert_equal(left: Prompt, right: Prompt) -> None:
    for field in fields(Prompt):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if field.name == "probe":
            assert a.dtype == b.dtype
            assert a.tobytes() == b.tobytes()
        elif field.name == "text" and a is not None:
            assert (a.kind, a.options()) == (b.kind, b.options())
            for (key, t), (other_key, other) in zip(
                a.tensors().items(), b.tensors().items(), strict=True
            ):
                assert (key, t.shape, t.tobytes()) == (other_key, other.shape, other.tobytes())
        else:
            assert a == b, field.name


def tampered(prompt: Prompt = LOW_RANK, **header: Any) -> bytes:
    """A file whose JSON header was changed after writing; None removes a field."""
    data = to_bytes(prompt)
    size = int.from_bytes(data[:8], "little")
    document = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["prompt_serve"])
    document = {k: v for k, v in {**document, **header}.items() if v is not None}
    return safetensors_numpy.save(
        safetensors_numpy.load(data), {"prompt_serve": json.dumps(document)}
    )


def deep_settings() -> bytes:
    document = '{"format_version":1,"training":' + "[" * 100_000 + "]" * 100_000 + "}"
    return safetensors_numpy.save({}, {"prompt_serve": document})


def with_tensors(tensors: dict[str, Any]) -> bytes:
    data = to_bytes(LOW_RANK)
    size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + size])["__metadata__"]
    return safetensors_numpy.save(tensors, metadata)


# --- golden files ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDEN)
def test_a_golden_file_is_read_as_it_was_meant(name: str) -> None:
    assert_equal(read_prompt_file(path_of(name)), GOLDEN[name])


@pytest.mark.parametrize("name", GOLDEN)
def test_a_golden_file_is_written_again_byte_for_byte(name: str) -> None:
    data = path_of(name).read_bytes()
    assert to_bytes(from_bytes(data)) == data


def test_the_payload_is_the_learned_numbers_in_little_endian_float16() -> None:
    data = path_of("low_rank").read_bytes()
    p_a, p_b = np.array([1, -0.5, 2], "<f2"), np.array([0.5, 0.25, -1, 4], "<f2")
    assert data.endswith(p_a.tobytes() + p_b.tobytes())
    assert LOW_RANK.payload_bytes == len(p_a.tobytes() + p_b.tobytes())
    assert LOW_RANK.learned_numbers == 7


# --- round trips ----------------------------------------------------------------------------


def test_random_prompts_come_back_bit_for_bit(rng: np.random.Generator, tmp_path: Path) -> None:
    for index in range(20):
        m, r, d, c = (int(n) for n in rng.integers(1, 9, size=4))
        shape = (c, m, d) if index % 2 else (m, d)
        texts: list[Encoding] = [
            Dense(context=half(rng.normal(size=shape))),
            LowRank(
                p_a=half(rng.normal(size=(m, r))), p_b=half(rng.normal(size=(r, d))), base="none"
            ),
        ]
        prompt = replace(
            LOW_RANK,
            class_names=tuple(f"class {n}" for n in range(c)),
            probe=half(rng.normal(size=c)),
            text=texts[index % 3 == 0],
            backbone=LOW_RANK.backbone.model_copy(update={"text_width": d}),
        )
        written = write_prompt_file(prompt, tmp_path / "p.safetensors")
        assert_equal(read_prompt_file(tmp_path / "p.safetensors"), prompt)
        assert to_bytes(from_bytes(written)) == written
        assert version_of(written) == hashlib.sha256(written).hexdigest()


def test_writing_leaves_no_temporary_file_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "p.safetensors"
    write_prompt_file(GOLDEN["zero_shot"], path)
    write_prompt_file(LOW_RANK, path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert read_prompt_file(path).method == "dip"


# --- what is refused ------------------------------------------------------------------------


@cache
def bad_files() -> dict[str, tuple[bytes, str]]:
    data = to_bytes(LOW_RANK)
    nan, wide = half([[np.nan], [0], [1]]), half(np.zeros((1, 4)))
    deep = b'{"__metadata__":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    foreign = safetensors_numpy.save({"weight": np.zeros(3, np.float32)})
    return {
        "empty": (b"", "no safetensors file"),
        "text": (b"this is a picture of a cat", "no safetensors file"),
        "cut in the header": (data[:100], "cut short"),
        "cut in the numbers": (data[:-1], "tensors cannot be read"),
        "too long": (data + b"\0", "tensors cannot be read"),
        "huge header length": (b"\xff" * 8 + data[8:], "no safetensors file"),
        "deep JSON": (len(deep).to_bytes(8, "little") + deep, "Not a prompt file"),
        "foreign": (foreign, "no metadata 'prompt_serve'"),
        "header is a list": ((2).to_bytes(8, "little") + b"[]", "Not a prompt file"),
        "NaN": (with_tensors({"text.p_a": nan, "text.p_b": wide}), "NaN or infinite"),
        "float32": (
            with_tensors({"text.p_a": np.zeros((3, 1), np.float32), "text.p_b": wide}),
            "is float32; wanted float16",
        ),
        "int8": (
            with_tensors({"text.p_a": np.zeros((3, 1), np.int8), "text.p_b": wide}),
            "is int8; wanted float16",
        ),
        "factors do not fit": (
            with_tensors({"text.p_a": half(np.zeros((3, 2))), "text.p_b": wide}),
            "do not fit",
        ),
        "three dimensions": (
            with_tensors({"text.p_a": half(np.zeros((3, 1, 1))), "text.p_b": wide}),
            "wanted 2-dimensional",
        ),
        "a tensor is missing": (with_tensors({"text.p_a": half([[1.0]])}), "wants the tensors"),
        "a stranger": (
            with_tensors({"text.p_a": half([[1.0]]), "text.p_b": wide, "evil": wide}),
            "nobody explains",
        ),
        "wrong width": (
            with_tensors({"text.p_a": half([[1.0]]), "text.p_b": half(np.zeros((1, 5)))}),
            "5 wide, but the text tower",
        ),
        "another version": (tampered(format_version=2), "format version 2"),
        "no version": (tampered(format_version=None), "format version None"),
        "unknown encoding": (tampered(text={"encoding": "zip", "options": {}}), "'zip'"),
        "unknown field": (tampered(surprise=1), "surprise"),
        "duplicate names": (tampered(class_names=["cat", "cat"]), "more than once: cat"),
        "blank name": (tampered(class_names=["cat", " "]), "Class name 1 is blank"),
        "long name": (tampered(class_names=["cat", "x" * 501]), "501 characters"),
        "no names": (tampered(class_names=[]), "no class names"),
        "too many names": (
            tampered(class_names=[str(n) for n in range(MAX_CLASSES + 1)]),
            "100,001 class names",
        ),
        "two templates": (tampered(templates=["a {}", "b {}"]), "exactly one"),
        "no place for the name": (tampered(templates=["a photo"]), "must hold '{}' once"),
        "no base64": (tampered(probe="***"), "base64"),
        "odd probe": (tampered(probe=base64.b64encode(b"abc").decode()), "probe"),
        "short probe": (tampered(probe=base64.b64encode(b"ab").decode()), "one number a class"),
        "NaN probe": (
            tampered(probe=base64.b64encode(b"\xff\xff\0\0").decode()),
            "NaN or infinite",
        ),
        "wrong fingerprint": (
            tampered(backbone={**LOW_RANK.backbone.model_dump(), "fingerprint": "no"}),
            "fingerprint",
        ),
        "NaN in the settings": (tampered(training={"lr": float("nan")}), "not valid JSON"),
        "infinity in the metrics": (tampered(metrics={"a": 1e999}), "not valid JSON"),
        "half a surrogate pair": (tampered(training={"a": "\ud800"}), "not valid JSON"),
        "deep settings": (deep_settings(), "not valid JSON"),
        "strange position": (tampered(class_position="nowhere"), "class_position"),
    }


@pytest.mark.parametrize("kind", bad_files())
def test_a_bad_file_is_refused_with_the_reason(kind: str) -> None:
    data, reason = bad_files()[kind]
    with pytest.raises(PromptFileInvalid, match=reason):
        from_bytes(data)


def test_no_damage_to_a_file_raises_anything_else(rng: np.random.Generator) -> None:
    originals = [to_bytes(prompt) for prompt in GOLDEN.values()]
    refused = 0
    for _ in range(6000):
        data = bytearray(originals[rng.integers(len(originals))])
        for _ in range(rng.integers(1, 5)):
            place = int(rng.integers(len(data)))
            match rng.integers(4):
                case 0:
                    data[place] = int(rng.integers(256))
                case 1:
                    del data[place : place + int(rng.integers(1, 20))]
                case 2:
                    data[place:place] = rng.bytes(int(rng.integers(1, 20)))
                case _:
                    data[place] ^= 1 << int(rng.integers(8))
            if not data:
                break
        try:
            prompt = from_bytes(bytes(data))
        except PromptFileInvalid:
            refused += 1
        else:
            # Bytes of a learned number or of a name may change unnoticed: the file is still one.
            assert_equal(from_bytes(to_bytes(prompt)), prompt)
    assert refused > 3000


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(PromptFileInvalid, match="There is no file"):
        read_prompt_file(tmp_path / "none.safetensors")
    with pytest.raises(PromptFileInvalid, match="There is no file"):
        read_prompt_file(tmp_path)


def test_a_prompt_cannot_be_made_inconsistent() -> None:
    with pytest.raises(PromptFileInvalid, match="for 2 classes, but the file names 3"):
        replace(
            GOLDEN["dense_class_specific"],
            class_names=("cat", "dog", "horse"),
            probe=half([0, 0, 0]),
        )
    with pytest.raises(PromptFileInvalid, match="wanted float16"):
        replace(LOW_RANK, probe=np.zeros(2, np.float32))
