"""Run the graphs of a bundle once, before a service starts with them: they may not fit each other.

Digests show that a file is the one that was exported, not that it belongs to this manifest.
"""

import numpy as np

from prompt_serve.bundle import MANIFEST, Bundle
from prompt_serve.engines.onnx_session import CPU, open_session
from prompt_serve.engines.onnx_text import TextEncoder
from prompt_serve.errors import BundleInvalid, PromptServeError
from prompt_serve.prompts.class_features import class_features
from prompt_serve.prompts.prompt_file import Prompt

_MAX_WORDS = 200  # of the longer name; class names have at most 500 characters
_SHOWN_REASON = 300  # characters of a library's error


def check_graphs(bundle: Bundle) -> None:
    """Encode a black image and two class names, the longer of which fills the context.

    On the CPU, in float32: a graph in half precision is only opened.

    Raises:
        BundleInvalid: a file cannot be read, or a graph does not fit the manifest.
    """
    try:
        _check(bundle)
    except PromptServeError:
        raise
    # ONNX Runtime's own exceptions share no base class but Exception.
    except Exception as error:
        reason = " ".join(str(error).split())[:_SHOWN_REASON]
        raise _misfit(bundle, reason) from error


def _check(bundle: Bundle) -> None:
    manifest = bundle.manifest
    width, side = manifest.backbone.embed_dim, manifest.preprocessing.image_size
    longest = " ".join(["a"] * min(_MAX_WORDS, manifest.backbone.context_length - 2))
    prompt = Prompt(
        name="check",
        method="zero-shot",
        class_names=("cat", longest),
        templates=("{}",),
        backbone=manifest.backbone,
        probe=np.zeros(2, dtype=np.float16),
    )
    text = class_features(prompt, bundle.text_side, TextEncoder(bundle, threads=1).encode)
    session = open_session(bundle.image_encoder, CPU, threads=1)
    if manifest.precision == "fp16":
        return
    pixels = np.zeros((1, side, side, 3), dtype=np.uint8)
    (image,) = session.run(["image_features"], {"pixels": pixels})
    for name, features, shape in (("text", text, (2, width)), ("image", image, (1, width))):
        if features.shape != shape or not np.isfinite(features).all():
            raise _misfit(
                bundle, f"the {name} graph makes features {features.shape}, expected {shape}"
            )


def _misfit(bundle: Bundle, reason: str) -> BundleInvalid:
    return BundleInvalid(
        f"The graphs in {bundle.path} do not fit its {MANIFEST}: {reason}. "
        f"Export the backbone again.",
        path=str(bundle.path),
    )
