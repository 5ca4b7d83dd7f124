"""Prompt files for a shipped backbone, made without torch."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from prompt_serve.bundle import open_bundle, shipped_bundle
from prompt_serve.engines.encoders import Encoders
from prompt_serve.prompts.class_features import class_features
from prompt_serve.prompts.probe import probe
from prompt_serve.prompts.prompt_file import Prompt, to_bytes


@cache
def encoders(backbone: str) -> Encoders:
    return Encoders.open(open_bundle(shipped_bundle(backbone)), cuda_device=None, threads=1)


def zero_shot(path: Path, *class_names: str, backbone: str = "embedded") -> Path:
    """Write a zero-shot prompt; return its path."""
    return zero_shot_of(encoders(backbone), path, *class_names)


def zero_shot_of(of: Encoders, path: Path, *class_names: str) -> Path:
    """Write a zero-shot prompt for a bundle; return its path."""
    prompt = Prompt(
        name=path.stem,
        method="zero-shot",
        class_names=class_names,
        templates=("a photo of a {}.",),
        backbone=of.ref,
        probe=np.zeros(len(class_names), dtype=np.float16),
    )
    features = class_features(prompt, of.bundle.text_side, of.encode_text)
    path.write_bytes(to_bytes(replace(prompt, probe=probe(features))))
    return path
