"""Learned numbers of a run, for comparisons."""

import numpy as np

from prompt_serve.prompts.quantized_tensor import Coded
from prompt_serve.training.loop import Fitted
from prompt_serve.types import FloatArray


def numbers_of(fitted: Fitted) -> FloatArray:
    """All learned numbers of both branches in one row, codes looked up."""
    arrays = []
    for encoding in (fitted.encodings.text, fitted.encodings.image):
        for tensor in encoding.tensors().values() if encoding else ():
            values = tensor.numbers() if isinstance(tensor, Coded) else tensor
            arrays.append(values.astype(np.float32).ravel())
    return np.concatenate(arrays)
