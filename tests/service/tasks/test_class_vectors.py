"""Class vectors of every bit width over HTTP: uploaded, described, answered beside prompts."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from prompt_serve.bundle import Bundle
from prompt_serve.preprocess import pixels_from_bytes
from prompt_serve.prompts.class_vectors import ClassVectors, ImageSketch
from prompt_serve.prompts.prompt_file import Prompt
from prompt_serve.prompts.quantized_tensor import QuantizedTensor, dequantize
from prompt_serve.schemas import TaskPrediction
from prompt_serve.scoring import softmax
from prompt_serve.service.inference.engine import Engine
from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.types import FloatArray
from tests.backbones import EMBED_DIM
from tests.service.prompts import Numbers, learned_prompt, picture, probed
from tests.service.tasks.test_prompt_kinds import LOGIT_ROUNDING, PETS, ask, put

pytestmark = pytest.mark.serve


def vectors(bits: int, seed: int = 0) -> ClassVectors:
    numbers, rng = Numbers(seed), np.random.default_rng(seed)
    if bits == 16:
        return ClassVectors(rows=numbers(3, EMBED_DIM), scales=np.ones(3, np.float16))
    rows = QuantizedTensor(
        indices=rng.integers(0, 2**bits, (3, EMBED_DIM), dtype=np.uint8),
        codebook=np.linspace(-1, 1, 2**bits).astype(np.float16),
    )
    return ClassVectors(rows=rows, scales=np.array([0.5, 1.0, 1.5], np.float16))


def class_vector_prompt(backbone: Backbone, classes: ClassVectors, **parts: object) -> Prompt:
    unprobed = Prompt(
        **{  # type: ignore[arg-type]  # checked by Prompt
            "name": "vectors",
            "method": "class-vectors",
            "class_names": tuple(PETS),
            "templates": ("a photo of a {}.",),
            "backbone": backbone.ref,
            "probe": np.zeros(3, np.float16),
            "classes": classes,
            **parts,
        }
    )
    return probed(unprobed, backbone)


def image_features(image: bytes, bundle: Bundle, engine: Engine) -> FloatArray:
    pixels = pixels_from_bytes(image, bundle.manifest.preprocessing)
    return np.asarray(engine.encode_images(pixels[np.newaxis])[0])


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_probabilities_are_those_of_the_stored_vectors(
    http: httpx.Client, bundle: Bundle, engine: Engine, tiny_backbone: Backbone, bits: int
) -> None:
    classes = vectors(bits)
    _, scale = classes.class_features()
    temperature = tiny_backbone.logit_scale / scale
    prompt = class_vector_prompt(tiny_backbone, classes, temperature=temperature)
    info = put(http, f"vectors-{bits}", prompt)
    assert info.encodings == {"classes": "class_vectors" + ("" if bits == 16 else "+codebook")}

    image = picture(bits)
    (answer,) = ask(http, image, [f"vectors-{bits}"])

    rows = dequantize(classes.rows).astype(np.float64)
    stored = classes.scales.astype(np.float64)[:, np.newaxis] * rows
    expected = softmax((image_features(image, bundle, engine) @ stored.T).astype(np.float32))
    found = {c.class_name: c.probability for c in answer.classes}
    assert [found[name] for name in PETS] == pytest.approx(expected, abs=LOGIT_ROUNDING)
    assert answer.similarity is None


def test_an_image_unlike_the_sketch_is_unknown(
    http: httpx.Client, bundle: Bundle, engine: Engine, tiny_backbone: Backbone
) -> None:
    image = picture(7)
    features = image_features(image, bundle, engine)
    like = ImageSketch(means=np.stack([-features, features]).astype(np.float16))
    unlike = ImageSketch(means=-features[np.newaxis].astype(np.float16))
    for name, sketch in (("like", like), ("unlike", unlike)):
        parts = {"sketch": sketch, "unlike_below": 0.5}
        info = put(http, name, class_vector_prompt(tiny_backbone, vectors(4), **parts))
        assert info.unlike_below == 0.5

    alike, different = ask(http, image, ["like", "unlike"])

    assert (alike.unknown, different.unknown) == (False, True)
    assert alike.similarity == pytest.approx(1.0, abs=1e-3)
    assert different.similarity == pytest.approx(-1.0, abs=1e-3)


def test_widths_and_prompts_answer_as_alone_under_load(
    http: httpx.Client, tiny_backbone: Backbone
) -> None:
    names = [f"load-{bits}" for bits in (1, 2, 4, 8, 16)]
    for name, bits in zip(names, (1, 2, 4, 8, 16), strict=True):
        put(http, name, class_vector_prompt(tiny_backbone, vectors(bits, seed=bits)))
    put(http, "load-prompt", learned_prompt(tiny_backbone, PETS))
    names.append("load-prompt")
    images = [picture(seed) for seed in range(4)]
    alone = {(i, n): ask(http, image, [n])[0] for i, image in enumerate(images) for n in names}

    def mixed(turn: int) -> list[tuple[int, str, TaskPrediction]]:
        image, chosen = turn % len(images), names[turn % 3 :: 2] + names[: turn % 2]
        chosen = list(dict.fromkeys(chosen))
        answers = ask(http, images[image], chosen)
        return [(image, n, answer) for n, answer in zip(chosen, answers, strict=True)]

    with ThreadPoolExecutor(8) as pool:
        answered = [found for turn in pool.map(mixed, range(120)) for found in turn]

    assert {name for _, name, _ in answered} == set(names)
    for image, name, answer in answered:
        expected = {c.class_name: c.probability for c in alone[image, name].classes}
        assert {c.class_name: c.probability for c in answer.classes} == pytest.approx(
            expected, abs=1e-3
        )
