"""Fold a compact encoding into plain context vectors. Done once, when a task is loaded, so that a
request pays nothing for it."""

import numpy as np

from prompt_serve.errors import PromptFileInvalid
from prompt_serve.prompts.encodings import (
    Conditional,
    Deep,
    Dense,
    ImageEncoding,
    Layer,
    Projected,
    Projection,
    PrunedKeyValues,
    TextEncoding,
)
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.prompts.quantized_tensor import Stored, numbers
from prompt_serve.types import FloatArray

NOTHING: PromptVectors[FloatArray] = PromptVectors()


def fold_text(
    encoding: TextEncoding | None, template_context: FloatArray
) -> PromptVectors[FloatArray]:
    """Turn the encoding of the text branch into plain vectors.

    Args:
        encoding: as read from a prompt file; None where nothing was learned. Of a conditional
            context, the part that does not depend on the image.
        template_context: (M', D) token embeddings of the template's words before the class name.
            ``P_init`` is the first M of them where the encoding builds on it.

    Raises:
        PromptFileInvalid: the encoding builds on the template, but has another number of tokens.
    """
    match encoding:
        case None:
            return NOTHING
        case Deep():
            first, *deeper = (fold(layer, template_context) for layer in encoding.layers)
            return PromptVectors(context=first, deeper=tuple(deeper))
        case PrunedKeyValues():
            return PromptVectors(keys_values=_rows_by_block(encoding))
        case Conditional():
            return PromptVectors(context=_floats(encoding.context))
    return PromptVectors(context=fold(encoding, template_context))


def fold_image(
    encoding: ImageEncoding | None, text: PromptVectors[FloatArray]
) -> PromptVectors[FloatArray]:
    """Turn the encoding of the image branch into plain vectors.

    Args:
        encoding: as read from a prompt file; None where nothing was learned.
        text: the folded text branch, which projections start from.

    Raises:
        PromptFileInvalid: projections that the text branch has no vectors for.
    """
    match encoding:
        case None:
            return NOTHING
        case Projected():
            return _project(encoding, text)
        case Deep():
            first, *deeper = (_without_words(layer) for layer in encoding.layers)
            return PromptVectors(context=first, deeper=tuple(deeper))
        case PrunedKeyValues():
            return PromptVectors(keys_values=_rows_by_block(encoding))
    return PromptVectors(context=_without_words(encoding))


def fold(encoding: Layer, template_context: FloatArray) -> FloatArray:
    """The vectors of one block: (M, D), or (C, M, D) where every class has its own; float32.

    Raises:
        PromptFileInvalid: it builds on the template, but has another number of tokens.
    """
    if isinstance(encoding, Dense):
        return _floats(encoding.context)
    # The factors are float16, their product float32: DIP, Alg. 3 at evaluation (no dropout).
    product = _floats(encoding.p_a) @ _floats(encoding.p_b)
    if encoding.base == "none":
        return product
    words = template_context[: len(product)]
    if words.shape != product.shape:
        raise PromptFileInvalid(
            f"The learned factors make a context of shape {product.shape}, but the template's "
            f"words before the class name make one of {template_context.shape}. "
            f"The template or the tokenizer is not the one it was learned with."
        )
    return np.asarray(words + product, dtype=np.float32)


def _without_words(layer: Layer) -> FloatArray:
    """An image tower has no words to build on."""
    return fold(layer, np.zeros((0, layer.width), dtype=np.float32))


def _rows_by_block(encoding: PrunedKeyValues) -> tuple[FloatArray, ...]:
    ends = np.cumsum(encoding.lengths.astype(np.int64))
    return tuple(np.split(_floats(encoding.rows), ends[:-1]))


def _project(encoding: Projected, text: PromptVectors[FloatArray]) -> PromptVectors[FloatArray]:
    sources = () if text.context is None else (text.context, *text.deeper)
    widths = {source.shape[-1] for source in sources}
    if len(sources) != len(encoding.layers) or widths != {encoding.layers[0].text_width}:
        raise PromptFileInvalid(
            f"There are {len(encoding.layers)} projections of vectors "
            f"{encoding.layers[0].text_width} wide; the text branch has {len(sources)} blocks of "
            f"vectors {sorted(widths)} wide."
        )
    first, *deeper = (
        _projected(source, layer) for source, layer in zip(sources, encoding.layers, strict=True)
    )
    return PromptVectors(context=first, deeper=tuple(deeper))


def _projected(source: FloatArray, layer: Projection) -> FloatArray:
    vectors = source
    for factor in layer.factors:
        vectors = vectors @ _floats(factor)
    return vectors if layer.bias is None else vectors + _floats(layer.bias)


def _floats(tensor: Stored) -> FloatArray:
    return numbers(tensor).astype(np.float32)
