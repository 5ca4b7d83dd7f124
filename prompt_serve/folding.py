"""Fold a compact encoding into plain context vectors. Done once, when a task is loaded, so that a
request pays nothing for it."""

import numpy as np

from prompt_serve.encodings import Dense, Encoding
from prompt_serve.errors import PromptFileInvalid
from prompt_serve.types import FloatArray


def fold(encoding: Encoding, template_context: FloatArray) -> FloatArray:
    """Turn any encoding into plain context vectors.

    Args:
        encoding: as read from a prompt file.
        template_context: (M', D) token embeddings of the template's words before the class name;
            ``P_init`` where the encoding builds on it.

    Returns:
        (M, D), or (C, M, D) where every class has its own; float32.

    Raises:
        PromptFileInvalid: the encoding builds on the template, but has another number of tokens.
    """
    if isinstance(encoding, Dense):
        return encoding.context.astype(np.float32)
    # The factors are float16, their product float32: DIP, Alg. 3 at evaluation (no dropout).
    product = encoding.p_a.astype(np.float32) @ encoding.p_b.astype(np.float32)
    if encoding.base == "none":
        return product
    if template_context.shape != product.shape:
        raise PromptFileInvalid(
            f"The learned factors make a context of shape {product.shape}, but the template's "
            f"words before the class name make one of {template_context.shape}. "
            f"The template or the tokenizer is not the one it was learned with."
        )
    return np.asarray(template_context + product, dtype=np.float32)
