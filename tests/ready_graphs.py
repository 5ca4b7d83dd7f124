"""Exports without the seconds that tracing takes, where a test is about what follows it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest

from prompt_serve.export import build

FILES = {
    "image": "image_encoder",
    "prompted_image": "prompted_image_encoder",
    "row": "image_rows",
    "text": "text_encoder",
}


@contextmanager
def ready_graphs(bundle: Path, *names: str) -> Iterator[dict[str, onnx.ModelProto]]:
    """Let ``export_bundle`` take graphs of an fp32 bundle of the same backbone instead of tracing.

    Args:
        bundle: the bundle.
        names: which of ``FILES``; none: all.

    Yields:
        The graphs by name; what is changed in them is exported.
    """
    models = {name: onnx.load(bundle / f"{FILES[name]}.onnx") for name in names or FILES}
    with pytest.MonkeyPatch.context() as patch:
        for name, model in models.items():
            patch.setattr(build, f"{name}_graph", lambda *_, model=model: model)
        yield models
