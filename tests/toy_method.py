"""A method of another package, as its author would write and install it."""

from collections.abc import Mapping
from pathlib import Path

SHIFT = '''
"""Shift: add one learned vector to all words of the template."""

from dataclasses import dataclass

import torch
from torch import nn

from prompt_serve.prompts.encodings import Dense
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.training.methods.base import (
    Contexts,
    Encodings,
    LearnerInputs,
    Method,
    PromptLearner,
    to_float16,
)
from prompt_serve.training.settings import MethodSettings, number


@dataclass(frozen=True, kw_only=True)
class ShiftSettings(MethodSettings):
    first_shift: float = number(0.0, -1.0, 1.0, "Value of the shift before training.")


class Shift(PromptLearner):
    """``P = P_init + s`` with s (D)."""

    def __init__(self, inputs: LearnerInputs, settings: ShiftSettings) -> None:
        super().__init__()
        self.register_buffer("words", inputs.first_words().clone(), persistent=False)
        self.shift = nn.Parameter(torch.full((inputs.width,), settings.first_shift))

    def contexts(self) -> Contexts:
        return Contexts(text=PromptVectors(context=self.words + self.shift))

    def encodings(self) -> Encodings:
        return Encodings(text=Dense(context=to_float16(self.words + self.shift)))


METHOD = Method(
    name="shift",
    summary="One vector for all words.",
    paper="nobody's",
    settings=ShiftSettings,
    learner=Shift,
    learning_rate=1.0,
    learning_rates=(1.0,),
)
'''


def install(folder: Path, package: str, code: str, methods: Mapping[str, str]) -> None:
    """Lay out what ``pip install`` would leave in ``folder``: a package and its entry points.

    Args:
        folder: on the import path.
        package: its name; version 1.2.
        code: of the package's only file.
        methods: entry points by name, each the name of an object of that file.
    """
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(code)
    info = folder / f"{package}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    lines = [f"{name} = {package}:{place}" for name, place in methods.items()]
    (info / "entry_points.txt").write_text("\n".join(["[prompt_serve.methods]", *lines, ""]))
