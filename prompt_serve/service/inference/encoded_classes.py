"""Class features that were encoded before, within a budget of bytes.

A class is looked up by what the text encoder would read: the vectors of its whole sequence.
Versions of a task that share their prompt therefore share the features of the class names that they
share, and only new names are encoded. Classes of a batch do not depend on each other, so these are
the features that encoding all of them would give.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from prompt_serve.prompts.class_features import EncodeText
from prompt_serve.prompts.sequences import Sequences
from prompt_serve.types import FloatArray

MAX_BYTES = 16 * 2**20  # about 7,000 classes of 512 numbers
_ENTRY_BYTES = 300  # of a key and the objects around one class


class EncodedClasses:
    """Text encoder that remembers the classes it was used for last. Thread-safe.

    Args:
        encode_text: text encoder.
        max_bytes: budget of the features.
    """

    def __init__(self, encode_text: EncodeText, max_bytes: int = MAX_BYTES) -> None:
        self._encode_text = encode_text
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._features: OrderedDict[bytes, FloatArray] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()

    def __call__(self, sequences: Sequences) -> FloatArray:
        """Encode the sequences of C classes to (C, E), those that are not known."""
        n_classes = len(sequences.eot)
        if n_classes < 2:  # alone, a class is computed by other kernels, and rounded otherwise
            return self._encode_text(sequences)
        keys = _keys(sequences)
        found = self._find(keys)
        missing = [index for index, features in enumerate(found) if features is None]
        if missing:
            encoded = self._encode_text(_some(sequences, missing))
            for index, features in zip(missing, encoded, strict=False):
                found[index] = features
            self._remember({keys[index]: features for index, features in enumerate(found)})
        return np.stack([features for features in found if features is not None])

    def _find(self, keys: Sequence[bytes]) -> list[FloatArray | None]:
        with self._lock:
            for key in keys:
                if key in self._features:
                    self._features.move_to_end(key)
            return [self._features.get(key) for key in keys]

    def _remember(self, features: dict[bytes, FloatArray | None]) -> None:
        with self._lock:
            for key, row in features.items():
                if row is not None and key not in self._features:
                    self._features[key] = row.copy()  # not a view that keeps its whole batch
                    self._size_bytes += row.nbytes + _ENTRY_BYTES
            while self._size_bytes > self._max_bytes and self._features:
                _, oldest = self._features.popitem(last=False)
                self._size_bytes -= oldest.nbytes + _ENTRY_BYTES


def _some(sequences: Sequences, classes: Sequence[int]) -> Sequences:
    """Return the sequences of these classes; of one class, followed by those of another."""
    n_classes = len(sequences.eot)
    if len(classes) == n_classes:
        return sequences
    # Never one class alone: it would be rounded otherwise.
    rows = classes if len(classes) > 1 else [*classes, (classes[0] + 1) % n_classes]
    return replace(sequences, suffix=sequences.suffix[rows], eot=sequences.eot[rows])


def _keys(sequences: Sequences) -> list[bytes]:
    """Return a digest per class of everything that its features depend on."""
    shared = hashlib.blake2b(digest_size=16)
    for vectors in (*sequences.deeper, *sequences.keys_values):
        shared.update(repr(vectors.shape).encode())
        shared.update(np.ascontiguousarray(vectors).data)
    if sequences.deeper:  # they replace vectors of the prefix
        shared.update(len(sequences.prefix).to_bytes(8, "little"))
    shared.update(np.ascontiguousarray(sequences.prefix).data)
    keys = []
    for suffix, eot in zip(sequences.suffix, sequences.eot, strict=True):
        own = shared.copy()
        own.update(np.ascontiguousarray(suffix[: int(eot) + 1]).data)
        keys.append(own.digest())
    return keys
