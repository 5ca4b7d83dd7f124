"""Prompt files that are valid and odd, or valid but for one field, and the answers they must get.

Everything is drawn from a seed. The class features are those of the encoders of a bundle; what
follows, from cosines to probabilities, is written out here in float64, with the interval in which
an answer may be: features of another batch differ in the last bits, and a temperature of 0.001 or
a slope of 10^9 makes a lot of them.
"""

import json
import math
import random
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from safetensors import numpy as safetensors_numpy

from drills.answers import picture
from prompt_serve.bundle import open_bundle, shipped_bundle
from prompt_serve.engines.encoders import Encoders
from prompt_serve.errors import PromptServeError
from prompt_serve.preprocess import pixels_from_bytes
from prompt_serve.prompts.class_features import class_features
from prompt_serve.prompts.class_vectors import ClassVectors, ImageSketch, LabelVectors
from prompt_serve.prompts.encodings import (
    Deep,
    Dense,
    Encoding,
    LowRank,
    Projected,
    Projection,
    PrunedKeyValues,
)
from prompt_serve.prompts.probe import probe
from prompt_serve.prompts.prompt_file import (
    METADATA_KEY,
    Prompt,
    from_bytes,
    thresholds_of,
    to_bytes,
    version_of,
)
from prompt_serve.prompts.quantized_tensor import BITS, QuantizedTensor, StoredTensor
from prompt_serve.types import BackboneRef, ClassPosition, DoubleArray, FloatArray, HalfArray

N_IMAGES = 3
COSINE = 5e-5  # by how much a cosine may differ; 2e-3 of a logit, as in ``drills.answers``
ROUNDED = 1e-4  # by how much a probability may differ beside
MOST_DEPTH = 28  # of metrics; documents may be 32 deep, with what is around them
_LARGEST, _SMALLEST = 65_504.0, 6e-8  # of float16
_TRIES = 20

Draws = random.Random


@dataclass(frozen=True)
class Answers:
    """What a prompt file answers for one image: intervals of the probabilities, by label."""

    cosines: DoubleArray  # (C,)
    low: DoubleArray  # (C,)
    high: DoubleArray  # (C,)
    similarity: float | None


@dataclass(frozen=True)
class OddPrompt:
    """A file, what is in it, and the answers of each image; none if it may be refused."""

    seed: int
    what: str
    data: bytes
    version: str
    class_names: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    method: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    unknown_below: float = 0.0
    unlike_below: float = -1.0
    thresholds: tuple[float, ...] | None = None
    answers: tuple[Answers, ...] = ()

    @classmethod
    def of(
        cls, prompt: Prompt, answers: tuple[Answers, ...], seed: int, what: str, data: bytes
    ) -> "OddPrompt":
        """Return what a file of a prompt is, and must answer."""
        thresholds = thresholds_of(prompt)
        return cls(
            seed, what, data, version_of(data), prompt.class_names, prompt.templates,
            prompt.method, prompt.metrics, prompt.unknown_below, prompt.unlike_below,
            None if thresholds is None else tuple(thresholds), answers,
        )  # fmt: skip


def images() -> list[bytes]:
    """Return the images that are classified."""
    return [picture(n) for n in range(N_IMAGES)]


def valid_prompt(seed: int, bundle: str) -> OddPrompt:
    """Draw a file that is valid."""
    draws, side = random.Random(seed), _side(bundle)
    for _ in range(_TRIES):
        drawn = _drawn(draws, side)
        if drawn is None:
            continue
        prompt, answers, what = drawn
        data, form = _written(prompt, draws)
        return OddPrompt.of(prompt, answers, seed, f"{what}, {form}", data)
    raise RuntimeError(f"No valid prompt in {_TRIES} draws of seed {seed}.")


def nearly_valid_prompt(seed: int, bundle: str) -> OddPrompt:
    """Draw a file of which one thing is changed; it may be valid still, with other answers."""
    base, draws = valid_prompt(seed, bundle), random.Random(f"change {seed}")
    header, arrays = _opened(base.data)
    name = draws.choice(sorted(CHANGES))
    shown = CHANGES[name](header, arrays, draws)
    data = safetensors_numpy.save(arrays, {METADATA_KEY: json.dumps(header, ensure_ascii=False)})
    what = f"{name} {shown} of {base.what}"
    try:
        prompt = from_bytes(data)
        answers = _answers(prompt, _side(bundle))
    # Also what reading it must not raise: the service is asked all the same.
    except Exception:
        return OddPrompt(seed, what, data, version_of(data))
    return OddPrompt.of(prompt, answers, seed, what, data)


def judge(file: OddPrompt, image: int, prediction: Mapping[str, Any]) -> str | None:
    """Say what is wrong with the prediction of a file for an image; None if nothing is.

    All classes must have been asked for.
    """
    expected = file.answers[image]
    labels = [score["label"] for score in prediction["classes"]]
    if sorted(labels) != list(range(len(file.class_names))):
        return f"labels {labels[:20]}"
    if prediction["version"] != file.version:
        return f"version {prediction['version'][:8]}"
    for score in prediction["classes"]:
        label, probability = score["label"], score["probability"]
        if score["class_name"] != file.class_names[label]:
            return f"class {score['class_name']!r} under label {label}"
        if not expected.low[label] - ROUNDED <= probability <= expected.high[label] + ROUNDED:
            between = f"{expected.low[label]} to {expected.high[label]}"
            return f"probability {probability} of label {label}, expected {between}"
    best = prediction["classes"][0]["probability"]
    similarity = prediction.get("similarity")
    if (similarity is None) != (expected.similarity is None):
        return f"similarity {similarity}"
    if similarity is not None and not math.isclose(
        similarity, expected.similarity or 0.0, abs_tol=COSINE
    ):
        return f"similarity {similarity}, expected {expected.similarity}"
    unknown = similarity is not None and similarity < file.unlike_below
    if file.thresholds is None:
        unknown = unknown or bool(np.float32(best) < np.float32(file.unknown_below))
    if prediction.get("unknown", False) != unknown:
        return f"unknown {prediction['unknown']} at {best}, {similarity}"
    return _judge_labels(file, prediction)


def _judge_labels(file: OddPrompt, prediction: Mapping[str, Any]) -> str | None:
    if file.thresholds is None:
        return None if prediction.get("labels") is None else "labels of a task with one class"
    thresholds = np.array(file.thresholds, np.float32)
    own = [
        score["class_name"]
        for score in prediction["classes"]
        if np.float32(score["probability"]) >= thresholds[score["label"]]
    ]
    return (
        None
        if prediction.get("labels") == own
        else f"labels {prediction['labels']}, expected {own}"
    )


@dataclass(frozen=True)
class _Side:
    """A bundle: its encoders, and the images as pixels."""

    encoders: Encoders
    pixels: tuple[Any, ...]

    @property
    def ref(self) -> BackboneRef:
        return self.encoders.ref

    @property
    def text_layers(self) -> int:
        return self.encoders.bundle.manifest.text_layers

    def encode(self, prompt: Prompt) -> FloatArray:
        """Return the features of the images (N, E), with the vectors of a prompt."""
        rows = self.encoders.images.image_rows(prompt)
        own = () if rows is None else (rows,)
        return np.concatenate(
            [self.encoders.encode_pixels(one[np.newaxis], own) for one in self.pixels]
        )


@cache
def _side(name: str) -> _Side:
    bundle = open_bundle(shipped_bundle(name))
    encoders = Encoders.open(bundle, cuda_device=None, threads=1)
    pixels = tuple(pixels_from_bytes(one, bundle.manifest.preprocessing) for one in images())
    return _Side(encoders, pixels)


def _answers(prompt: Prompt, side: _Side) -> tuple[Answers, ...]:
    """Return the answers of a valid prompt for each image."""
    own = class_features(prompt, side.encoders.bundle.text_side, side.encoders.encode_text)
    features = side.encode(prompt).astype(np.float64)  # (N, E)
    cosines = features @ own.T.astype(np.float64)  # (N, C)
    if isinstance(prompt.classes, LabelVectors):
        low, high = _of_labels(prompt.classes, cosines)
    else:
        scale = side.encoders.bundle.manifest.logit_scale / prompt.temperature
        low, high = _of_softmax(scale * cosines, 2 * scale * COSINE)
    similar: list[float | None] = [None] * len(features)
    if prompt.sketch is not None:
        means = _plain(prompt.sketch.means)
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        similar = list((features @ means.T).max(axis=1))
    return tuple(map(Answers, cosines, low, high, similar))


def _of_softmax(logits: DoubleArray, error: float) -> tuple[DoubleArray, DoubleArray]:
    """Return the least and the largest probabilities of logits that are off by ``error``."""
    largest = logits.max(axis=1, keepdims=True)
    total = np.log(np.exp(logits - largest).sum(axis=1, keepdims=True)) + largest
    logarithm = logits - total  # of the probabilities
    with np.errstate(over="ignore", divide="ignore"):
        odds = logarithm - np.log(-np.expm1(np.minimum(logarithm, -1e-300)))
        return _sigmoid(odds - error), _sigmoid(odds + error)


def _of_labels(classes: LabelVectors, cosines: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
    vectors = classes.scales.astype(np.float64)[:, np.newaxis] * _plain(classes.rows)
    slopes = np.linalg.norm(vectors, axis=1)
    odds = slopes * cosines + classes.offsets.astype(np.float64)
    error = slopes * COSINE + np.abs(odds) * 1e-6
    return _sigmoid(odds - error), _sigmoid(odds + error)


def _sigmoid(odds: DoubleArray) -> DoubleArray:
    return 0.5 * (1.0 + np.tanh(0.5 * odds))


def _plain(tensor: StoredTensor) -> DoubleArray:
    if isinstance(tensor, QuantizedTensor):
        return tensor.codebook.astype(np.float64)[tensor.indices]
    return tensor.astype(np.float64)


# Prompts


def _drawn(draws: Draws, side: _Side) -> tuple[Prompt, tuple[Answers, ...], str] | None:
    """Draw a prompt with the answers it must get; None if it happens to be none."""
    kind = draws.choice(("zero-shot", "text", "text", "text", "classes", "labels"))
    count = draws.choice((1, 2, 2, 3, 7, 16, 17, 64))
    if draws.random() < 0.04:
        count = draws.choice((300, 1000, 2000))
    if kind == "classes":
        count = max(2, count)
    encoded = kind in ("zero-shot", "text")
    names = class_names(draws, count, short=encoded)
    parts: dict[str, Any] = {}
    what = kind
    if kind == "text":
        parts, what = _contexts(draws, side, count)
    elif kind in ("classes", "labels"):
        rows = _tensor(draws, (count, side.ref.embed_dim))
        scales = _vector(draws, count, positive=True)
        vectors: dict[str, Any] = {"rows": rows, "scales": scales}
        if kind == "labels":
            vectors["offsets"] = _vector(draws, count)
            vectors["thresholds"] = _thresholds(draws, count)
        parts["classes"] = vectors
    parts.setdefault("templates", _templates(draws, many=kind == "zero-shot" and count < 100))
    if draws.random() < 0.4:
        parts["sketch"] = _tensor(draws, (draws.choice((1, 2, count, 40)), side.ref.embed_dim))
        parts["unlike_below"] = draws.choice((-1.0, -0.999, -1e-300, 0.0, 0.3, 0.999999999))
    if kind != "labels":
        parts["temperature"] = draws.choice(
            (
                1.0,
                1.0,
                1,
                1e-3,
                1e3,
                0.0010000000000000002,
                999.9999999999999,
                draws.uniform(0.1, 5),
            )
        )
        parts["unknown_below"] = draws.choice((0.0, 0, 5e-324, 0.5, 0.999999999, draws.random()))
    try:
        parts = {**parts, **_built(parts)}
        prompt = Prompt(
            name=draws.choice(("", "pets", odd_text(draws, 40))),
            method=odd_text(draws, 30) or "dip",
            class_names=names,
            backbone=side.ref,
            probe=np.zeros(count, np.float16),
            training={odd_text(draws, 8): odd_value(draws, MOST_DEPTH)},
            metrics={odd_text(draws, 8): odd_value(draws, MOST_DEPTH) for _ in range(3)},
            created=draws.choice(("", "2026-01-01T00:00:00Z", odd_text(draws, 30))),
            tool_version=odd_text(draws, 10),
            **parts,
        )
        text_side, encode = side.encoders.bundle.text_side, side.encoders.encode_text
        with np.errstate(all="ignore"):
            own = class_features(prompt, text_side, encode)
            if not np.isfinite(own).all():
                return None
            prompt = replace(prompt, probe=probe(own))
            return prompt, _answers(prompt, side), f"{what} of {count}"
    except PromptServeError:
        return None  # of values that make no prompt, such as a vector of zeros


def _built(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the encodings of the drawn tensors, which may be none."""
    built: dict[str, Any] = {}
    if "sketch" in parts:
        built["sketch"] = ImageSketch(means=parts["sketch"])
    if "classes" in parts:
        kind = LabelVectors if "offsets" in parts["classes"] else ClassVectors
        built["classes"] = kind(**parts["classes"])
    for branch in ("text", "image"):
        if branch in parts:
            built[branch] = parts[branch]()
    return built


def _contexts(draws: Draws, side: _Side, count: int) -> tuple[dict[str, Any], str]:
    """Draw the contexts of both towers, and a template and position that fit."""
    m = draws.choice((1, 1, 2, 4, 5, 9))
    position: ClassPosition = draws.choice(("end", "end", "middle", "front"))
    template = f"{' '.join(['X'] * m)} {{}}{draws.choice(('', '.', ' on a mat', ' ✓'))}"
    kind = draws.choice(("dense", "own", "low_rank", "deep", "ragged"))
    width, layers = side.ref.text_width, side.text_layers
    build: Callable[[], Encoding]
    depth = 1
    match kind:
        case "dense":
            context = _tensor(draws, (m, width))
            build = lambda: Dense(context=context)  # noqa: E731
        case "own":
            m = min(m, 4)
            context = _tensor(draws, (count, m, width), large=count <= 64)
            build = lambda: Dense(context=context)  # noqa: E731
            template = f"{' '.join(['X'] * m)} {{}}"
        case "low_rank":
            build = _low_rank(draws, m, width, draws.choice(("template", "none")))
        case "deep":
            position, depth = "end", draws.randint(2, layers)
            build = _deep(draws, m, width, depth, base=draws.choice(("template", "none")))
        case _:
            position = "end"
            build = _pruned(draws, layers, width)
    parts: dict[str, Any] = {"text": build, "templates": (template,), "class_position": position}
    size = side.encoders.bundle.manifest.image_tower
    if size is None or draws.random() < 0.3:
        return parts, kind
    kinds = ["dense", "low_rank", "deep", "ragged"]
    kinds += ["projected"] * 2 * (kind in ("dense", "low_rank", "deep"))
    image = draws.choice(kinds)
    rows = draws.choice((1, 2, 5, 60))
    match image:
        case "dense":
            vectors = _tensor(draws, (rows, size.width))
            parts["image"] = lambda: Dense(context=vectors)
        case "low_rank":
            parts["image"] = _low_rank(draws, rows, size.width, "none", scale=10.0)
        case "deep":
            depth = draws.randint(2, size.layers)
            parts["image"] = _deep(draws, rows, size.width, depth, base="none", scale=10.0)
        case "ragged":
            parts["image"] = _pruned(draws, size.layers, size.width)
        case _:
            parts["image"] = _projected(draws, depth, width, size.width)
    return parts, f"{kind} and {image}"


def _low_rank(
    draws: Draws, m: int, width: int, base: Any, scale: float = _LARGEST
) -> Callable[[], LowRank]:
    rank = draws.choice((1, 1, 2, 7))
    p_a = _tensor(draws, (m, rank), scale=scale)
    p_b = _tensor(draws, (rank, width), scale=scale)
    return lambda: LowRank(p_a=p_a, p_b=p_b, base=base)


def _deep(
    draws: Draws, m: int, width: int, depth: int, *, base: Any, scale: float = _LARGEST
) -> Callable[[], Deep]:
    made = [
        _low_rank(draws, m, width, "none" if block else base, scale)
        if draws.random() < 0.5
        else _dense(draws, m, width)
        for block in range(depth)
    ]
    return lambda: Deep(layers=tuple(one() for one in made))


def _dense(draws: Draws, m: int, width: int) -> Callable[[], Dense]:
    context = _tensor(draws, (m, width))
    return lambda: Dense(context=context)


def _pruned(draws: Draws, layers: int, width: int) -> Callable[[], PrunedKeyValues]:
    most = draws.choice((0, 1, 3, 40, 255))
    lengths = np.array([draws.randint(0, most) for _ in range(layers)], np.uint8)
    if draws.random() < 0.2:
        lengths[draws.randrange(layers)] = 255
    rows = _tensor(draws, (int(lengths.sum()), width))
    return lambda: PrunedKeyValues(lengths=lengths, rows=rows)


def _projected(draws: Draws, depth: int, d: int, width: int) -> Callable[[], Projected]:
    def projection() -> Projection:
        scale = draws.choice((1e-3, 0.02, 1.0))
        bias = _plain_tensor(draws, (width,), 1.0) if draws.random() < 0.5 else None
        if draws.random() < 0.5:
            return Projection(factors=(_plain_tensor(draws, (d, width), scale),), bias=bias)
        rank = draws.choice((1, 3))
        factors = _plain_tensor(draws, (d, rank), scale), _plain_tensor(draws, (rank, width), scale)
        return Projection(factors=factors, bias=bias)

    return lambda: Projected(layers=tuple(projection() for _ in range(depth)))


# Numbers


def _tensor(
    draws: Draws, shape: Sequence[int], *, scale: float = _LARGEST, large: bool = True
) -> StoredTensor:
    """Draw finite numbers of a shape: usual ones, the largest, the smallest, zeros; or coded."""
    if math.prod(shape) and draws.random() < 0.4:
        bits = draws.choice(BITS)
        rng = np.random.default_rng(draws.getrandbits(64))
        codebook = _plain_tensor(draws, (2**bits,), scale)
        return QuantizedTensor(
            indices=rng.integers(0, 2**bits, tuple(shape), dtype=np.uint8), codebook=codebook
        )
    return _plain_tensor(draws, shape, scale if large else 1.0)


def _plain_tensor(draws: Draws, shape: Sequence[int], scale: float) -> HalfArray:
    rng = np.random.default_rng(draws.getrandbits(64))
    size = min(scale, draws.choice((0.02, 0.5, 0.5, 1.0, 100.0, _LARGEST, _SMALLEST)))
    numbers = np.clip(size * rng.standard_normal(tuple(shape)), -scale, scale)
    if numbers.size and draws.random() < 0.3:  # a few that are far from all others
        for value in (scale, -scale, _SMALLEST, -0.0, 0.0):
            numbers.flat[rng.integers(numbers.size)] = value
    return numbers.astype(np.float16)


def _vector(draws: Draws, count: int, *, positive: bool = False) -> HalfArray:
    numbers = _plain_tensor(draws, (count,), _LARGEST)
    if not positive:
        return numbers
    return np.maximum(np.abs(numbers), np.float16(_SMALLEST)).astype(np.float16)


def _thresholds(draws: Draws, count: int) -> HalfArray:
    values = (_SMALLEST, 0.5, 0.5, 0.25, 0.99951171875, draws.uniform(0.001, 0.999))
    return np.array([draws.choice(values) for _ in range(count)], np.float16)


# Texts

_PIECES = (
    "cat", "dog", "CAT", "Straße", "ǅ", "İ", "é", "e\u0301", "猫", "りんご", "🐈", "👩‍👩‍👧",
    "العربية", "\u202e", "\u200b", "\u00ad", "\u2800", "\u3164", "\ufeff", "\0", "\n", "\t",
    "\x1b[2J", "\x07",
    "\x9b", "<script>alert(1)</script>", "&amp;", "&nbsp;", "{}", "{", "%s", "\\", '"', "'", "`",
    "_", "__", ";", ",", "../..", "NaN", "null", "1e999", "Ã©", "\ufffd", "\U0010ffff", "\ud7ff",
    "ﷺ", "ﬃ", "½", "²", "١٢", "a" * 12, "=1+1", "-", ".", "!", "don't", "'s", "<end_of_text>",
    "<start_of_text>",
)  # fmt: skip


def odd_text(draws: Draws, most: int) -> str:
    """Draw a text of any characters but surrogates."""
    pieces = []
    for _ in range(draws.randint(0, 4)):
        pieces.append(draws.choice(_PIECES) if draws.random() < 0.7 else _character(draws))
    return "".join(pieces)[:most]


def _character(draws: Draws) -> str:
    while True:
        code = draws.randrange(draws.choice((0x80, 0x3000, 0x110000)))
        if not 0xD800 <= code <= 0xDFFF:
            return chr(code)


def class_names(draws: Draws, count: int, *, short: bool) -> tuple[str, ...]:
    """Draw distinct names that are not blank; ``short`` ones are few tokens."""
    names: dict[str, None] = {}
    while len(names) < count:
        name = odd_text(draws, 6 if short else 400)
        if count > 64 or draws.random() < 0.3:
            name += f" {len(names)}"
        if not short and draws.random() < 0.02:
            name = (name or "x") * 500
        name = name[:500]
        if name.strip() and not any(unicodedata.category(c) == "Cs" for c in name):
            names[name] = None
    return tuple(names)


def _templates(draws: Draws, *, many: bool) -> tuple[str, ...]:
    one = (
        "{}",
        "a photo of a {}.",
        "{} {{",
        "X {}",
        "Ein Foto: {}",
        "猫 {} 🐈",
        "&{};",
        "a_{}_b",
        "{}\n",
    )
    usable = [text for text in one if text.count("{}") == 1]
    return tuple(draws.choice(usable) for _ in range(draws.choice((1, 1, 2, 5)) if many else 1))


def odd_value(draws: Draws, depth: int) -> Any:
    """Draw a value that JSON has, at most so deep."""
    kind = draws.randrange(9)
    if kind < 2 and depth > 1:
        nested: Any = odd_value(draws, 1)
        for _ in range(draws.randint(1, depth - 1)):
            nested = [nested] if draws.random() < 0.5 else {odd_text(draws, 5): nested}
        return nested
    if kind == 2:
        return [draws.random() for _ in range(draws.choice((0, 3, 2000)))]
    if kind == 3:
        return {"images": 3, "accuracy": draws.choice((0, 1, 0.5, 1e308, -1, 10**400, "x", None))}
    return draws.choice(
        (None, True, 0, -1, 2**63, 2**64, -(10**300), 10**4000, 0.1, -0.0, 5e-324, 1.797e308, 1e22,
         odd_text(draws, 50), "x" * 20_000, [], {}, [[], {}, ""], 1e16)
    )  # fmt: skip


# Files

_DEFAULTS: tuple[tuple[int, dict[str, Any]], ...] = (
    (2, {"image": None, "temperature": 1.0, "unknown_below": 0.0}),
    (3, {"classes": None, "sketch": None, "unlike_below": -1.0}),
)


def _written(prompt: Prompt, draws: Draws) -> tuple[bytes, str]:
    """Return a file of a prompt as another program may write it, and how it differs from ours."""
    data = to_bytes(prompt)
    form = draws.choice(("as it is", "as it is", "newer version", "other JSON", "other order"))
    if form == "as it is":
        return data, form
    header, arrays = _opened(data)
    options: dict[str, Any] = {"ensure_ascii": False}
    if form == "newer version":
        version = draws.randint(header["format_version"], 3)
        for added, fields in _DEFAULTS:
            if header["format_version"] < added <= version:
                header |= fields
        header["format_version"] = version
        form = f"as version {version}"
    elif form == "other JSON":
        options = {"ensure_ascii": True, "indent": draws.choice((None, 1, 4))}
        header = dict(draws.sample(sorted(header.items()), len(header)))
    else:
        arrays = dict(draws.sample(sorted(arrays.items()), len(arrays)))
    return safetensors_numpy.save(arrays, {METADATA_KEY: json.dumps(header, **options)}), form


def _opened(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    size = int.from_bytes(data[:8], "little")
    document = json.loads(data[8 : 8 + size])["__metadata__"][METADATA_KEY]
    return json.loads(document), dict(safetensors_numpy.load(data))


# Changes: each changes the header and the arrays in place, and says how.

Change = Callable[[dict[str, Any], dict[str, Any], Draws], str]
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 4, 2**31, 2**63, 2**64, 10**30, 10**400, 1.5, -0.0, 1e308,
    1e-320, "", "x", "0", "NaN", "\0", "é", "a" * 501, "x" * 200_000, [], [1], ["a", "a"], [""],
    ["{}"], [[]], {}, {"a": 1}, {"encoding": "dense"},
    {"encoding": "deep", "options": {"layers": [{}]}},
    {"encoding": "deep", "options": {"layers": [{"encoding": "low_rank", "options": []}]}},
)  # fmt: skip


_BAD_OPTIONS: tuple[Any, ...] = ([], "x", 5, None, {"base": "x"})


def _change_field(header: dict[str, Any], arrays: dict[str, Any], draws: Draws) -> str:
    name = draws.choice(sorted(header))
    header[name] = draws.choice(_VALUES)
    return f"{name} = {str(header[name])[:40]}"


def _remove_field(header: dict[str, Any], arrays: dict[str, Any], draws: Draws) -> str:
    name = draws.choice(sorted(header))
    del header[name]
    return name


def _change_inside(header: dict[str, Any], arrays: dict[str, Any], draws: Draws) -> str:
    """Change a value somewhere inside a field."""
    place: Any = header
    path = []
    while True:
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key: Any = draws.choice(list(keys))
        path.append(str(key)[:20])
        below = place[key]
        if not isinstance(below, dict | list) or not below or draws.random() < 0.3:
            place[key] = draws.choice(_VALUES)
            return ".".join(path) + f" = {str(place[key])[:40]}"
        place = below


def _branch(header: Mapping[str, Any], draws: Draws) -> Any:
    branches = [header[b] for b in ("text", "image", "classes", "sketch") if header.get(b)]
    return draws.choice(branches) if branches else None


def _change_branch(header: dict[str, Any], arrays: dict[str, Any], draws: Draws) -> str:
    branch = _branch(header, draws)
    if branch is None:
        return _change_field(header, arrays, draws)
    what = draws.choice(("encoding", "options", "coded"))
    if what == "encoding":
        branch["encoding"] = draws.choice(
            ("dense", "low_rank", "deep", "ragged", "projected", "conditional", "class_vectors",
             "label_vectors", "image_sketch", "", "other")
        )  # fmt: skip
    elif what == "options":
        branch["options"] = draws.choice(
            ({}, {"base": "none"}, {"base": "other"}, {"base": []}, {"layers": 2}, {"layers": True},
             {"layers": []}, {"layers": [5]}, {"layers": 10**9}, {"other": 1},
             *({"layers": [{"encoding": "low_rank", "options": bad}] * 2} for bad in _BAD_OPTIONS))
        )  # fmt: skip
    else:
        branch["coded"] = _coded(branch, arrays, draws)
    return f"{what} = {str(branch[what])[:60]}"


def _coded(branch: Mapping[str, Any], arrays: Mapping[str, Any], draws: Draws) -> Any:
    name = draws.choice(sorted({key.partition(".")[2] for key in arrays} or {"x"}))
    name = name.removesuffix(".indices").removesuffix(".codebook")
    shape = draws.choice(
        ([], [0], [1], [-1], [2, 2], [0, 2**62, 2**62], [0, 10**30], [2**40], [1] * 4,
         [2**31, 0, 2**40], [30_000_000], [1.5], ["1"])
    )  # fmt: skip
    own = {"bits": draws.choice((0, 1, 2, 3, 4, 8, 16, -1, 2**40)), "shape": shape}
    return {**(branch.get("coded") or {}), name: own}


def _change_array(header: dict[str, Any], arrays: dict[str, Any], draws: Draws) -> str:
    if not arrays:
        return _change_field(header, arrays, draws)
    name = draws.choice(sorted(arrays))
    rng = np.random.default_rng(draws.getrandbits(64))
    whole = arrays[name]
    kind = draws.choice(("value", "dtype", "shape", "rows", "numbers"))
    changed = whole.copy()
    if kind == "value" and whole.dtype == np.float16 and whole.size:
        changed.flat[rng.integers(whole.size)] = draws.choice((np.nan, np.inf, -np.inf, 0, -1))
    elif kind == "dtype":
        kinds = ("float32", "float64", "uint8", "int64", "bool", "int8", "uint64")
        with np.errstate(all="ignore"):
            changed = whole.astype(draws.choice(kinds))
    elif kind == "shape":
        shapes = ((-1,), (1, -1), (-1, 1), (1, 1, -1), (1, 1, 1, -1), whole.shape[::-1])
        changed = whole.reshape(draws.choice(shapes)) if whole.size else np.zeros((), whole.dtype)
    elif kind == "rows":
        changed = draws.choice((whole[:-1], whole[:0], np.concatenate([whole, whole]), whole[:1]))
    elif whole.dtype == np.uint8 and whole.size:
        changed = rng.integers(0, 256, whole.shape, dtype=np.uint8)
    arrays[name] = np.ascontiguousarray(changed)
    return f"{kind} of {name}"


def _rename_array(header: dict[str, Any], arrays: dict[str, Any], draws: Draws) -> str:
    if not arrays:
        return _change_field(header, arrays, draws)
    name = draws.choice(sorted(arrays))
    branch = name.partition(".")[0]
    new = draws.choice(
        (f"{branch}.{'9' * 5000}.p_a", f"{branch}.-1.p_a", f"{branch}.٣.p_a", f"{branch}.", branch,
         f"{branch}.00.p_a", "other", "", f"{branch}.x.y.z", f"{branch}.0", "__metadata__x")
    )  # fmt: skip
    arrays[new] = arrays[name] if draws.random() < 0.5 else arrays.pop(name)
    return f"{name} to {new[:30]}"


CHANGES: Mapping[str, Change] = {
    "field": _change_field,
    "missing": _remove_field,
    "inside": _change_inside,
    "branch": _change_branch,
    "array": _change_array,
    "name": _rename_array,
}
