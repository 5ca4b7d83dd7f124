"""Probe: a few bytes that verify that a prompt's class features are those it was learned with.

The probe has one number per class: the projection of its class features (E,) onto a fixed
pseudo-random direction (E,). A different backbone, tokenizer or text encoder changes it.
"""

import hashlib
from functools import lru_cache

import numpy as np

from prompt_serve.types import FloatArray, HalfArray

# float16 rounds a value near 4 by up to 0.002; a text encoder of the same backbone in another
# float32 implementation is off by about 1e-5. Features of another backbone differ by about 1.
TOLERANCE = 5e-3


@lru_cache(maxsize=8)
def probe_direction(width: int) -> FloatArray:
    """Return the direction for features of ``width`` E: (E,) of +1 and -1, read-only.

    The signs are the bits of SHAKE-256 over ``prompt-serve probe 1``, least significant first.
    Any language can compute them, and they depend on no random generator.
    """
    stream = hashlib.shake_256(b"prompt-serve probe 1").digest((width + 7) // 8)
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8), count=width, bitorder="little")
    direction = np.where(bits == 1, np.float32(1), np.float32(-1)).astype(np.float32)
    direction.flags.writeable = False
    return direction


def probe(class_features: FloatArray) -> HalfArray:
    """Project unit class features (C, E) to (C,) float16."""
    return (class_features @ probe_direction(class_features.shape[-1])).astype(np.float16)


def probe_difference(stored: HalfArray, class_features: FloatArray) -> float:
    """Return the largest absolute difference between a stored probe and that of class features.

    Args:
        stored: (C,) probe from a prompt file.
        class_features: (C, E) computed here, unit length along E.
    """
    exact = class_features @ probe_direction(class_features.shape[-1])
    return float(np.abs(exact - stored.astype(np.float32)).max(initial=0.0))
