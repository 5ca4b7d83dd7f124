"""Prompt files of which one thing is wrong are refused with a reason, whatever that thing is."""

import json
import tracemalloc
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from prompt_serve.errors import PromptFileInvalid
from prompt_serve.prompts.class_vectors import ClassVectors
from prompt_serve.prompts.image_rows import MAX_ROWS, MAX_VALUE, lay_out
from prompt_serve.prompts.prompt_file import from_bytes, to_bytes
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.types import FloatArray
from tests.golden import GOLDEN, quantized, to_float16, v3


def changed(name: str, arrays: Mapping[str, Any] | None = None, **header: Any) -> bytes:
    """The golden file with other arrays, and other fields of the header."""
    data = to_bytes(GOLDEN[name])
    size = int.from_bytes(data[:8], "little")
    document = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["prompt_serve"])
    given = dict(arrays or {})
    kept = {} if None in given.values() else safetensors_numpy.load(data)
    made = {key: value for key, value in {**kept, **given}.items() if value is not None}
    return safetensors_numpy.save(made, {"prompt_serve": json.dumps({**document, **header})})


def deep(options: Any) -> dict[str, Any]:
    layer = {"encoding": "low_rank", "options": options}
    return {"encoding": "deep", "options": {"layers": [layer, {"encoding": "dense"}]}}


def coded(shape: list[int], name: str = "context", encoding: str = "dense") -> dict[str, Any]:
    return {"encoding": encoding, "options": {}, "coded": {name: {"bits": 1, "shape": shape}}}


CODES: dict[str, Any] = {
    "": None,  # nothing of the golden file
    "text.context.indices": np.zeros(0, np.uint8),
    "text.context.codebook": to_float16([0, 1]),
}


@pytest.mark.parametrize("options", [[], "base", 5, None, True, 0.5])
def test_options_that_are_no_object(options: Any) -> None:
    with pytest.raises(PromptFileInvalid, match="options of block 0 of a deep context"):
        from_bytes(changed("deep", text=deep(options)))


@pytest.mark.parametrize("base", ["other", "", None, 1, ["none"], {}])
def test_an_unknown_base(base: Any) -> None:
    text = {"encoding": "low_rank", "options": {"base": base}}
    for data in (changed("low_rank", text=text), changed("deep", text=deep({"base": base}))):
        with pytest.raises(PromptFileInvalid, match="Unknown base"):
            from_bytes(data)


@pytest.mark.parametrize("index", ["9" * 5000, "00", "٣", "-1", "", "2", "1e0"])
@pytest.mark.parametrize("branch", ["text", "image"])
def test_a_tensor_of_no_block(branch: str, index: str) -> None:
    data = changed("projected", {f"{branch}.{index}.p_a": to_float16([[1.0]])})

    with pytest.raises(PromptFileInvalid, match="belongs to none of the 2 blocks"):
        from_bytes(data)


@pytest.mark.parametrize(
    "shape",
    [
        [0, 10**30],
        [10**30, 0],
        [0, 2**62, 2**62],
        [2**31, 0, 2**40],
        [2**40],
        [9000, 9000],
        [2**64],
    ],
)
def test_a_shape_beyond_all_limits(shape: list[int]) -> None:
    with pytest.raises(PromptFileInvalid, match="too large"):
        from_bytes(changed("codebook_1", CODES, text=coded(shape)))


@pytest.mark.parametrize("shape", [[], [0], [0, 5], [-1, -1], [1, 1, 1, 1], [0, 0, 0]])
def test_a_shape_that_no_context_has(shape: list[int]) -> None:
    with pytest.raises(PromptFileInvalid):
        from_bytes(changed("codebook_1", CODES, text=coded(shape)))


@pytest.mark.parametrize("branch", ["text", "image"])
def test_quantized_lengths(branch: str) -> None:
    arrays = {
        "": None,
        f"{branch}.lengths.indices": np.zeros(1, np.uint8),
        f"{branch}.lengths.codebook": to_float16([0, 1]),
        f"{branch}.rows": to_float16(np.zeros((0, 4))),
    }
    other = {"image": None} if branch == "text" else {"text": None}
    header = {branch: coded([2], "lengths", "ragged"), **other}

    with pytest.raises(PromptFileInvalid, match="lengths are quantized"):
        from_bytes(changed("ragged", arrays, **header))


def test_many_quantized_numbers_take_little_memory() -> None:
    """A file of one bit per number is read in a few bytes per number."""
    n, width = 20_000, 256
    rng = np.random.default_rng(0)
    indices = rng.integers(0, 2, (n, width), dtype=np.uint8)
    prompt = v3(
        class_names=tuple(f"class {index}" for index in range(n)),
        probe=np.zeros(n, np.float16),
        backbone=GOLDEN["low_rank"].backbone.model_copy(update={"embed_dim": width}),
        classes=ClassVectors(rows=quantized(indices, [-1, 1]), scales=np.ones(n, np.float16)),
    )
    data = to_bytes(prompt)
    del prompt

    tracemalloc.start()
    try:
        from_bytes(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 5 * n * width  # 1 for the indices, and what is made of them in passing


def keep(context: FloatArray, rows: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    return context, rows, rows


@pytest.mark.parametrize("branch", ["context", "deeper", "keys_values"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2 * MAX_VALUE, 1e30])
def test_image_vectors_of_no_usable_size(branch: str, value: float) -> None:
    bad = np.zeros((3, 4), np.float32)
    bad[1, 2] = value
    good = np.zeros((3, 4), np.float32)
    vectors = {
        "context": PromptVectors(context=bad),
        "deeper": PromptVectors(context=good, deeper=(bad,)),
        "keys_values": PromptVectors(keys_values=(good, bad)),
    }[branch]

    with pytest.raises(PromptFileInvalid, match=r"values up to .*at most 65,504"):
        lay_out(vectors, layers=2, width=4, project=keep)


@pytest.mark.parametrize("branch", ["context", "deeper", "keys_values"])
def test_too_many_image_vectors(branch: str) -> None:
    most, more = (np.zeros((n, 4), np.float32) for n in (MAX_ROWS, MAX_ROWS + 1))

    def vectors(rows: FloatArray) -> PromptVectors[FloatArray]:
        return {
            "context": PromptVectors(context=rows),
            "deeper": PromptVectors(context=rows, deeper=(rows,)),
            "keys_values": PromptVectors(keys_values=(rows, rows)),
        }[branch]

    assert lay_out(vectors(most), layers=2, width=4, project=keep)
    with pytest.raises(PromptFileInvalid, match="257 vectors for one block; at most 256"):
        lay_out(vectors(more), layers=2, width=4, project=keep)


@pytest.mark.parametrize("scale", [65504.0, 1.0, 1e-3, 6e-8])
@pytest.mark.parametrize("size", [65504.0, 1.0, 1e-4, 6e-8])
def test_class_features_are_unit_vectors_for_numbers_of_any_size(size: float, scale: float) -> None:
    rng = np.random.default_rng(1)
    rows = to_float16(size * rng.choice([-1.0, 1.0], (5, 8)))

    features, _ = ClassVectors(rows=rows, scales=to_float16([scale] * 5)).class_features()

    assert np.linalg.norm(features, axis=1) == pytest.approx(np.ones(5), abs=1e-6)
