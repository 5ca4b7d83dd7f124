"""Every limit of a prompt file, on both sides of it, and the whole text of each refusal."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from prompt_serve.errors import PromptFileInvalid
from prompt_serve.prompts.class_vectors import ImageSketch
from prompt_serve.prompts.encodings import Deep, Dense, LowRank, Projected, Projection
from prompt_serve.prompts.prompt_file import (
    MAX_CLASSES,
    MAX_FILE_BYTES,
    MAX_TEMPLATE_CHARACTERS,
    check_class_names,
    check_kind,
    check_templates,
    from_bytes,
    read_prompt_file,
    thresholds_of,
    to_bytes,
    write_prompt_file,
)
from prompt_serve.prompts.wrong_files import MAX_TENSORS
from tests.golden import BACKBONE, GOLDEN, quantized, to_float16, v2
from tests.prompts.test_prompt_file import tampered, with_tensors

ZERO_SHOT = GOLDEN["zero_shot"]
VECTORS = GOLDEN["class_vectors_16"]
WIDTH = GOLDEN["deep"].image.layers[0].width  # type: ignore[union-attr]  # of the image tower
ROW = to_float16([[1.0] * WIDTH])
PROJECTION = Projection(factors=(to_float16(np.ones((4, WIDTH))),))
TWICE = tuple(f"class {n:02}" for n in range(12)) * 2


@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("unknown_below", [0.0, 0.999])
def test_numbers_at_a_limit_are_accepted(temperature: float, unknown_below: float) -> None:
    prompt = replace(ZERO_SHOT, temperature=temperature, unknown_below=unknown_below)

    read = from_bytes(to_bytes(prompt))
    assert (read.temperature, read.unknown_below) == (temperature, unknown_below)


@pytest.mark.parametrize(
    ("temperature", "unknown_below"),
    [(0.000999, 0.0), (1000.5, 0.0), (float("nan"), 0.0), (1.0, 1.0), (1.0, -0.001)],
)
def test_numbers_beyond_a_limit_are_refused(temperature: float, unknown_below: float) -> None:
    with pytest.raises(PromptFileInvalid, match=r"expected 0\.001 to 1,000, and 0 to less than 1"):
        replace(ZERO_SHOT, temperature=temperature, unknown_below=unknown_below)


@pytest.mark.parametrize("unlike_below", [-1.5, -1.001, 1.0, float("nan")])
def test_a_cosine_beyond_its_limits_is_refused(unlike_below: float) -> None:
    with pytest.raises(PromptFileInvalid, match="expected a cosine from -1 to less than 1"):
        replace(GOLDEN["sketched"], unlike_below=unlike_below)


def _image(layer: Any) -> dict[str, Any]:
    return {"image": layer}


IMAGE_REFUSED = (
    "The vectors of the image branch must be shared by all classes and must not build on the "
    "template's words."
)
GOOD, ON_WORDS = Dense(context=ROW), LowRank(p_a=to_float16([[1.0]]), p_b=ROW)
OF_CLASSES = Dense(context=to_float16(np.ones((2, 1, WIDTH))))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"probe": to_float16([1, np.nan])}, "The probe has NaN or infinite values."),
        ({"text": Projected(layers=(PROJECTION,))}, "The text branch cannot be 'projected'."),
        (
            {"text": GOLDEN["deep"].text, "class_position": "front"},
            "A deep context needs the class name at the end.",
        ),
        (_image(ON_WORDS), IMAGE_REFUSED),
        (_image(OF_CLASSES), IMAGE_REFUSED),
        (_image(Deep(layers=(ON_WORDS, GOOD))), IMAGE_REFUSED),
        (_image(GOLDEN["conditional"].text), IMAGE_REFUSED),
        *(
            (
                {"image": Projected(layers=(PROJECTION,)), "text": text},
                "A projected image branch needs a context in the text branch that all classes "
                "share.",
            )
            for text in (
                *(None, GOLDEN["ragged"].text, GOLDEN["conditional"].text),
                *(Dense(context=to_float16(np.ones((2, n, 4)))) for n in (1, 2, 16)),
            )
        ),
        (
            {"classes": VECTORS.classes},
            "Class vectors stand alone: the text and image branches must be empty.",
        ),
        ({"class_names": (), "probe": to_float16([])}, "There are no class names."),
        (
            {"class_names": ("a", "\udcff")},
            "Class name '\\udcff' is not UTF-8 text; rename its folder or save its table as UTF-8.",
        ),
        (
            {"class_names": ("a", "b" * 501)},
            f"Class name 1 has 501 characters; at most 500 are accepted: {'b' * 60!r}...",
        ),
        (
            {"class_names": ("an other", *TWICE), "probe": to_float16(np.zeros(25))},
            f"Class names occur more than once: {', '.join(TWICE[:10])}.",
        ),
    ],
)
def test_a_refusal_has_one_reason(fields: dict[str, Any], said: str) -> None:
    made: dict[str, Any] = {"text": Dense(context=to_float16(np.ones((2, 4)))), **fields}
    with pytest.raises(PromptFileInvalid) as refused:
        v2("by-hand", **made)

    assert str(refused.value) == said


@pytest.mark.parametrize("excess", [-1, 0, 1, 500])
def test_a_template_has_so_many_characters_at_most(excess: int) -> None:
    template = "a {} " + "x" * (MAX_TEMPLATE_CHARACTERS - 5 + excess)
    if excess <= 0:
        check_templates((template,), learned=True)
        return
    with pytest.raises(PromptFileInvalid) as refused:
        check_templates((template,), learned=True)

    assert str(refused.value) == (
        f"A template has {len(template):,} characters; at most 2,000 are accepted: "
        f"{template[:60]!r}..."
    )


@pytest.mark.parametrize("excess", [-1, 0, 1, 2])
def test_a_file_has_so_many_tensors_at_most(excess: int) -> None:
    size = MAX_TENSORS + excess
    data = with_tensors({f"t{n}": np.zeros(0, np.float16) for n in range(size)})
    with pytest.raises(PromptFileInvalid) as refused:
        from_bytes(data)

    too_many = f"The file has {size:,} tensors; at most 10,000 are accepted."
    assert (str(refused.value) == too_many) == (excess > 0)  # otherwise: unexpected ones


@pytest.mark.parametrize("document", ["5", '"text"', "null", "true", "[]", "[[1]]", "1.5"])
def test_a_header_that_is_no_object_is_invalid(document: str) -> None:
    data = safetensors_numpy.save({}, {"prompt_serve": document})
    with pytest.raises(PromptFileInvalid, match=r"^The header is not valid JSON: "):
        from_bytes(data)


@pytest.mark.parametrize("image", [GOOD, Deep(layers=(GOOD, GOOD))])
def test_vectors_that_all_classes_share_are_accepted(image: Any) -> None:
    assert v2("vpt", image=image).image is image


@pytest.mark.parametrize("names", [("one",), ("one", "two", "three")])
def test_vectors_of_another_number_of_classes_are_refused(names: tuple[str, ...]) -> None:
    assert VECTORS.classes is not None
    count = VECTORS.classes.n_classes
    if count == len(names):
        names = (*names, "more")
    with pytest.raises(PromptFileInvalid) as refused:
        replace(VECTORS, class_names=names, probe=to_float16(np.zeros(len(names))))

    assert str(refused.value) == (
        f"There are class vectors for {count} classes, but the file names {len(names)}. Class "
        f"vectors take no further names; train with all classes, or train a prompt."
    )


WRONG_KIND = "'classes' holds class or label vectors, and 'sketch' an image sketch."
SKETCH = ImageSketch(means=to_float16(np.ones((2, 3))))


@pytest.mark.parametrize(
    "fields",
    [{"sketch": VECTORS.classes}, {"classes": SKETCH}, {"classes": SKETCH, "sketch": SKETCH}],
)
def test_a_branch_of_another_kind_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(PromptFileInvalid) as refused:
        replace(VECTORS, **fields)

    assert str(refused.value) == WRONG_KIND


@pytest.mark.parametrize("name", ["class_vectors_16", "label_vectors_of_one"])
def test_a_file_with_a_sketch_for_its_classes_is_refused(name: str) -> None:
    described = tampered(GOLDEN[name], classes={"encoding": "image_sketch", "options": {}})
    data = with_document(described, {"classes.means": SKETCH.tensors()["means"]})
    with pytest.raises(PromptFileInvalid) as refused:
        from_bytes(data)

    assert str(refused.value) == WRONG_KIND


def with_document(data: bytes, tensors: dict[str, Any]) -> bytes:
    """Return a file with the document of another one and these tensors."""
    size = int.from_bytes(data[:8], "little")
    return safetensors_numpy.save(tensors, json.loads(data[8 : 8 + size])["__metadata__"])


@pytest.mark.parametrize("name", ["class_vectors_16", "label_vectors_16"])
def test_vectors_of_another_width_are_refused(name: str) -> None:
    prompt = GOLDEN[name]
    assert prompt.classes is not None
    backbone = BACKBONE.model_copy(update={"embed_dim": 77})
    kind = name.removesuffix("_16").replace("_", " ")
    with pytest.raises(PromptFileInvalid) as refused:
        replace(prompt, backbone=backbone)

    assert str(refused.value) == (
        f"The {kind} is {prompt.classes.width} wide, but the features of 'golden' are 77 wide."
    )


def test_names_at_the_limits_are_accepted() -> None:
    check_class_names(tuple(map(str, range(MAX_CLASSES))))
    check_class_names(("x" * 500, "y"))
    with pytest.raises(PromptFileInvalid, match="100,001 class names; at most 100,000"):
        check_class_names(tuple(map(str, range(MAX_CLASSES + 1))))


def test_files_at_the_limit_are_read(tmp_path: Path) -> None:
    path = tmp_path / "large"
    for size, said in (
        (MAX_FILE_BYTES, "Not a prompt file"),
        (MAX_FILE_BYTES + 1, f"has {MAX_FILE_BYTES + 1:,} bytes; a prompt file has at most 67,108"),
    ):
        with path.open("wb") as file:
            file.truncate(size)  # no blocks of the disk
        with pytest.raises(PromptFileInvalid, match=said):
            from_bytes(path.read_bytes())
        with pytest.raises(PromptFileInvalid, match=said):
            read_prompt_file(path)


def test_a_header_that_is_cut_within_its_padding_is_no_header() -> None:
    data = to_bytes(ZERO_SHOT)
    size = int.from_bytes(data[:8], "little")
    padded = (size + 8).to_bytes(8, "little") + data[8:] + b" " * 8
    check_kind(padded)
    for cut in range(1, 9):
        with pytest.raises(PromptFileInvalid, match="Not a prompt file"):
            check_kind(padded[:-cut])


@pytest.mark.parametrize("data", [b"", b"text", bytes(8), b"\x01" + bytes(7), b"PK\3\4" + bytes(9)])
def test_the_kind_of_other_files_is_refused(data: bytes) -> None:
    with pytest.raises(PromptFileInvalid, match="Not a prompt file"):
        check_kind(data)


def test_the_first_ten_faults_of_a_header_are_listed() -> None:
    wrong: dict[str, Any] = dict.fromkeys(
        ("name", "method", "class_names", "templates", "training", "metrics", "created", "probe"), 7
    )
    wrong |= {"tool_version": 7, "class_position": 7, "backbone": {"id": 7}}
    with pytest.raises(PromptFileInvalid) as refused:
        from_bytes(tampered(**wrong))

    said = str(refused.value)
    assert said.startswith("The header is not valid: name: ")
    assert said.count("; ") == 9
    assert "backbone.id: " in said
    assert "XX" not in said


def test_a_tensor_of_a_branch_that_is_null_is_named() -> None:
    data = with_tensors({"text.context": to_float16([[1, 2]])}, ZERO_SHOT)
    with pytest.raises(PromptFileInvalid) as refused:
        from_bytes(data)

    assert str(refused.value) == "The file contains unexpected tensors: ['context']."


def test_a_quantized_context_per_class_has_three_sides() -> None:
    prompt = v2("qcoop", text=Dense(context=quantized([[[0, 1, 1, 0]] * 2] * 2, [-0.5, 2.0])))

    assert to_bytes(from_bytes(to_bytes(prompt))) == to_bytes(prompt)


def test_only_label_vectors_have_thresholds() -> None:
    labels = GOLDEN["label_vectors_16"]
    assert thresholds_of(labels) == [float(t) for t in labels.classes.thresholds]  # type: ignore[union-attr]
    assert thresholds_of(VECTORS) is None
    assert thresholds_of(ZERO_SHOT) is None


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000])
def test_a_written_file_is_for_all_readers_and_signed_if_asked(umask: int, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    before = os.umask(umask)
    try:
        data = write_prompt_file(ZERO_SHOT, path, lambda unsigned: unsigned + b"signed")
    finally:
        os.umask(before)

    assert path.read_bytes() == data == to_bytes(ZERO_SHOT) + b"signed"
    assert path.stat().st_mode & 0o777 == 0o644
    assert write_prompt_file(ZERO_SHOT, path) == to_bytes(ZERO_SHOT)
