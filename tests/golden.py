"""Three prompts whose files lie in ``tests/data`` and must stay readable for ever.

``python -m tests.golden`` writes those that are missing; it never changes one that is there.
"""

from pathlib import Path

import numpy as np

from prompt_serve.encodings import Dense, LowRank
from prompt_serve.prompt_file import BackboneRef, Prompt, to_bytes

DATA = Path(__file__).parent / "data"

BACKBONE = BackboneRef(
    id="golden", fingerprint="0123456789abcdef" * 4, text_width=4, embed_dim=3, context_length=16
)


def half(values: object) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    return np.asarray(values, dtype=np.float16)


GOLDEN: dict[str, Prompt] = {
    "zero_shot": Prompt(
        name="fruit",
        method="zero-shot",
        class_names=("apple", "Äpfel & Birnen", "りんご"),
        templates=("a photo of a {}.", "a drawing of a {}."),
        backbone=BACKBONE,
        probe=half([0.5, -1.25, 1.5]),
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
        probe=half([0.125, 2.0]),
        class_position="middle",
        text=Dense(
            context=half(
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
        probe=half([-0.75, 0.0]),
        text=LowRank(p_a=half([[1.0], [-0.5], [2.0]]), p_b=half([[0.5, 0.25, -1.0, 4.0]])),
        training={"method": "dip", "rank": 1},
        tool_version="0.1.0",
    ),
}


def path_of(name: str) -> Path:
    return DATA / f"{name}.safetensors"


if __name__ == "__main__":
    for golden_name, prompt in GOLDEN.items():
        if not path_of(golden_name).exists():
            path_of(golden_name).write_bytes(to_bytes(prompt))
