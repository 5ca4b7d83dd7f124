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

from prompt_serve.errors import PromptFileInvalid
from prompt_serve.prompts.class_vectors import ClassVectors, LabelVectors
from prompt_serve.prompts.encodings import (
    Conditional,
    Deep,
    Dense,
    LowRank,
    Projected,
    Projection,
    PrunedKeyValues,
    TextEncoding,
    describe,
)
from prompt_serve.prompts.prompt_file import (
    MAX_CLASSES,
    Prompt,
    from_bytes,
    read_prompt_file,
    to_bytes,
    version_of,
    write_prompt_file,
)
from prompt_serve.prompts.quantized_tensor import BITS, QuantizedTensor
from tests.golden import GOLDEN, LATEST, NEWER, PLAIN, path_of, quantized, to_float16, v2

LOW_RANK = GOLDEN["low_rank"]


def assert_equal(left: Prompt, right: Prompt) -> None:
    for field in fields(Prompt):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if field.name == "probe":
            assert a.dtype == b.dtype
            assert a.tobytes() == b.tobytes()
        elif field.name in ("text", "image", "classes", "sketch") and a is not None:
            assert (a.kind, a.options()) == (b.kind, b.options())
            for (key, t), (other_key, other) in zip(
                a.tensors().items(), b.tensors().items(), strict=True
            ):
                assert key == other_key
                assert parts_of(t) == parts_of(other)
        else:
            assert a == b, field.name


def parts_of(tensor: Any) -> tuple[Any, ...]:
    if isinstance(tensor, QuantizedTensor):
        return *parts_of(tensor.indices), *parts_of(tensor.codebook)
    return tensor.dtype, tensor.shape, tensor.tobytes()


def tampered(prompt: Prompt = LOW_RANK, **header: Any) -> bytes:
    """A file whose JSON header was changed after writing; None removes a field."""
    data = to_bytes(prompt)
    size = int.from_bytes(data[:8], "little")
    document = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["prompt_serve"])
    removed = {field for field, value in header.items() if value is None}
    document = {k: v for k, v in {**document, **header}.items() if k not in removed}
    return safetensors_numpy.save(
        safetensors_numpy.load(data), {"prompt_serve": json.dumps(document)}
    )


def deep_settings() -> bytes:
    document = '{"format_version":1,"training":' + "[" * 100_000 + "]" * 100_000 + "}"
    return safetensors_numpy.save({}, {"prompt_serve": document})


def with_tensors(tensors: dict[str, Any], prompt: Prompt = LOW_RANK) -> bytes:
    data = to_bytes(prompt)
    size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + size])["__metadata__"]
    return safetensors_numpy.save(tensors, metadata)


def changed(name: str, **tensors: Any) -> bytes:
    """A golden file with other tensors (``text.`` left out); None removes one."""
    old = safetensors_numpy.load(path_of(name).read_bytes())
    new = {**old, **{f"text.{key.replace('__', '.')}": t for key, t in tensors.items()}}
    return with_tensors({k: t for k, t in new.items() if t is not None}, GOLDEN[name])


def described(name: str, branch: str = "text", **fields: Any) -> bytes:
    """A golden file with another description of a branch."""
    prompt = GOLDEN[name]
    data = to_bytes(prompt)
    size = int.from_bytes(data[:8], "little")
    document = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["prompt_serve"])
    return tampered(prompt, **{branch: {**document[branch], **fields}})


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


@pytest.mark.parametrize("name", GOLDEN)
def test_a_file_says_the_oldest_version_that_can_read_it(name: str) -> None:
    version = 1 if name in PLAIN else 2 if name in NEWER else 3
    data = path_of(name).read_bytes()
    assert f'\\"format_version\\":{version},'.encode() in data
    fields_of_2 = [b'\\"image\\"', b'\\"temperature\\"', b'\\"unknown_below\\"']
    fields_of_3 = [b'\\"classes\\"', b'\\"sketch\\"', b'\\"unlike_below\\"']
    assert all((field in data) == (version >= 2) for field in fields_of_2)
    assert all((field in data) == (version >= 3) for field in fields_of_3)


def test_quantized_tensors_lie_in_the_file_as_documented() -> None:
    one = path_of("codebook_1").read_bytes()
    # 0 1 1 0 1 0 0 0, the first in the lowest bit; and -0.5, 2.0 in float16. F16 comes first.
    assert one.endswith(np.array([-0.5, 2.0], "<f2").tobytes() + bytes([0b0001_0110]))
    two = path_of("codebook_2").read_bytes()
    assert two.endswith(bytes([0b11_10_01_00, 0b10_00_01_11]))
    four = path_of("codebook_4").read_bytes()
    assert four.endswith(bytes([0xF0, 0x97]))
    eight = path_of("codebook_8").read_bytes()
    assert eight.endswith(bytes([0, 255, 7, 9, 128, 127, 1, 254]))
    assert [GOLDEN[f"codebook_{bits}"].payload_bytes for bits in BITS] == [5, 10, 34, 520]
    assert [GOLDEN[f"codebook_{bits}"].learned_numbers for bits in BITS] == [8, 8, 4, 8]


@pytest.mark.parametrize(
    ("text", "payload_bytes", "kind"),
    [
        (Dense(context=quantized(np.zeros((4, 512)), [0, 1])), 260, "codebook"),
        (Dense(context=quantized(np.zeros((4, 512)), [0, 1, 2, 3])), 520, "codebook"),
        (Dense(context=quantized(np.zeros((4, 512)), np.arange(16))), 1_056, "codebook"),
        (Dense(context=quantized(np.zeros((4, 512)), np.arange(256))), 2_560, "codebook"),
        (
            LowRank(
                p_a=quantized(np.zeros((4, 1)), [0, 1]), p_b=quantized(np.zeros((1, 512)), [0, 1])
            ),
            1 + 4 + 64 + 4,
            "low_rank+codebook",
        ),
        (
            PrunedKeyValues(
                lengths=np.full(12, 2, np.uint8), rows=quantized(np.zeros((24, 512)), [0, 1])
            ),
            12 + 24 * 64 + 4,
            "ragged+codebook",
        ),
    ],
)
def test_payloads_are_the_papers(text: TextEncoding, payload_bytes: int, kind: str) -> None:
    prompt = v2(
        "qcoop",
        templates=("a photo of a {}.",),
        backbone=LOW_RANK.backbone.model_copy(update={"text_width": 512}),
        text=text,
    )
    assert prompt.payload_bytes == payload_bytes
    data = to_bytes(prompt)
    assert len(data) - 8 - int.from_bytes(data[:8], "little") == payload_bytes
    assert describe(text) == kind


# --- round trips ----------------------------------------------------------------------------


def test_random_prompts_come_back_bit_for_bit(rng: np.random.Generator, tmp_path: Path) -> None:
    for index in range(20):
        m, r, d, c = (int(n) for n in rng.integers(1, 9, size=4))
        shape = (c, m, d) if index % 2 else (m, d)
        texts: list[TextEncoding] = [
            Dense(context=to_float16(rng.normal(size=shape))),
            LowRank(
                p_a=to_float16(rng.normal(size=(m, r))),
                p_b=to_float16(rng.normal(size=(r, d))),
                base="none",
            ),
        ]
        prompt = replace(
            LOW_RANK,
            class_names=tuple(f"class {n}" for n in range(c)),
            probe=to_float16(rng.normal(size=c)),
            text=texts[index % 3 == 0],
            backbone=LOW_RANK.backbone.model_copy(update={"text_width": d}),
        )
        written = write_prompt_file(prompt, tmp_path / "p.safetensors")
        assert_equal(read_prompt_file(tmp_path / "p.safetensors"), prompt)
        assert to_bytes(from_bytes(written)) == written
        assert version_of(written) == hashlib.sha256(written).hexdigest()


def random_tensor(rng: np.random.Generator, *shape: int) -> Any:
    bits = int(rng.choice([0, 1, 2, 4, 8]))
    if not bits:
        return to_float16(rng.normal(size=shape))
    return quantized(rng.integers(0, 2**bits, size=shape), rng.normal(size=2**bits))


def random_layer(rng: np.random.Generator, m: int, d: int) -> Dense | LowRank:
    if rng.integers(2):
        return Dense(context=random_tensor(rng, m, d))
    r = int(rng.integers(1, 4))
    return LowRank(p_a=random_tensor(rng, m, r), p_b=random_tensor(rng, r, d), base="none")


def random_ragged(rng: np.random.Generator, d: int) -> PrunedKeyValues:
    lengths = rng.integers(0, 4, size=5).astype(np.uint8)
    return PrunedKeyValues(lengths=lengths, rows=random_tensor(rng, int(lengths.sum()), d))


def test_random_prompts_of_the_newer_kinds_come_back_bit_for_bit(rng: np.random.Generator) -> None:
    for index in range(60):
        m, d, e, j = (int(n) for n in rng.integers([1, 1, 1, 2], 9))
        text: TextEncoding = (
            Deep(layers=tuple(random_layer(rng, m, d) for _ in range(j))),
            random_ragged(rng, d),
            Conditional(
                context=random_tensor(rng, m, d),
                w_1=random_tensor(rng, j, e),
                b_1=random_tensor(rng, j),
                w_2=random_tensor(rng, d, j),
                b_2=random_tensor(rng, d),
            ),
        )[index % 3]
        projections = tuple(
            Projection(
                factors=(random_tensor(rng, d, 2), random_tensor(rng, 2, e))
                if rng.integers(2)
                else (random_tensor(rng, d, e),),
                bias=random_tensor(rng, e) if rng.integers(2) else None,
            )
            for _ in range(j)
        )
        prompt = v2(
            "random",
            text=text,
            image=Projected(layers=projections) if index % 3 == 0 else random_ragged(rng, e),
            backbone=LOW_RANK.backbone.model_copy(update={"text_width": d}),
            temperature=float(rng.uniform(0.1, 10)),
            unknown_below=float(rng.uniform()),
        )
        data = to_bytes(prompt)
        assert_equal(from_bytes(data), prompt)
        assert to_bytes(from_bytes(data)) == data


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
    nan, wide = to_float16([[np.nan], [0], [1]]), to_float16(np.zeros((1, 4)))
    deep = b'{"__metadata__":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    foreign = safetensors_numpy.save({"weight": np.zeros(3, np.float32)})
    return {
        "empty": (b"", "it is empty"),
        "text": (b"this is a picture of a cat", "not a safetensors file"),
        "cut in the header": (data[:100], "truncated"),
        "cut in the numbers": (data[:-1], "tensors cannot be read"),
        "too long": (data + b"\0", "tensors cannot be read"),
        "huge header length": (b"\xff" * 8 + data[8:], "not a safetensors file"),
        "deep JSON": (len(deep).to_bytes(8, "little") + deep, "lists and objects"),
        "foreign": (foreign, "without the metadata of a prompt"),
        "header is a list": ((2).to_bytes(8, "little") + b"[]", "Not a prompt file"),
        "NaN": (with_tensors({"text.p_a": nan, "text.p_b": wide}), "NaN or infinite"),
        "float32": (
            with_tensors({"text.p_a": np.zeros((3, 1), np.float32), "text.p_b": wide}),
            "is float32; expected float16",
        ),
        "int8": (
            with_tensors({"text.p_a": np.zeros((3, 1), np.int8), "text.p_b": wide}),
            "is int8; expected float16",
        ),
        "factors do not fit": (
            with_tensors({"text.p_a": to_float16(np.zeros((3, 2))), "text.p_b": wide}),
            "do not fit",
        ),
        "three dimensions": (
            with_tensors({"text.p_a": to_float16(np.zeros((3, 1, 1))), "text.p_b": wide}),
            "expected 2-dimensional",
        ),
        "a tensor is missing": (
            with_tensors({"text.p_a": to_float16([[1.0]])}),
            "has the tensors",
        ),
        "an unexpected tensor": (
            with_tensors({"text.p_a": to_float16([[1.0]]), "text.p_b": wide, "evil": wide}),
            "unexpected tensors: \\['evil'\\]",
        ),
        "wrong width": (
            with_tensors(
                {"text.p_a": to_float16([[1.0]]), "text.p_b": to_float16(np.zeros((1, 5)))}
            ),
            "5 wide, but the text tower",
        ),
        "another version": (
            tampered(format_version=4),
            "format version 4; this prompt-serve reads 1 to 3",
        ),
        "version 0": (tampered(format_version=0), "format version 0"),
        "1 that says it is 2": (tampered(format_version=2), "version 2 needs the fields image"),
        "2 that says it is 3": (
            tampered(NEWER["deep"], format_version=3),
            "version 3 needs the fields classes, sketch, unlike_below",
        ),
        "3 that says it is 2": (
            tampered(LATEST["class_vectors_4"], format_version=2),
            "version 2 does not have the fields classes, sketch, unlike_below",
        ),
        "2 that says it is 1": (
            tampered(NEWER["deep"], format_version=1),
            "does not have the fields",
        ),
        "version true": (tampered(format_version=True), "format version True"),
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
        "long template": (tampered(templates=["a" * 1999 + "{}"]), "2,001 characters"),
        "no place for the name": (tampered(templates=["a photo"]), "must hold '{}' once"),
        "no base64": (tampered(probe="***"), "base64"),
        "odd probe": (tampered(probe=base64.b64encode(b"abc").decode()), "probe"),
        "short probe": (tampered(probe=base64.b64encode(b"ab").decode()), "one number per class"),
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
        "deep settings": (deep_settings(), "lists and objects"),
        "strange position": (tampered(class_position="nowhere"), "class_position"),
        **bad_quantized_tensors(),
        **bad_branches(),
    }


def bad_quantized_tensors() -> dict[str, tuple[bytes, str]]:
    """Quantized tensors for ``bad_files``."""
    one, two, odd = "codebook_1", "codebook_2", "low_rank_codebook"
    byte, shape = np.zeros(1, np.uint8), [2, 4]

    def header(bits: Any, shape: Any, name: str = one) -> bytes:
        return described(name, coded={"context": {"bits": bits, "shape": shape}})

    return {
        "three bits": (header(3, shape), "at 3 bits"),
        "no bits": (header(0, shape), "at 0 bits"),
        "a million bits": (header(10**6, shape), "at 1000000 bits"),
        "bits of another codebook": (header(2, shape), "codebook of 2 numbers contradicts"),
        "bits as text": (header("one", shape), "bits"),
        "too many places": (header(1, [3, 4]), "12 indices of 1 bits take 2 bytes"),
        "negative shape": (header(1, [-2, -4]), "contradicts itself"),
        "four axes": (header(1, [1, 1, 2, 4]), "contradicts itself"),
        "shape as text": (header(1, ["2", "x"]), "shape"),
        "huge shape": (header(1, [2**40, 2**40]), "too large"),
        "largest shape": (header(1, [2**13, 2**13]), "67,108,864 indices of 1 bits take"),
        "one too large": (header(1, [2**26 + 1]), "too large"),
        "huge shape of nothing": (header(1, [2**62, 0]), "too large"),
        "no shape": (header(1, []), "not zero"),  # one index, of eight bits
        "another width": (header(1, [4, 2]), "2 wide, but the text tower"),
        "rest bits": (changed(odd, p_b__indices=np.array([0x4D, 0x83], np.uint8)), "not zero"),
        "indices too short": (changed(two, context__indices=byte), "take 2 bytes"),
        "indices of floats": (changed(one, context__indices=to_float16([1.0])), "take 1 bytes"),
        "indices in two axes": (changed(one, context__indices=byte[None]), "take 1 bytes"),
        "no indices": (changed(one, context__indices=None), "lacks 'context.indices'"),
        "no codebook": (changed(one, context__codebook=None), "lacks 'context.codebook'"),
        "codebook of three": (
            changed(one, context__codebook=to_float16([1, 2, 3])),
            "of 3 numbers",
        ),
        "codebook in two axes": (changed(one, context__codebook=to_float16([[1, 2]])), "has shape"),
        "NaN in the codebook": (changed(one, context__codebook=to_float16([1, np.nan])), "finite"),
        "float32 codebook": (
            changed(one, context__codebook=np.zeros(2, np.float32)),
            "finite float16",
        ),
        "quantized and plain": (
            changed(one, context=to_float16(np.ones((2, 4)))),
            "twice, as float16 and quantized",
        ),
        "indices without a description": (described(one, coded=None), "has the tensors"),
        "a missing tensor is described as quantized": (
            described(one, coded={n: {"bits": 1, "shape": [2, 4]} for n in ("context", "another")}),
            "lacks 'another.indices'",
        ),
        "unknown field of a quantized tensor": (
            described(one, coded={"context": {"bits": 1, "shape": shape, "zip": True}}),
            "zip",
        ),
    }


def bad_branches() -> dict[str, tuple[bytes, str]]:
    """Branches of format version 2 for ``bad_files``."""
    layers = [{"encoding": "dense", "options": {}}] * 2
    ragged = {"encoding": "ragged", "options": {}}
    return {
        "no image description": (
            tampered(GOLDEN["deep"], image=None),
            "version 2 needs the fields",
        ),
        "no image tensors": (
            tampered(GOLDEN["codebook_1"], image={"encoding": "dense", "options": {}}),
            "has the tensors",
        ),
        "image of the template": (
            tampered(
                GOLDEN["calibrated"], image={"encoding": "low_rank", "options": {"base": "none"}}
            ),
            "has the tensors",
        ),
        "text projected": (
            described("projected_codebook", encoding="projected", options={"layers": 1}),
            "none of the 1",
        ),
        "a million projections": (
            described("projected", "image", options={"layers": 10**6}),
            "expected 1 to 1,000",
        ),
        "three projections": (
            described("projected", "image", options={"layers": 3}),
            "cannot have",
        ),
        "one projection": (described("projected", "image", options={"layers": 1}), "none of the 1"),
        "projections as text": (
            described("projected", "image", options={"layers": "two"}),
            "expected 1 to 1,000",
        ),
        "deep without layers": (described("deep", options={}), "description of each"),
        "deep, one layer": (described("deep", options={"layers": layers[:1]}), "none of the 1"),
        "deep, three layers": (
            described("deep", options={"layers": [*layers, layers[0]]}),
            "has the tensors",
        ),
        "deep of ragged": (
            described("deep", options={"layers": [ragged, layers[0]]}),
            "has the tensors",
        ),
        "deep, other words": (
            described(
                "deep",
                options={
                    "layers": [
                        {"encoding": "low_rank", "options": {"base": "none"}},
                        {"encoding": "low_rank", "options": {"base": "template"}},
                    ]
                },
            ),
            "has the tensors",
        ),
        "deep in the middle": (tampered(GOLDEN["deep"], class_position="middle"), "at the end"),
        "lengths too long": (
            changed("ragged", lengths=np.array([1, 1, 2], np.uint8)),
            "add up to 4, but there are 3 rows",
        ),
        "lengths in two axes": (
            changed("ragged", lengths=np.array([[1, 2]], np.uint8)),
            "one byte for each block",
        ),
        "lengths of 64 bits": (
            changed("ragged", lengths=np.array([1, 0, 2])),
            "one byte for each block",
        ),
        "no lengths": (changed("ragged", lengths=None), "has the tensors"),
        "network that does not fit": (
            changed("conditional", b_1=to_float16([1, 2, 3])),
            "do not fit each other",
        ),
        "network without a bias": (changed("conditional", b_2=None), "has the tensors"),
        "temperature 0": (tampered(GOLDEN["calibrated"], temperature=0.0), "temperature is 0.0"),
        "huge temperature": (tampered(GOLDEN["calibrated"], temperature=1e9), "temperature is"),
        "unknown below 1": (tampered(GOLDEN["calibrated"], unknown_below=1.0), "unknown images"),
        "negative threshold": (tampered(GOLDEN["calibrated"], unknown_below=-0.1), "unknown"),
    }


@pytest.mark.parametrize("kind", bad_files())
def test_a_bad_file_is_refused_with_the_reason(kind: str) -> None:
    data, reason = bad_files()[kind]
    with pytest.raises(PromptFileInvalid, match=reason):
        from_bytes(data)


def _with_document(document: bytes) -> bytes:
    """A safetensors file without tensors whose metadata is a document of JSON, escaped or not."""
    header = b'{"__metadata__":{"prompt_serve":"' + document + b'"}}'
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (_with_document(b" " * (17 * 2**20)), "bytes; at most 16,777,216"),
        (_with_document(b"[" + b"[]," * 400_000 + b"[]]"), "objects; at most 40,000"),
        (_with_document(b"{" * 50_000), "objects; at most 40,000"),
        (
            safetensors_numpy.save({}, {str(index): "" for index in range(70_000)}),
            "about 140,001 names",
        ),
        (_with_document(b"[" + b"7," * 600_000 + b"7]"), "values; at most 500,000"),
        (
            _with_document(b"[" + rb"\u007b\u002c" * 300_000 + b"]"),
            "lists and objects; at most 40,000",
        ),
        (tampered(metrics={"a": json.loads("[" * 40 + "]" * 40)}), "more than 32 deep"),
        (tampered(training=json.loads('{"a":' * 260 + "1" + "}" * 260)), "more than 32 deep"),
        (
            safetensors_numpy.save(
                {f"text.{index}": np.zeros(0, np.float16) for index in range(10_001)},
                {"prompt_serve": "{}"},
            ),
            "10,001 tensors; at most 10,000",
        ),
    ],
    ids=[
        "bytes",
        "empty lists",
        "nothing but objects",
        "metadata",
        "numbers",
        "escaped",
        "lists",
        "objects",
        "tensors",
    ],
)
def test_a_header_is_bounded_before_it_is_parsed(data: bytes, reason: str) -> None:
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
            probe=to_float16([0, 0, 0]),
        )
    with pytest.raises(PromptFileInvalid, match="expected float16"):
        replace(LOW_RANK, probe=np.zeros(2, np.float32))


def test_quantized_scales_of_class_vectors_are_refused() -> None:
    scales = quantized([0, 1], [0.5, 1.0])
    rows = LATEST["class_vectors_4"].classes
    assert rows is not None
    with pytest.raises(PromptFileInvalid, match="scales of class vectors are quantized"):
        ClassVectors(rows=rows.rows, scales=scales)  # type: ignore[arg-type]  # as a file may have


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"text": LOW_RANK.text}, "stand alone"),
        ({"class_names": ("a", "b", "c"), "probe": np.zeros(3, np.float16)}, "no further names"),
        ({"sketch": None}, "but no sketch"),
        ({"unlike_below": 1.0}, "expected a cosine"),
    ],
)
def test_class_vectors_that_contradict_their_prompt_are_refused(
    parts: dict[str, Any], reason: str
) -> None:
    with pytest.raises(PromptFileInvalid, match=reason):
        replace(LATEST["class_vectors_4"], **parts)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"temperature": 2.0}, "expected 1 and 0"),
        ({"unknown_below": 0.25}, "expected 1 and 0"),
        ({"text": LOW_RANK.text}, "stand alone"),
        ({"class_names": ("a", "b", "c"), "probe": np.zeros(3, np.float16)}, "no further names"),
        ({"sketch": None}, "but no sketch"),
    ],
)
def test_label_vectors_that_contradict_their_prompt_are_refused(
    parts: dict[str, Any], reason: str
) -> None:
    with pytest.raises(PromptFileInvalid, match=reason):
        replace(LATEST["label_vectors_4"], **parts)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"thresholds": to_float16([0.0, 0.5])}, "between 0 and 1"),
        ({"thresholds": to_float16([0.5, 1.0])}, "between 0 and 1"),
        ({"thresholds": to_float16([0.5])}, r"thresholds \(1,\)"),
        ({"scales": to_float16([1.0, 0.0])}, "above zero"),
        ({"scales": quantized([0, 1], [0.5, 1.0])}, "scales of label vectors are quantized"),
        ({"offsets": to_float16([[1.0, 0.0]])}, "expected 1-dimensional"),
        ({"offsets": to_float16([1.0, np.inf])}, "NaN or infinite"),
        ({"rows": to_float16([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])}, "no direction"),
    ],
)
def test_label_vectors_that_contradict_themselves_are_refused(
    tensors: dict[str, Any], reason: str
) -> None:
    vectors = LATEST["label_vectors_16"].classes
    assert isinstance(vectors, LabelVectors)
    with pytest.raises(PromptFileInvalid, match=reason):
        replace(vectors, **tensors)
