"""Prompts whose files lie in ``tests/data`` and must stay readable for ever.

``python -m tests.golden`` writes those that are missing; it never changes one that is there.
"""

from pathlib import Path
from typing import Any

import numpy as np

from prompt_serve.prompts.class_vectors import ClassVectors, ImageSketch, LabelVectors
from prompt_serve.prompts.encodings import (
    Conditional,
    Deep,
    Dense,
    LowRank,
    Projected,
    Projection,
    PrunedKeyValues,
)
from prompt_serve.prompts.prompt_file import Prompt, to_bytes
from prompt_serve.prompts.quantized_tensor import QuantizedTensor
from prompt_serve.types import BackboneRef

DATA = Path(__file__).parent / "data"

BACKBONE = BackboneRef(
    id="golden", fingerprint="0123456789abcdef" * 4, text_width=4, embed_dim=3, context_length=16
)


def to_float16(values: object) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    return np.asarray(values, dtype=np.float16)


def quantized(indices: object, codebook: object) -> QuantizedTensor:
    return QuantizedTensor(
        indices=np.asarray(indices, dtype=np.uint8), codebook=to_float16(codebook)
    )


def v2(method: str, **parts: Any) -> Prompt:
    """A prompt of two classes that needs format version 2; two vectors by default."""
    return Prompt(
        **{
            "name": "pets",
            "method": method,
            "class_names": ("cat", "dog"),
            "templates": ("photo of {}.",),
            "backbone": BACKBONE,
            "probe": to_float16([0.25, -0.5]),
            "training": {"method": method},
            "tool_version": "0.2.0",
            **parts,
        }
    )


PLAIN: dict[str, Prompt] = {
    "zero_shot": Prompt(
        name="fruit",
        method="zero-shot",
        class_names=("apple", "Äpfel & Birnen", "りんご"),
        templates=("a photo of a {}.", "a drawing of a {}."),
        backbone=BACKBONE,
        probe=to_float16([0.5, -1.25, 1.5]),
        training={"method": "zero-shot", "seed": 1},
        metrics={"test": {"accuracy": 0.75, "images": 4, "per_class": [1.0, 0.5, None]}},
        tool_version="0.1.0",
    ),
    "dense_class_specific": Prompt(
        name="pets",
        method="coop",
        class_names=("cat", "dog"),
        templates=("X X {}.",),
        backbone=BACKBONE,
        probe=to_float16([0.125, 2.0]),
        class_position="middle",
        text=Dense(
            context=to_float16(
                [
                    [[1.0, -2.0, 0.5, 0.25], [3.0, 4.0, -5.0, 6.0]],
                    [[0.0, 0.0999755859375, 65504.0, -65504.0], [5.960464477539063e-08, 1, 2, 3]],
                ]
            )
        ),
        training={"method": "coop", "class_specific": True},
        created="2026-01-02T03:04:05+00:00",
        tool_version="0.1.0",
    ),
    "low_rank": Prompt(
        name="pets",
        method="dip",
        class_names=("cat", "dog"),
        templates=("a photo of {}.",),
        backbone=BACKBONE,
        probe=to_float16([-0.75, 0.0]),
        text=LowRank(
            p_a=to_float16([[1.0], [-0.5], [2.0]]), p_b=to_float16([[0.5, 0.25, -1.0, 4.0]])
        ),
        training={"method": "dip", "rank": 1},
        tool_version="0.1.0",
    ),
}
"""Format version 1."""

TWO_BLOCKS = Deep(
    layers=(
        LowRank(p_a=to_float16([[1.0], [-0.5]]), p_b=to_float16([[0.5, 0.25, -1.0, 4.0]])),
        Dense(context=to_float16([[1, 2, 3, 4], [-5, -6, -7, -8]])),
    )
)

NEWER: dict[str, Prompt] = {
    "codebook_1": v2(
        "qcoop",
        text=Dense(context=quantized([[0, 1, 1, 0], [1, 0, 0, 0]], [-0.5, 2.0])),
    ),
    "codebook_2": v2(
        "qcoop",
        text=Dense(context=quantized([[0, 1, 2, 3], [3, 1, 0, 2]], [-2.0, -0.5, 0.125, 65504.0])),
    ),
    "codebook_4": v2(
        "qcoop",
        templates=("photo {}.",),
        text=Dense(context=quantized([[0, 15, 7, 9]], np.arange(16) / 8 - 1)),
    ),
    "codebook_8": v2(
        "qcoop",
        text=Dense(
            context=quantized([[0, 255, 7, 9], [128, 127, 1, 254]], np.arange(256) / 64 - 2)
        ),
    ),
    # Nine indices: the second byte of p_b has bits left over. p_a is float16.
    "low_rank_codebook": v2(
        "dip",
        backbone=BACKBONE.model_copy(update={"text_width": 9}),
        text=LowRank(
            p_a=to_float16([[1.0], [-0.5]]),
            p_b=quantized([[1, 0, 1, 1, 0, 0, 1, 0, 1]], [-0.25, 0.75]),
        ),
    ),
    "deep": v2(
        "ivlp",
        text=TWO_BLOCKS,
        image=Deep(
            layers=(
                Dense(context=quantized([[0, 1, 1], [1, 1, 0]], [-1.0, 1.0])),
                LowRank(
                    p_a=to_float16([[2.0], [3.0]]), p_b=to_float16([[1, 0.5, 0.25]]), base="none"
                ),
            )
        ),
    ),
    "ragged": v2(
        "adapt",
        templates=("a photo of a {}.",),
        text=PrunedKeyValues(
            lengths=np.array([1, 0, 2], np.uint8),
            rows=to_float16([[1, 2, 3, 4], [5, 6, 7, 8], [-1, -2, -3, -4]]),
        ),
        image=PrunedKeyValues(
            lengths=np.array([0, 0], np.uint8), rows=to_float16(np.zeros((0, 3)))
        ),
    ),
    "ragged_codebook": v2(
        "adapt",
        text=PrunedKeyValues(
            lengths=np.array([0, 3], np.uint8),
            rows=quantized([[0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 2, 2]], [-1.5, -0.5, 0.5, 1.5]),
        ),
    ),
    "projected": v2(
        "maple",
        text=TWO_BLOCKS,
        image=Projected(
            layers=(
                Projection(
                    factors=(to_float16(np.arange(12).reshape(4, 3)),),
                    bias=to_float16([0.5, -0.5, 1.0]),
                ),
                Projection(
                    factors=(
                        to_float16(np.arange(4).reshape(4, 1)),
                        to_float16([[1.0, -1.0, 2.0]]),
                    ),
                    bias=to_float16([1, 2, 3]),
                ),
            )
        ),
    ),
    "projected_codebook": v2(
        "maple",
        text=Dense(context=quantized([[0, 1, 1, 0], [1, 0, 0, 0]], [-0.5, 2.0])),
        image=Projected(
            layers=(
                Projection(
                    factors=(quantized(np.arange(12).reshape(4, 3) % 4, [-1.0, 0.0, 1.0, 2.0]),)
                ),
            )
        ),
    ),
    "conditional": v2(
        "cocoop",
        text=Conditional(
            context=to_float16([[1, 2, 3, 4], [5, 6, 7, 8]]),
            w_1=to_float16([[0.5, -0.5, 0.25], [1, 2, 3]]),
            b_1=to_float16([0.125, -0.125]),
            w_2=to_float16([[1, 2], [3, 4], [5, 6], [7, 8]]),
            b_2=to_float16([0, 1, -1, 2]),
        ),
    ),
    "calibrated": v2(
        "coop",
        text=Dense(context=to_float16([[1, 2, 3, 4], [5, 6, 7, 8]])),
        temperature=1.375,
        unknown_below=0.25,
    ),
    "calibrated_zero_shot": v2("zero-shot", templates=("a {}.", "one {}."), temperature=0.75),
}
"""Format version 2, since version 1 cannot hold them."""


def v3(**parts: Any) -> Prompt:
    """A prompt of class vectors, which needs format version 3."""
    return v2("class-vectors", **{"tool_version": "0.3.0", "temperature": 0.5, **parts})


LATEST: dict[str, Prompt] = {
    "class_vectors_16": v3(
        classes=ClassVectors(
            rows=to_float16([[1.0, -0.5, 0.25], [-1.0, 0.5, 2.0]]), scales=to_float16([1.0, 1.0])
        )
    ),
    **{
        f"class_vectors_{bits}": v3(
            classes=ClassVectors(
                rows=quantized(
                    [[0, 2**bits - 1, 0], [2**bits - 1, 0, 1]], np.linspace(-1.5, 1.5, 2**bits)
                ),
                scales=to_float16([0.75, 1.25]),
            ),
            sketch=ImageSketch(means=quantized([[0, 1, 1], [1, 0, 1]], [-1.0, 1.0])),
            unlike_below=0.375,
        )
        for bits in (1, 2, 4, 8)
    },
    **{
        f"label_vectors_{bits}": v2(
            "multi-label",
            tool_version="0.3.0",
            classes=LabelVectors(
                rows=to_float16([[1.0, -0.5, 0.25], [-1.0, 0.5, 2.0]])
                if bits == 16
                else quantized(
                    [[0, 2**bits - 1, 0], [2**bits - 1, 0, 1]], np.linspace(-1.5, 1.5, 2**bits)
                ),
                scales=to_float16([8.0, 12.5]),
                offsets=to_float16([-2.5, 3.0]),
                thresholds=to_float16([0.25, 0.625]),
            ),
            sketch=ImageSketch(means=quantized([[0, 1, 1]], [-1.0, 1.0])),
            unlike_below=0.375,
        )
        for bits in (1, 4, 16)
    },
    "label_vectors_of_one": v2(
        "multi-label",
        tool_version="0.3.0",
        class_names=("cat",),
        probe=to_float16([0.5]),
        classes=LabelVectors(
            rows=to_float16([[1.0, -0.5, 0.25]]),
            scales=to_float16([8.0]),
            offsets=to_float16([-2.5]),
            thresholds=to_float16([0.25]),
        ),
    ),
    "sketched": v3(
        text=Dense(context=to_float16([[1, 2, 3, 4], [5, 6, 7, 8]])),
        sketch=ImageSketch(means=to_float16([[0.5, -0.5, 1.0]])),
        unlike_below=0.25,
    ),
}
"""Format version 3, since version 2 cannot hold them."""

GOLDEN = PLAIN | NEWER | LATEST


def path_of(name: str) -> Path:
    return DATA / f"{name}.safetensors"


if __name__ == "__main__":
    for golden_name, prompt in GOLDEN.items():
        if not path_of(golden_name).exists():
            path_of(golden_name).write_bytes(to_bytes(prompt))
