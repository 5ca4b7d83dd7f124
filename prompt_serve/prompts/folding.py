"""Fold a compact encoding into plain context vectors.

Folding happens once, when a task is loaded, so that it costs a request nothing.
"""

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
from prompt_serve.prompts.quantized_tensor import StoredTensor, dequantize
from prompt_serve.types import FloatArray

_NOTHING: PromptVectors[FloatArray] = PromptVectors()


def fold_text(
    encoding: TextEncoding | None, template_context: FloatArray
) -> PromptVectors[FloatArray]:
    """Turn the encoding of the text branch into plain vectors.

    A conditional context folds to the part that does not depend on the image.

    Args:
        encoding: encoding from a prompt file; None if nothing was learned.
        template_context: (M', D) token embeddings of the template's words before the class name.
            ``P_init`` is the first M of them if the encoding builds on the template.

    Raises:
        PromptFileInvalid: the encoding builds on the template, but has another number of tokens.
    """
    match encoding:
        case None:
            return _NOTHING
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
        encoding: encoding from a prompt file; None if nothing was learned.
        text: folded text branch, the input of projections.

    Raises:
        PromptFileInvalid: the text branch does not have the vectors that the projections expect.
    """
    match encoding:
        case None:
            return _NOTHING
        case Projected():
            return _project(encoding, text)
        case Deep():
            first, *deeper = (_without_words(layer) for layer in encoding.layers)
            return PromptVectors(context=first, deeper=tuple(deeper))
        case PrunedKeyValues():
            return PromptVectors(keys_values=_rows_by_block(encoding))
    return PromptVectors(context=_without_words(encoding))


def fold(encoding: Layer, template_context: FloatArray) -> FloatArray:
    """Return the vectors of one block: (M, D), or (C, M, D) if class-specific; float32.

    Args:
        encoding: encoding of the block.
        template_context: as in ``fold_text``.

    Raises:
        PromptFileInvalid: the encoding builds on the template, but has another number of tokens.
    """
    if isinstance(encoding, Dense):
        return _floats(encoding.context)
    # The factors are float16, their product float32: DIP, Alg. 3 at evaluation (no dropout).
    product = _floats(encoding.p_a) @ _floats(encoding.p_b)  # (M, D)
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
    """Fold a layer of the image tower, which has no words to build on."""
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
    with np.errstate(over="ignore", invalid="ignore"):  # ``image_rows`` refuses what comes of it
        first, *deeper = (
            _projected(source, layer)
            for source, layer in zip(sources, encoding.layers, strict=True)
        )
    return PromptVectors(context=first, deeper=tuple(deeper))


def _projected(source: FloatArray, layer: Projection) -> FloatArray:
    vectors = source  # (M, D)
    for factor in layer.factors:
        vectors = vectors @ _floats(factor)  # (M, D') in the end
    return vectors if layer.bias is None else vectors + _floats(layer.bias)


def _floats(tensor: StoredTensor) -> FloatArray:
    return dequantize(tensor).astype(np.float32)
